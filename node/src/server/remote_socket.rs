//! A socket as [`fetch_sockets`](super::BroadcastOperator::fetch_sockets) tells of it, wherever in
//! the cluster it is connected.

use std::sync::Arc;

use roomcast_adapter::{Description, SocketId};
use serde::{Serialize, de::DeserializeOwned};

use super::{broadcast::BroadcastOperator, live_namespace::LiveNamespace};

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
    description: Description,
    namespace: Arc<LiveNamespace>,
}

impl RemoteSocket {
    pub(super) fn new(description: Description, namespace: Arc<LiveNamespace>) -> Self {
        Self {
            description,
            namespace,
        }
    }

    /// The id.
    pub fn id(&self) -> &SocketId {
        &self.description.id
    }

    /// The rooms, the private one first.
    pub fn rooms(&self) -> &[String] {
        &self.description.rooms
    }

    /// What was attached to the socket, as JSON; an empty object if nothing was.
    pub fn data_json(&self) -> &serde_json::Value {
        &self.description.data
    }

    /// What was attached to the socket.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.description.data)
    }

    /// The client's first request, as Node's server describes it: `headers`, `query`, `auth`,
    /// `address`, `time`, `issued`, `url`, `secure` and `xdomain`.
    pub fn handshake_json(&self) -> &serde_json::Value {
        &self.description.handshake
    }

    /// The socket as a target: to emit to it, make it join or leave rooms, or disconnect it.
    pub fn operator(&self) -> BroadcastOperator {
        BroadcastOperator::new(Arc::clone(&self.namespace)).to(&self.description.id)
    }
}

impl std::fmt::Debug for RemoteSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteSocket")
            .field("id", &self.description.id)
            .field("rooms", &self.description.rooms)
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
            id: &self.description.id,
            rooms: &self.description.rooms,
            data: &self.description.data,
        }
        .serialize(serializer)
    }
}
