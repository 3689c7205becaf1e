//! A socket as [`fetch_sockets`](super::BroadcastOperator::fetch_sockets) tells of it, wherever in
//! the cluster it is connected.

use std::sync::Arc;

use roomcast_adapter::SocketId;
use serde::{Serialize, de::DeserializeOwned};

use super::{broadcast::BroadcastOperator, socket::Socket, space::Space};
use crate::transport::handshake::Handshake;

/// The sockets that were found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Fetched {
    /// The sockets, in no particular order.
    pub sockets: Vec<RemoteSocket>,
    /// Nodes of the cluster that did not answer in time.
    pub silent_nodes: Vec<String>,
}

/// A socket at the time when it was fetched.
#[derive(Clone)]
pub struct RemoteSocket {
    id: SocketId,
    rooms: Vec<String>,
    data: serde_json::Value,
    handshake: Handshake,
    space: Arc<Space>,
}

impl RemoteSocket {
    pub(super) fn of(socket: &Socket) -> Self {
        Self {
            id: socket.id().clone(),
            rooms: socket.rooms(),
            data: socket.data_json(),
            handshake: socket.handshake().clone(),
            space: Arc::clone(socket.space()),
        }
    }

    /// The id.
    pub fn id(&self) -> &SocketId {
        &self.id
    }

    /// The rooms, the private one first.
    pub fn rooms(&self) -> &[String] {
        &self.rooms
    }

    /// What was attached to the socket, as JSON; an empty object if nothing was.
    pub fn data_json(&self) -> &serde_json::Value {
        &self.data
    }

    /// What was attached to the socket.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.data)
    }

    /// The client's first request.
    pub fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// The socket as a target: to emit to it, make it join or leave rooms, or disconnect it.
    pub fn operator(&self) -> BroadcastOperator {
        BroadcastOperator::new(Arc::clone(&self.space)).to(&self.id)
    }
}

impl std::fmt::Debug for RemoteSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteSocket")
            .field("id", &self.id)
            .field("rooms", &self.rooms)
            .finish_non_exhaustive()
    }
}

impl Serialize for RemoteSocket {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a> {
            id: &'a SocketId,
            rooms: &'a [String],
            data: &'a serde_json::Value,
        }
        Form {
            id: &self.id,
            rooms: &self.rooms,
            data: &self.data,
        }
        .serialize(serializer)
    }
}
