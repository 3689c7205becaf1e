//! Values that an application attaches to a socket.

use std::any::Any;

use serde::Serialize;

/// A value that can be attached to a socket. Other nodes see its JSON when they fetch sockets.
///
/// Implemented for every type that implements `Serialize`.
pub trait Data: Any + Send + Sync {
    /// Returns the value as JSON, or `null` if it has no JSON form.
    fn to_json(&self) -> serde_json::Value;
}

impl<T: Serialize + Any + Send + Sync> Data for T {
    fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}
