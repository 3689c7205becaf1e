//! Which requests of a node were received before.
//!
//! Each node numbers the requests that it signs. Of every sender, the receiver keeps the
//! highest number and a bit for each of those just below, because requests on several
//! connections overtake each other. A number below them is refused as if it had been
//! received.
//!
//! ```text
//!   refused │ 1 0 1 1 0 1 … 1 │ new, moves the window
//!           └ highest − SIZE   └ highest
//! ```

use std::{collections::HashMap, time::Duration};

/// Numbers below the highest that can still arrive. One bit each: 8 KiB per sender.
const SIZE: u64 = 1 << 16;

/// The senders whose requests were received.
#[derive(Default)]
pub(super) struct Senders(HashMap<Box<str>, Window>);

struct Window {
    highest: u64,
    bits: Box<[u64]>,
    /// When the last request came.
    last: Duration,
}

impl Senders {
    /// Notes a request. Returns false if it was received before, or is too old to know.
    /// `keep` is how long requests are valid after they were signed; senders that were silent for
    /// longer are removed.
    pub(super) fn note(
        &mut self,
        sender: &str,
        number: u64,
        now: Duration,
        keep: Duration,
    ) -> bool {
        if !self.0.contains_key(sender) {
            self.0.retain(|_, window| window.last + keep >= now);
            self.0.insert(sender.into(), Window::new());
        }
        let Some(window) = self.0.get_mut(sender) else {
            return false;
        };
        window.last = window.last.max(now);
        window.note(number)
    }
}

impl Window {
    fn new() -> Self {
        let words = usize::try_from(SIZE / 64).unwrap_or(usize::MAX);
        Self {
            highest: 0,
            bits: vec![0; words].into(),
            last: Duration::ZERO,
        }
    }

    fn note(&mut self, number: u64) -> bool {
        if number > self.highest {
            let passed = (number - self.highest).min(SIZE);
            for skipped in 0..passed {
                *self.word(number - skipped) &= !bit(number - skipped);
            }
            self.highest = number;
        } else if self.highest - number >= SIZE {
            return false;
        }
        let word = self.word(number);
        let is_new = *word & bit(number) == 0;
        *word |= bit(number);
        is_new
    }

    fn word(&mut self, number: u64) -> &mut u64 {
        let index = usize::try_from(number % SIZE / 64).unwrap_or_default();
        &mut self.bits[index]
    }
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    #[test]
    fn a_request_is_accepted_once_and_in_any_order() {
        let mut senders = Senders::default();
        let mut note = |sender, number| senders.note(sender, number, Duration::ZERO, KEEP);
        assert!(note("a", 3) && note("a", 1) && note("b", 3) && note("a", 2));
        assert!(!note("a", 1) && !note("a", 2) && !note("a", 3) && !note("b", 3));
        assert!(note("a", SIZE + 3));
        assert!(!note("a", 3), "it is below the window");
        assert!(note("a", 4));
    }

    #[test]
    fn a_sender_that_was_silent_for_long_is_forgotten() {
        let mut senders = Senders::default();
        assert!(senders.note("a", 1, Duration::from_secs(1), KEEP));
        assert!(senders.note("b", 1, Duration::from_secs(50), KEEP));
        assert!(senders.note("c", 1, Duration::from_secs(100), KEEP));
        let mut names: Vec<_> = senders.0.keys().map(|name| &**name).collect();
        names.sort_unstable();
        assert_eq!(names, ["b", "c"]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_all_numbers(
            steps in proptest::collection::vec((0_u64..3 * SIZE, prop::bool::ANY), 1..60)
        ) {
            let mut window = Window::new();
            let (mut seen, mut highest) = (BTreeSet::new(), 0_u64);
            for (number, is_close) in steps {
                let number = if is_close { highest.saturating_sub(number % 200) } else { number };
                let is_known = highest.saturating_sub(number) >= SIZE || seen.contains(&number);
                prop_assert_eq!(window.note(number), !is_known, "{}", number);
                seen.insert(number);
                highest = highest.max(number);
            }
        }
    }
}
