//! Which rooms' channels a node wants to hear, of one namespace.
//!
//! A channel is wanted from the first member of its room on, and given up late, so that rooms whose
//! last member leaves and comes back (a reload of a page) cost nothing. Pure: changes and times go
//! in, names to subscribe and to unsubscribe come out.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// How long a channel is kept after its room's last member has left.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// The rooms that have lost their last member a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    /// When the last member left. Holds what `queue` holds, each once.
    left: HashMap<Arc<str>, Instant>,
    queue: VecDeque<(Instant, Arc<str>)>,
}

impl Interest {
    /// A room has lost its last member.
    pub(crate) fn vacated(&mut self, room: &str, now: Instant) {
        if let Some(left) = self.left.get_mut(room) {
            *left = now;
            return;
        }
        let room: Arc<str> = room.into();
        self.left.insert(Arc::clone(&room), now);
        self.queue.push_back((now, room));
    }

    /// The next room that is to be given up, if it still has no member: the caller asks, under the
    /// lock under which it also takes changes.
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<Arc<str>> {
        while let Some((queued, _)) = self.queue.front() {
            if *queued + LINGER > now {
                return None;
            }
            let (_, room) = self.queue.pop_front()?;
            let left = self.left.get(&room).copied().unwrap_or(now);
            // It was left again meanwhile: its time begins anew.
            if left + LINGER > now {
                self.queue.push_back((left, room));
                continue;
            }
            self.left.remove(&room);
            return Some(room);
        }
        None
    }

    /// All rooms that wait to be given up.
    pub(crate) fn drain(&mut self) -> Vec<Arc<str>> {
        self.left.clear();
        self.queue.drain(..).map(|(_, room)| room).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_given_up_a_second_after_it_was_left_for_the_last_time() {
        let mut interest = Interest::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        interest.vacated("a", at(0));
        interest.vacated("b", at(100));
        interest.vacated("a", at(600));
        assert_eq!(interest.next_due(at(999)), None);
        assert_eq!(interest.next_due(at(1000)), None);
        assert_eq!(interest.next_due(at(1100)).as_deref(), Some("b"));
        assert_eq!(interest.next_due(at(1599)), None);
        assert_eq!(interest.next_due(at(1600)).as_deref(), Some("a"));
        assert_eq!(interest.next_due(at(9000)), None);
        interest.vacated("c", at(9000));
        assert_eq!(interest.drain(), [Arc::from("c")]);
        assert_eq!(interest.next_due(at(19000)), None);
    }

    #[test]
    fn a_room_that_flaps_is_held_once() {
        let mut interest = Interest::default();
        let start = Instant::now();
        for _ in 0..1000 {
            interest.vacated("a", start);
        }
        assert_eq!((interest.left.len(), interest.queue.len()), (1, 1));
    }
}
