//! Sockets anywhere in the cluster, as [`fetch_sockets`](super::BroadcastOperator::fetch_sockets)
//! returns them.

use std::sync::Arc;

use roomcast_adapter::{Description, SocketId};
use serde::{Serialize, de::DeserializeOwned};

use super::{broadcast::BroadcastOperator, live_namespace::LiveNamespace};

/// The result of [`fetch_sockets`](super::BroadcastOperator::fetch_sockets).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Fetched {
    /// The sockets, in no particular order.
    pub sockets: Vec<RemoteSocket>,
    /// Nodes of the cluster that did not answer in time.
    pub silent_nodes: Vec<String>,
}

/// A snapshot of a socket, taken when it was fetched.
///
/// ```
/// # use roomcast::{EmitError, Server};
/// # async fn run(io: Server) -> Result<(), EmitError> {
/// for socket in io.in_("lobby").fetch_sockets().await?.sockets {
///     if socket.data_json()["name"].is_null() {
///         socket.operator().emit("who are you?", ()).await?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
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

    /// The rooms. The private one is first.
    pub fn rooms(&self) -> &[String] {
        &self.description.rooms
    }

    /// The data of the socket as JSON, or an empty object if it has none.
    pub fn data_json(&self) -> &serde_json::Value {
        &self.description.data
    }

    /// The data of the socket, deserialized.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.description.data)
    }

    /// The client's first request in the form of Node.js servers: `headers`, `query`, `auth`,
    /// `address`, `time`, `issued`, `url`, `secure` and `xdomain`.
    pub fn handshake_json(&self) -> &serde_json::Value {
        &self.description.handshake
    }

    /// Selects this socket, to emit to it, make it join or leave rooms, or disconnect it.
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
