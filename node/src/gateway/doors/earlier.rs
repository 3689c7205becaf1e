//! Checks whether a poll has missed an event before the one that wakes it.
//!
//! ```text
//!  poll from 3 ─ parked ─ event 5 ─► the log: the last entry before 5
//!                                     ├── 3 or less ─► 5 is the response
//!                                     └── 4 ─► published while the subscription was down: respond with 4
//! ```
//!
//! After an interruption, an event may arrive before the node has read the missed ones
//! from the log. A client that received 5 would never ask for 4. All polls that an event
//! wakes share one look into the log.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// The events whose predecessors are known. A fan-out takes less time than this number of events.
const MAX_KNOWN: usize = 64;

/// The predecessors of the latest events.
#[derive(Default)]
pub(super) struct Earlier(Mutex<VecDeque<Known>>);

struct Known {
    namespace: Arc<str>,
    room: Box<str>,
    id: u64,
    previous: Arc<OnceCell<u64>>,
}

impl Earlier {
    /// The id of the entry before this id in the room, or 0. `read` finds it in the log,
    /// and is called once for all polls that ask at the same time.
    pub(super) async fn before<F: Future<Output = Result<u64, E>>, E>(
        &self,
        namespace: &Arc<str>,
        room: &str,
        id: u64,
        read: impl FnOnce() -> F,
    ) -> Result<u64, E> {
        let cell = self.cell(namespace, room, id);
        cell.get_or_try_init(read).await.copied()
    }

    fn cell(&self, namespace: &Arc<str>, room: &str, id: u64) -> Arc<OnceCell<u64>> {
        let mut known = self.0.lock();
        let mut latest = known.iter().rev();
        let found = latest
            .find(|known| known.id == id && *known.room == *room && known.namespace == *namespace);
        if let Some(found) = found {
            return Arc::clone(&found.previous);
        }
        if known.len() >= MAX_KNOWN {
            known.pop_front();
        }
        let previous = Arc::<OnceCell<u64>>::default();
        known.push_back(Known {
            namespace: Arc::clone(namespace),
            room: room.into(),
            id,
            previous: Arc::clone(&previous),
        });
        previous
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_that_one_event_wakes_look_once() {
        let earlier = Earlier::default();
        let [shop, other]: [Arc<str>; 2] = ["/syncano/shop".into(), "/syncano/other".into()];
        let first = earlier.cell(&shop, "a", 5);
        assert!(Arc::ptr_eq(&first, &earlier.cell(&shop, "a", 5)));
        assert!(!Arc::ptr_eq(&first, &earlier.cell(&other, "a", 5)));
        assert!(!Arc::ptr_eq(&first, &earlier.cell(&shop, "b", 5)));
        for id in 6..6 + MAX_KNOWN as u64 {
            earlier.cell(&shop, "a", id);
        }
        assert_eq!(earlier.0.lock().len(), MAX_KNOWN);
    }
}
