//! Changes of rooms on this node, for applications that watch them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The rooms of a namespace that have got their first member on this node, or lost their last one.
///
/// A room is among the changes exactly while its state differs from the last returned one, so their
/// number is bounded even if they are seldom read. The lock is a leaf below that of the directory.
#[derive(Debug, Default)]
pub struct RoomWatch {
    /// With each room whether it has members now.
    changes: Mutex<HashMap<Arc<str>, bool>>,
    has_changes: Notify,
}

impl RoomWatch {
    /// Begins with rooms that have members.
    pub(crate) fn new(rooms: impl Iterator<Item = Arc<str>>) -> Self {
        let watch = Self {
            changes: Mutex::new(rooms.map(|room| (room, true)).collect()),
            has_changes: Notify::new(),
        };
        watch.notify();
        watch
    }

    /// A room has got its first member, or lost its last one. The second change undoes the first.
    pub(crate) fn note(&self, room: &Arc<str>, is_occupied: bool) {
        let mut changes = self.changes.lock();
        if changes.remove(room).is_none() {
            changes.insert(Arc::clone(room), is_occupied);
        }
    }

    pub(crate) fn notify(&self) {
        self.has_changes.notify_one();
    }

    /// Waits for changes and returns them, each room once, with whether it has members.
    pub async fn next(&self) -> Vec<(Arc<str>, bool)> {
        loop {
            let changes = std::mem::take(&mut *self.changes.lock());
            if !changes.is_empty() {
                return changes.into_iter().collect();
            }
            self.has_changes.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roomcast_protocol::id::SocketId;

    use crate::{
        Adapter, RoomLimits,
        member::fake::{Fake, id},
    };

    const LIMITS: RoomLimits = RoomLimits {
        rooms_per_socket: 10,
        name_bytes: 20,
    };

    #[tokio::test]
    async fn a_watch_shows_the_rooms_that_come_and_go_without_private_ones() {
        let adapter = Adapter::new(2, LIMITS, None);
        let [one, other] = [0, 1].map(|number| Fake::numbered(number, number));
        for member in [&one, &other] {
            adapter.insert(member.clone());
        }
        adapter.join(&one, &"a").unwrap();
        let watch = adapter.watch_rooms();
        assert_eq!(watch.next().await, [(Arc::from("a"), true)]);
        // Neither further members nor rooms that are empty again are changes.
        adapter.join(&other, &"a").unwrap();
        adapter.join(&other, &"short").unwrap();
        adapter.leave(&other, &"short");
        adapter.remove(&one);
        adapter.join(&other, &"b").unwrap();
        assert_eq!(watch.next().await, [(Arc::from("b"), true)]);
        let waiting = tokio::spawn(async move { watch.next().await });
        tokio::task::yield_now().await;
        adapter.remove(&other);
        let mut left = waiting.await.unwrap();
        left.sort();
        assert_eq!(left, [(Arc::from("a"), false), (Arc::from("b"), false)]);
        assert!(
            SocketId::is_plausible(&id(0)),
            "their private rooms were none of them"
        );
    }
}
