//! The account of every message: nothing lost, doubled, out of order or changed.
//!
//! A stream is what one receiver gets from one sender, numbered from zero without gaps. The
//! ledger counts exactly, whatever arrives in which order; it judges nothing but numbers.

use std::collections::HashMap;

/// What went wrong, counted per message and receiver, and what arrived at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) arrived: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) out_of_order: u64,
    pub(crate) corrupted: u64,
}

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        Self {
            arrived: self.arrived,
            ..Self::default()
        } == *self
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.corrupted += other.corrupted;
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    /// Per stream, the number that is expected next.
    next: Vec<u32>,
    /// Numbers that were overtaken and have not arrived yet. Empty in a clean run.
    overtaken: HashMap<usize, Vec<u32>>,
    tally: Tally,
}

impl Ledger {
    pub(crate) fn new(streams: usize) -> Self {
        Self {
            next: vec![0; streams],
            ..Self::default()
        }
    }

    /// Enters the arrival of a message; says whether it was a new one.
    pub(crate) fn arrived(&mut self, stream: usize, sequence: u32) -> bool {
        let next = &mut self.next[stream];
        if sequence == *next {
            *next += 1;
            self.tally.arrived += 1;
            return true;
        }
        self.arrived_unexpectedly(stream, sequence)
    }

    /// Enters a message that is not what anybody sent to its receiver.
    pub(crate) fn corrupted(&mut self) {
        self.tally.corrupted += 1;
    }

    pub(crate) fn arrivals(&self) -> u64 {
        self.tally.arrived
    }

    /// Closes the account: `sent` says how many messages each stream should have carried.
    pub(crate) fn close(mut self, sent: impl Fn(usize) -> u32) -> Tally {
        for (stream, next) in self.next.iter().enumerate() {
            self.tally.lost += u64::from(sent(stream).saturating_sub(*next));
        }
        self.tally.lost += self
            .overtaken
            .values()
            .map(|late| late.len() as u64)
            .sum::<u64>();
        self.tally
    }

    #[cold]
    fn arrived_unexpectedly(&mut self, stream: usize, sequence: u32) -> bool {
        let next = self.next[stream];
        if sequence > next.saturating_add(WIDEST_GAP) {
            self.tally.corrupted += 1;
            return false;
        }
        let late = self.overtaken.entry(stream).or_default();
        if sequence > next {
            late.extend(next..sequence);
            self.next[stream] = sequence + 1;
        } else if let Some(at) = late.iter().position(|number| *number == sequence) {
            late.swap_remove(at);
            self.tally.out_of_order += 1;
        } else {
            self.tally.duplicated += 1;
            return false;
        }
        self.tally.arrived += 1;
        true
    }
}

/// Far more than any scenario has under way: a number beyond it was never sent.
const WIDEST_GAP: u32 = 1 << 20;
