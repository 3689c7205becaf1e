//! Which messages have come before.
//!
//! A sender numbers its messages. Of each sender, the highest number that came is kept,
//! and a bit for every number just below, because connections to several servers of a
//! Redis Cluster overtake each other:
//!
//! ```text
//!   replayed │ 1 0 1 1 0 1 … 1 │ new, moves the window
//!            └ highest − bits  └ highest
//! ```
//!
//! A window begins with 64 bits and grows with the numbers, so a process that emits once
//! costs little. Senders whose messages are all stale by now are forgotten. If there are
//! too many nevertheless, the one that is silent for longest makes room. From then on,
//! unknown senders need messages that are newer than its last one, so that messages of forgotten
//! senders cannot be replayed.

use std::collections::HashMap;

use super::{Rejection, Stamp};

/// Maximum number of senders.
const MAX_SENDERS: usize = 1024;

/// Maximum number of bits of a window: the messages by which a sender may be overtaken by
/// itself. With [`MAX_SENDERS`] they take 32 MiB.
const MAX_BITS: u64 = 1 << 18;

/// The senders whose messages came.
#[derive(Debug, Default)]
pub struct Senders {
    windows: HashMap<Box<str>, Window>,
    /// The time of the latest message of a sender that had to make room.
    forgotten: u64,
}

#[derive(Debug)]
struct Window {
    highest: u64,
    bits: Vec<u64>,
    /// The latest time of a message.
    latest: u64,
}

impl Senders {
    /// Accepts a message whose signature is valid. `now` and `tolerance` are in milliseconds.
    ///
    /// # Errors
    ///
    /// Its time differs from `now` by more than the tolerance, or it came before.
    pub fn admit(&mut self, stamp: Stamp<'_>, now: u64, tolerance: u64) -> Result<(), Rejection> {
        if stamp.time.abs_diff(now) > tolerance {
            return Err(Rejection::Stale);
        }
        if let Some(window) = self.windows.get_mut(stamp.sender) {
            return window.note(stamp);
        }
        if stamp.time <= self.forgotten && self.forgotten <= now.saturating_add(tolerance) {
            return Err(Rejection::Stale);
        }
        if self.windows.len() >= MAX_SENDERS {
            self.make_room(now, tolerance);
        }
        let window = self.windows.entry(stamp.sender.into());
        window.or_insert_with(Window::new).note(stamp)
    }

    fn make_room(&mut self, now: u64, tolerance: u64) {
        let oldest = now.saturating_sub(tolerance);
        self.windows.retain(|_, window| window.latest >= oldest);
        if self.windows.len() < MAX_SENDERS {
            return;
        }
        let silent = self.windows.iter().min_by_key(|(_, window)| window.latest);
        if let Some((name, latest)) = silent.map(|(name, window)| (name.clone(), window.latest)) {
            self.windows.remove(&name);
            self.forgotten = self.forgotten.max(latest);
        }
    }
}

impl Window {
    fn new() -> Self {
        Self {
            highest: 0,
            bits: vec![0],
            latest: 0,
        }
    }

    fn size(&self) -> u64 {
        64 * self.bits.len() as u64
    }

    fn note(&mut self, stamp: Stamp<'_>) -> Result<(), Rejection> {
        let number = stamp.number;
        if number > self.highest {
            // While all numbers fit, none wraps around, so growing moves nothing.
            let wanted = number.saturating_add(1).min(MAX_BITS);
            if wanted > self.size() {
                let words = wanted.next_power_of_two() / 64;
                self.bits.resize(words as usize, 0);
            }
            self.clear(self.highest + 1, number);
            self.highest = number;
        } else if self.highest - number >= self.size() {
            return Err(Rejection::Replayed);
        }
        self.latest = self.latest.max(stamp.time);
        let bit = 1 << (number % 64);
        let word = self.word(number);
        let is_new = *word & bit == 0;
        *word |= bit;
        if is_new {
            Ok(())
        } else {
            Err(Rejection::Replayed)
        }
    }

    /// Clears the bits of all numbers from `first` to `last`, which were those of numbers
    /// that leave the window.
    fn clear(&mut self, first: u64, last: u64) {
        if last - first >= self.size() {
            self.bits.fill(0);
            return;
        }
        let mut number = first;
        while number <= last {
            if number.is_multiple_of(64) && last - number >= 63 {
                *self.word(number) = 0;
                number += 64;
            } else {
                *self.word(number) &= !(1 << (number % 64));
                number += 1;
            }
        }
    }

