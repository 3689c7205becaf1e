//! Rooms of this node that come and go.

use std::sync::Arc;

use roomcast_adapter::RoomWatch;

use super::{broadcast::BroadcastOperator, error::EmitError};

/// The rooms of a namespace that get their first member on this node or lose their last one, see
/// [`BroadcastOperator::watch_rooms`]. Dropping it ends the watch.
#[derive(Debug)]
pub struct RoomChanges {
    watch: Arc<RoomWatch>,
    /// Keeps a dynamic namespace.
    _namespace: BroadcastOperator,
}

/// A room of this node has got its first member or lost its last one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomChange {
    /// The name of the room.
    pub room: String,
    /// Whether the room has members on this node now.
    pub is_occupied: bool,
}

impl RoomChanges {
    /// Waits for changes and returns them, each room once. A room that has changed and changed back
    /// since the last call is left out, so the number of entries never exceeds the number of rooms.
    pub async fn next(&mut self) -> Vec<RoomChange> {
        let changes = self.watch.next().await.into_iter();
        let changes = changes.map(|(room, is_occupied)| RoomChange {
            room: String::from(&*room),
            is_occupied,
        });
        changes.collect()
    }
}

impl BroadcastOperator {
    /// Watches which rooms of the namespace have members on this node, like the events
    /// `create-room` and `delete-room` of an adapter for Node.js. Rooms that have members
    /// are the first changes. The private rooms of sockets are not watched, unless
    /// another socket joins one.
    ///
    /// ```
    /// # use roomcast::{EmitError, Server};
    /// # async fn run(io: Server) -> Result<(), EmitError> {
    /// let mut changes = io.of("/").watch_rooms()?;
    /// for change in changes.next().await {
    ///     println!("{} {}", change.room, if change.is_occupied { "opens" } else { "closes" });
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`EmitError::UnknownNamespace`].
    pub fn watch_rooms(&self) -> Result<RoomChanges, EmitError> {
        let watch = self.live()?.adapter.watch_rooms();
        Ok(RoomChanges {
            watch,
            _namespace: self.clone(),
        })
    }
}
