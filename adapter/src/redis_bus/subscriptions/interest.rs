//! The channels of rooms that one namespace holds.
//!
//! A channel is held from the first member of its room on. It is given up late, because members
//! often come back at once, as with the reload of a page. Pure: changes and times go in, channels
//! to subscribe and to unsubscribe come out.
//!
//! ```text
//!            occupied                     vacated
//! not held ───────────► held, occupied ◄─────────► held, vacated (queued once)
//!     ▲                                 occupied        │ LINGER later
//!     └────────────────────── give_up ──────────────────┘
//! ```

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// How long a channel is kept after its room's last member has left.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Maximum number of channels that one turn checks, because joins wait meanwhile.
const TURN: usize = 1024;

/// Number of channels whose memory is kept although it is not needed at the moment.
const KEPT: usize = 1024;

/// The channels that are held.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    held: HashMap<Arc<str>, Held>,
    /// Channels that may have to be given up, each once, with the time when it was queued.
    queue: VecDeque<(Instant, Arc<str>)>,
}

#[derive(Debug, Default)]
struct Held {
    /// When the room's last member left, if it did.
    vacated: Option<Instant>,
    is_queued: bool,
}

impl Interest {
    /// The channel's room has members. Returns whether the channel was not held before.
    pub(crate) fn occupied(&mut self, channel: &Arc<str>) -> bool {
        if let Some(held) = self.held.get_mut(channel) {
            held.vacated = None;
            return false;
        }
        self.held.insert(Arc::clone(channel), Held::default());
        true
    }

    /// The channel's room has lost its last member.
    pub(crate) fn vacated(&mut self, channel: &str, now: Instant) {
        let Some((channel, _)) = self.held.get_key_value(channel) else {
            return;
        };
        let channel = Arc::clone(channel);
        let Some(held) = self.held.get_mut(&channel) else {
            return;
        };
        held.vacated = Some(now);
        if !held.is_queued {
            held.is_queued = true;
            self.queue.push_back((now, channel));
        }
    }

    /// Gives up channels whose rooms have been empty for long enough, and returns them. There may
    /// be more ([`is_due`](Self::is_due)). The caller has taken all changes before. If a room has
    /// members nevertheless, that change is on its way or was undone unseen, so the room is checked
    /// again later.
    pub(crate) fn give_up(
        &mut self,
        now: Instant,
        has_members: impl Fn(&str) -> bool,
    ) -> Vec<Arc<str>> {
        let mut given_up = Vec::new();
        for _ in 0..TURN {
            if !self.is_due(now) {
                break;
            }
            let Some((_, channel)) = self.queue.pop_front() else {
                break;
            };
            let Some(held) = self.held.get_mut(&channel) else {
                continue;
            };
            held.is_queued = false;
            match held.vacated {
                None => {}
                // It was left again meanwhile: its time starts over.
                Some(vacated) if vacated + LINGER > now => {
                    held.is_queued = true;
                    self.queue.push_back((vacated, channel));
                }
                Some(_) if has_members(&channel) => self.vacated(&channel, now),
                Some(_) => {
                    self.held.remove(&channel);
                    given_up.push(channel);
                }
            }
        }
        self.give_memory_back();
        given_up
    }

    /// Returns whether there are channels to check.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let first = self.queue.front();
        first.is_some_and(|(queued, _)| *queued + LINGER <= now)
    }

    /// Returns all channels that are held.
    pub(crate) fn channels(&self) -> impl Iterator<Item = Arc<str>> {
        self.held.keys().cloned()
    }

    fn give_memory_back(&mut self) {
        let held = self.held.len();
        if self.held.capacity() > KEPT && held < self.held.capacity() / 4 {
            self.held.shrink_to(held * 2);
        }
        let queued = self.queue.len();
        if self.queue.capacity() > KEPT && queued < self.queue.capacity() / 4 {
            self.queue.shrink_to(queued * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(channels: &[&str]) -> (Interest, Instant) {
        let mut interest = Interest::default();
        for channel in channels {
            assert!(interest.occupied(&Arc::from(*channel)));
        }
        (interest, Instant::now())
    }

    fn given_up(interest: &mut Interest, now: Instant) -> Vec<Arc<str>> {
        interest.give_up(now, |_| false)
    }

    #[test]
    fn a_channel_is_given_up_a_second_after_its_room_was_left_for_the_last_time() {
        let (mut interest, start) = holding(&["a", "b", "c"]);
        let at = |millis| start + Duration::from_millis(millis);
        interest.vacated("a", at(0));
        interest.vacated("b", at(100));
        interest.vacated("a", at(600));
        assert!(given_up(&mut interest, at(999)).is_empty());
        assert!(given_up(&mut interest, at(1000)).is_empty());
        assert_eq!(given_up(&mut interest, at(1100)), [Arc::from("b")]);
        assert!(given_up(&mut interest, at(1599)).is_empty());
        assert_eq!(given_up(&mut interest, at(1600)), [Arc::from("a")]);
        assert!(given_up(&mut interest, at(9000)).is_empty());
        assert_eq!(interest.channels().collect::<Vec<_>>(), [Arc::from("c")]);
    }

    #[test]
    fn a_room_that_has_members_again_keeps_its_channel() {
        let (mut interest, start) = holding(&["a"]);
        interest.vacated("a", start);
        assert!(!interest.occupied(&Arc::from("a")));
        assert!(given_up(&mut interest, start + LINGER).is_empty());
        assert!(interest.held.contains_key("a"));
        interest.vacated("a", start + LINGER);
        assert_eq!(given_up(&mut interest, start + LINGER * 2).len(), 1);
    }

    #[test]
    fn a_member_that_came_and_went_unseen_delays_the_end_and_does_not_prevent_it() {
        let (mut interest, start) = holding(&["a"]);
        interest.vacated("a", start);
        assert!(interest.give_up(start + LINGER, |_| true).is_empty());
        assert!(interest.held.contains_key("a"));
        assert_eq!(given_up(&mut interest, start + LINGER * 2).len(), 1);
    }

    #[test]
    fn a_room_that_flaps_is_queued_once() {
        let (mut interest, start) = holding(&["a"]);
        for _ in 0..1000 {
            interest.vacated("a", start);
            interest.occupied(&Arc::from("a"));
        }
        assert_eq!((interest.held.len(), interest.queue.len()), (1, 1));
    }

    #[test]
    fn many_rooms_that_have_gone_leave_no_memory_behind() {
        let (mut interest, start) = holding(&[]);
        for number in 0..100_000 {
            let channel = Arc::from(format!("{number}"));
            interest.occupied(&channel);
            interest.vacated(&channel, start);
        }
        let end = start + LINGER;
        let mut turns = 0;
        while interest.is_due(end) {
            assert!(given_up(&mut interest, end).len() <= TURN);
            turns += 1;
        }
        assert_eq!((turns, interest.held.len()), (98, 0));
        assert!(interest.held.capacity() <= KEPT);
        assert!(interest.queue.capacity() <= KEPT);
    }
}