    fn word(&mut self, number: u64) -> &mut u64 {
        let index = number % self.size() / 64;
        &mut self.bits[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const TOLERANCE: u64 = 30_000;

    fn stamp(sender: &str, number: u64, time: u64) -> Stamp<'_> {
        Stamp {
            sender,
            number,
            time,
        }
    }

    #[test]
    fn a_message_is_accepted_once_and_in_any_order() {
        let mut senders = Senders::default();
        let mut admit = |sender, number| senders.admit(stamp(sender, number, 5), 5, TOLERANCE);
        for (sender, number) in [("a", 3), ("a", 0), ("b", 3), ("a", 2), ("a", 1_000)] {
            assert_eq!(admit(sender, number), Ok(()), "{sender} {number}");
        }
        for (sender, number) in [("a", 0), ("a", 3), ("b", 3), ("a", 1_000)] {
            assert_eq!(admit(sender, number), Err(Rejection::Replayed));
        }
        assert_eq!(admit("a", MAX_BITS + 3), Ok(()));
        assert_eq!(admit("a", 3), Err(Rejection::Replayed), "below the window");
        assert_eq!(admit("a", 4), Ok(()));
    }

    #[test]
    fn a_message_is_stale_before_and_after_the_tolerance() {
        let mut senders = Senders::default();
        let now = 1_000_000;
        let times = [now - TOLERANCE, now + TOLERANCE];
        for (number, time) in times.into_iter().enumerate() {
            let stamp = stamp("a", number as u64, time);
            assert_eq!(senders.admit(stamp, now, TOLERANCE), Ok(()));
        }
        for time in [0, now - TOLERANCE - 1, now + TOLERANCE + 1, u64::MAX] {
            let refused = senders.admit(stamp("a", 9, time), now, TOLERANCE);
            assert_eq!(refused, Err(Rejection::Stale), "{time}");
        }
        assert_eq!(senders.windows.len(), 1);
    }

    #[test]
    fn senders_are_limited_and_what_was_forgotten_is_not_accepted_again() {
        let mut senders = Senders::default();
        let all = MAX_SENDERS as u64 + 10;
        for number in 0..all {
            let name = number.to_string();
            let now = 1_000_000 + number;
            let stamp = stamp(&name, 0, now);
            assert_eq!(senders.admit(stamp, now, TOLERANCE), Ok(()));
            assert!(senders.windows.len() <= MAX_SENDERS);
        }
        for number in 0..10 {
            let name = number.to_string();
            let replayed = stamp(&name, 0, 1_000_000 + number);
            let refused = senders.admit(replayed, 1_000_000 + all, TOLERANCE);
            assert_eq!(refused, Err(Rejection::Stale), "{number}");
        }
        // Later all of them are stale, and make room without harm to others.
        let later = 2_000_000;
        assert_eq!(
            senders.admit(stamp("0", 1, later), later, TOLERANCE),
            Ok(())
        );
        assert_eq!(senders.windows.len(), 1);
    }

    #[test]
    fn a_process_that_emits_once_costs_little() {
        let mut senders = Senders::default();
        senders.admit(stamp("a", 0, 1), 1, TOLERANCE).unwrap();
        assert_eq!(senders.windows["a"].bits.len(), 1);
        senders
            .admit(stamp("a", u64::MAX, 1), 1, TOLERANCE)
            .unwrap();
        assert_eq!(senders.windows["a"].size(), MAX_BITS);
    }

    proptest! {
        #[test]
        fn a_window_agrees_with_a_set_of_all_numbers(
            steps in proptest::collection::vec((0..3 * MAX_BITS, 0_u8..4), 1..80)
        ) {
            let mut window = Window::new();
            let (mut seen, mut highest) = (BTreeSet::new(), 0_u64);
            for (number, step) in steps {
                let number = match step {
                    0 => number,
                    1 => highest.saturating_sub(number % 200),
                    2 => highest + number % 100,
                    _ => number % 1_000,
                };
                highest = highest.max(number);
                // Small numbers are known exactly until the window is at its limit.
                let is_new = highest - number < MAX_BITS && seen.insert(number);
                let noted = window.note(stamp("a", number, 0));
                prop_assert_eq!(noted.is_ok(), is_new, "{}", number);
            }
        }
    }
}
