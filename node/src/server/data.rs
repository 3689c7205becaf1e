//! What an application attaches to a socket.

use std::any::Any;

use serde::Serialize;

/// A value that can be attached to a socket: other nodes read it as JSON when they fetch sockets.
pub trait Data: Any + Send + Sync {
    /// The value as JSON; null if it has no JSON form.
    fn to_json(&self) -> serde_json::Value;
}

impl<T: Serialize + Any + Send + Sync> Data for T {
    fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}
