//! Accounts for every message: lost, duplicated, reordered, corrupted or astray.
//!
//! A stream carries the messages of one sender to one receiver, numbered from zero without gaps.
//! The receiver's membership decides which of them are owed:
//!
//! ```text
//! Closed ─ join sent ─> Fresh ─ first arrival ─> Open ─ leave sent ─> Leaving ─ confirmed ─> Closed
//!          (may arrive; owed once confirmed)     owed                (may arrive)
//!                         └─ leave sent ─> Untouched ─ first arrival ─┘
//! ```
//!
//! The confirmation of a join or of a message can be read before an earlier message to another
//! client is. Therefore a message that is owed no more may still come first, also after the leave.
//!
//! In-order arrivals only advance a counter, so a clean run keeps no list of messages. That makes an
//! exact account of millions of deliveries per second affordable.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Counts per message and receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Arrived, whether owed or allowed; each counted once.
    pub(crate) arrived: u64,
    /// Owed, but did not arrive before the end of the run.
    pub(crate) lost: u64,
    /// Arrived more than once.
    pub(crate) duplicated: u64,
    /// Arrived after a later message of the same sender.
    pub(crate) reordered: u64,
    /// Differs from every message that was sent.
    pub(crate) corrupted: u64,
    /// Arrived at a client that is not a member of the room.
    pub(crate) stray: u64,
    /// Sent while the receiver was disconnected. Not a fault, because servers without recovery do
    /// not owe them.
    pub(crate) missed_away: u64,
}

impl Tally {
    /// Whether there are no faults.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.corrupted + self.stray == 0
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.stray += other.stray;
        self.missed_away += other.missed_away;
    }
}

/// How an arrival counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The first with this number, in order or not.
    New,
    Duplicate,
    Stray,
}

pub(crate) struct Ledger {
    streams: Vec<Stream>,
    /// Per stream, the ranges of numbers that were overtaken and have not arrived, in order. Empty
    /// in a clean run.
    gaps: HashMap<usize, Vec<(u32, u32)>>,
    gap_count: usize,
    /// Per interrupted stream, the number that was expected next.
    cuts: HashMap<usize, u32>,
    shape: Shape,
    /// Per sender, ranges of numbers that the server may or may not have received.
    doubtful: Vec<Vec<(u32, u32)>>,
    tally: Tally,
}

/// Rooms of equal size, each with the same number of senders, which send to all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rooms: usize,
    pub(crate) members: usize,
    pub(crate) senders: usize,
}

impl Shape {
    /// The stream from a sender to a receiver; `None` if they are in different rooms.
    pub(crate) fn stream(self, receiver: usize, sender: usize) -> Option<usize> {
        let in_room = sender / self.senders == receiver / self.members;
        in_room.then(|| receiver * self.senders + sender % self.senders)
    }

    /// The streams of a receiver.
    pub(crate) fn streams(self, receiver: usize) -> std::ops::Range<usize> {
        receiver * self.senders..(receiver + 1) * self.senders
    }

    /// The sender of a stream.
    pub(crate) fn sender(self, stream: usize) -> usize {
        stream / (self.senders * self.members) * self.senders + stream % self.senders
    }
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The number that is expected next; before the first arrival, the lowest that is allowed.
    next: u32,
    /// Before the first arrival, numbers from here on are owed; while leaving, numbers below it.
    mark: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// The join is pending or confirmed, and nothing has arrived yet.
    Fresh,
    Open,
    /// The leave is pending.
    Leaving,
    /// The leave is pending, nothing has arrived yet, and numbers from this one on are owed.
    Untouched(u32),
}

impl Ledger {
    /// Creates a ledger with all streams closed.
    pub(crate) fn new(shape: Shape) -> Self {
        let closed = Stream {
            next: 0,
            mark: u32::MAX,
            state: State::Closed,
        };
        Self {
            streams: vec![closed; shape.rooms * shape.members * shape.senders],
            gaps: HashMap::new(),
            gap_count: 0,
            cuts: HashMap::new(),
            shape,
            doubtful: vec![Vec::new(); shape.rooms * shape.senders],
            tally: Tally::default(),
        }
    }

    /// A join has been sent: messages may arrive.
    pub(crate) fn open(&mut self, stream: usize) {
        let stream = &mut self.streams[stream];
        stream.mark = u32::MAX;
        stream.state = State::Fresh;
    }

    /// The join has been confirmed: numbers from `from` on are owed.
    pub(crate) fn owe(&mut self, stream: usize, from: u32) {
        let stream = &mut self.streams[stream];
        if stream.state == State::Fresh {
            stream.mark = from;
        }
    }

    /// A leave has been sent: numbers from `to` on may arrive or not.
    pub(crate) fn leave(&mut self, stream: usize, to: u32) {
        let one = &mut self.streams[stream];
        one.state = match one.state {
            // Before the first arrival, nothing below the mark is owed.
            State::Fresh => State::Untouched(one.next.max(one.mark.min(to))),
            _ => State::Leaving,
        };
        one.mark = to;
    }

    /// The leave has been confirmed: nothing may arrive any more.
    pub(crate) fn left(&mut self, stream: usize) {
        let Stream { next, mark, state } = self.streams[stream];
        let owed_from = match state {
            State::Untouched(owed_from) => owed_from,
            _ => next,
        };
        let mut lost = self.lost(stream, owed_from, mark);
        for (from, to) in self.take_gaps(stream) {
            lost += self.lost(stream, from, to.min(mark));
        }
        self.tally.lost += lost;
        self.streams[stream].state = State::Closed;
    }

    /// The receiver has been disconnected: overtaken messages are lost, later ones were not owed.
    pub(crate) fn cut(&mut self, stream: usize) {
        let Stream { next, mark, state } = self.streams[stream];
        let mut lost = 0;
        for (from, to) in self.take_gaps(stream) {
            lost += self.lost(stream, from, to);
        }
        self.tally.lost += lost;
        self.streams[stream].state = State::Closed;
        let expected = match state {
            State::Open => next,
            State::Fresh if mark != u32::MAX => mark,
            _ => return,
        };
        // Disconnected again before anything arrived: away since the first time.
        self.cuts.entry(stream).or_insert(expected);
    }

    /// The receiver has stopped reading: nothing is owed to it.
    pub(crate) fn forget(&mut self, stream: usize) {
        self.cut(stream);
        self.cuts.remove(&stream);
    }

    /// A sender has been disconnected: the server may or may not have received these messages.
    pub(crate) fn doubt(&mut self, sender: usize, from: u32, to: u32) {
        if from < to {
            self.doubtful[sender].push((from, to));
        }
    }

    /// Records the arrival of a message.
    pub(crate) fn arrived(&mut self, stream: usize, sequence: u32) -> Arrival {
        let one = &mut self.streams[stream];
        if one.state == State::Open && sequence == one.next {
            one.next += 1;
            self.tally.arrived += 1;
            return Arrival::New;
        }
        self.arrived_otherwise(stream, sequence)
    }

    /// Records a message that differs from every message that was sent.
    pub(crate) fn corrupted(&mut self) {
        self.tally.corrupted += 1;
    }

    /// Records a message that its receiver should not get.
    pub(crate) fn strayed(&mut self) {
        self.tally.stray += 1;
    }

    /// Number of messages that have arrived so far.
    pub(crate) fn arrivals(&self) -> u64 {
        self.tally.arrived
    }

    /// Closes the ledger. `sent` returns the number of messages of a sender.
    pub(crate) fn close(mut self, sent: impl Fn(usize) -> u32) -> Tally {
        for at in 0..self.streams.len() {
            let Stream { next, mark, state } = self.streams[at];
            let sent = sent(self.shape.sender(at));
            let (from, to) = match state {
                State::Open => (next, sent),
                State::Leaving => (next, mark),
                State::Untouched(owed_from) => (owed_from, mark),
                // Nothing is owed without a confirmed join.
                State::Fresh => (mark.min(sent), sent),
                State::Closed => (sent, sent),
            };
            self.tally.lost += self.lost(at, from, to);
            if let Some(cut) = self.cuts.remove(&at) {
                self.tally.missed_away += u64::from(from.saturating_sub(cut));
            }
            for (from, to) in self.take_gaps(at) {
                self.tally.lost += self.lost(at, from, to);
            }
        }
        self.tally
    }

    /// Counts the missing numbers of a range that the server must have received.
    fn lost(&self, stream: usize, from: u32, to: u32) -> u64 {
        let doubtful = &self.doubtful[self.shape.sender(stream)];
        let overlap = doubtful
            .iter()
            .map(|(least, end)| u64::from(to.min(*end).saturating_sub(from.max(*least))));
        u64::from(to.saturating_sub(from)) - overlap.sum::<u64>()
    }

    fn arrived_otherwise(&mut self, at: usize, sequence: u32) -> Arrival {
        let stream = self.streams[at];
        match stream.state {
            State::Closed => {
                self.tally.stray += 1;
                return Arrival::Stray;
            }
            State::Fresh | State::Untouched(_) if sequence < stream.next => {
                self.tally.duplicated += 1;
                return Arrival::Duplicate;
            }
            State::Untouched(owed_from) => {
                self.add_gap(at, owed_from.min(sequence), sequence);
                self.streams[at].next = sequence + 1;
                self.streams[at].state = State::Leaving;
            }
            State::Fresh => {
                if let Some(cut) = self.cuts.remove(&at) {
                    let back = stream.mark.min(sequence);
                    self.tally.missed_away += u64::from(back.saturating_sub(cut));
                }
                self.add_gap(at, stream.mark.min(sequence), sequence);
                self.streams[at] = Stream {
                    next: sequence + 1,
                    mark: u32::MAX,
                    state: State::Open,
                };
            }
            State::Open | State::Leaving if sequence >= stream.next => {
                self.add_gap(at, stream.next, sequence);
                self.streams[at].next = sequence + 1;
            }
            State::Open | State::Leaving if self.fill_gap(at, sequence) => {
                self.tally.reordered += 1;
            }
            State::Open | State::Leaving => {
                self.tally.duplicated += 1;
                return Arrival::Duplicate;
            }
        }
        self.tally.arrived += 1;
        Arrival::New
    }

    fn add_gap(&mut self, stream: usize, from: u32, to: u32) {
        if from == to {
            return;
        }
        if self.gap_count == MOST_GAPS {
            self.tally.lost += self.lost(stream, from, to);
            return;
        }
        self.gap_count += 1;
        self.gaps.entry(stream).or_default().push((from, to));
    }

    /// Removes a number from the gaps of a stream. Returns whether it was missing.
    fn fill_gap(&mut self, stream: usize, sequence: u32) -> bool {
        let Some(gaps) = self.gaps.get_mut(&stream) else {
            return false;
        };
        let at = gaps.partition_point(|(_, to)| *to <= sequence);
        let Some((from, to)) = gaps.get(at).copied().filter(|(from, _)| *from <= sequence) else {
            return false;
        };
        match (from == sequence, to == sequence + 1) {
            (true, true) => {
                gaps.remove(at);
                self.gap_count -= 1;
            }
            (true, false) => gaps[at].0 += 1,
            (false, true) => gaps[at].1 -= 1,
            (false, false) => {
                gaps[at].1 = sequence;
                gaps.insert(at + 1, (sequence + 1, to));
                self.gap_count += 1;
            }
        }
        true
    }

    fn take_gaps(&mut self, stream: usize) -> impl Iterator<Item = (u32, u32)> + use<> {
        let gaps = self.gaps.remove(&stream).unwrap_or_default();
        self.gap_count -= gaps.len();
        gaps.into_iter()
    }
}

/// Maximum number of gaps in all streams. Further missing messages count as lost at once.
const MOST_GAPS: usize = 4_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// One stream that owes from number 0 on.
    fn joined() -> Ledger {
        let mut ledger = Ledger::new(ONE);
        ledger.open(0);
        ledger.owe(0, 0);
        ledger
    }

    /// One receiver and one sender.
    const ONE: Shape = Shape {
        rooms: 1,
        members: 1,
        senders: 1,
    };

    /// One stream of a member that joined after the first four messages were sent.
    fn joining() -> Ledger {
        let mut ledger = Ledger::new(ONE);
        ledger.streams[0].next = 4;
        ledger.open(0);
        ledger
    }

    fn enter(ledger: &mut Ledger, sequences: &[u32]) {
        for sequence in sequences {
            ledger.arrived(0, *sequence);
        }
    }

    #[test]
    fn each_fault_is_counted_once() {
        for (arrivals, sent, expected) in [
            (&[0, 1, 2][..], 3, (3, 0, 0, 0)),
            (&[0, 2], 3, (2, 1, 0, 0)),
            (&[2], 3, (1, 2, 0, 0)),
            (&[0, 1], 3, (2, 1, 0, 0)),
            (&[], 3, (0, 3, 0, 0)),
            (&[0, 0, 1, 1, 1], 2, (2, 0, 3, 0)),
            (&[1, 0], 2, (2, 0, 0, 1)),
            (&[3, 0, 1, 2], 4, (4, 0, 0, 3)),
            (&[3, 1, 1], 4, (2, 2, 1, 1)),
            (&[5, 2, 3, 2, 6, 9], 10, (5, 5, 1, 2)),
        ] {
            let mut ledger = joined();
            enter(&mut ledger, arrivals);
            let tally = ledger.close(|_| sent);
            let found = (tally.arrived, tally.lost, tally.duplicated, tally.reordered);
            assert_eq!(found, expected, "{arrivals:?} of {sent}");
            assert_eq!(tally.is_clean(), expected == (u64::from(sent), 0, 0, 0));
        }
    }

    #[test]
    fn arrivals_in_any_order_balance() {
        // The sum of arrived and lost messages is the number of sent ones, in any order of arrival.
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let mut ledger = joined();
            let arrivals: Vec<u32> = (0..40).map(|_| random.u32(..30)).collect();
            enter(&mut ledger, &arrivals);
            let mut distinct = arrivals.clone();
            distinct.sort_unstable();
            distinct.dedup();
            let tally = ledger.close(|_| 30);
            assert_eq!(tally.arrived, distinct.len() as u64);
            assert_eq!(tally.lost, 30 - distinct.len() as u64);
            assert_eq!(tally.duplicated, (arrivals.len() - distinct.len()) as u64);
            let late = |at: usize| {
                let (before, after) = arrivals.split_at(at);
                !before.contains(&after[0]) && before.iter().any(|number| *number > after[0])
            };
            let reordered = (0..arrivals.len()).filter(|at| late(*at)).count();
            assert_eq!(tally.reordered, reordered as u64);
        }
    }

    #[test]
    fn what_is_sent_while_a_join_is_under_way_may_come_or_not() {
        for first in [4, 5, 6] {
            let mut ledger = joining();
            ledger.owe(0, 6);
            let all: Vec<u32> = (first..8).collect();
            enter(&mut ledger, &all);
            assert!(ledger.close(|_| 8).is_clean());
        }
        let mut ledger = joining();
        ledger.owe(0, 6);
        enter(&mut ledger, &[7]);
        assert_eq!(ledger.close(|_| 8).lost, 1);
        let mut ledger = joining();
        enter(&mut ledger, &[3]);
        assert_eq!(ledger.close(|_| 8).duplicated, 1);
    }

    #[test]
    fn what_is_sent_while_a_leave_is_under_way_may_come_or_not() {
        for (arrivals, lost) in [
            (&[0, 1, 2, 3][..], 0),
            (&[0, 1, 2], 0),
            (&[0, 1, 2, 3, 4], 0),
            (&[0, 1], 1),
            (&[0, 2, 4], 1),
            (&[0, 1, 2, 4], 0),
        ] {
            let mut ledger = joined();
            enter(&mut ledger, &arrivals[..1]);
            ledger.leave(0, 3);
            enter(&mut ledger, &arrivals[1..]);
            ledger.left(0);
            assert_eq!(ledger.close(|_| 10).lost, lost, "{arrivals:?}");
        }
        let mut ledger = joined();
        ledger.leave(0, 0);
        ledger.left(0);
        enter(&mut ledger, &[0]);
        assert_eq!(ledger.close(|_| 1).stray, 1);
    }

    #[test]
    fn a_member_that_got_nothing_before_it_left_lost_what_it_was_owed() {
        let mut ledger = joining();
        ledger.owe(0, 5);
        ledger.leave(0, 7);
        ledger.left(0);
        assert_eq!(ledger.close(|_| 9).lost, 2);
    }

    #[test]
    fn a_message_from_before_the_confirmation_may_come_first_after_a_leave() {
        for (arrivals, lost, duplicated) in [
            (&[4, 5, 6][..], 0, 0),
            (&[4], 2, 0),
            (&[5, 6], 0, 0),
            (&[6], 1, 0),
            (&[4, 4, 5, 6], 0, 1),
            (&[3, 5, 6], 0, 1),
        ] {
            let mut ledger = joining();
            ledger.owe(0, 5);
            ledger.leave(0, 7);
            enter(&mut ledger, arrivals);
            ledger.left(0);
            let tally = ledger.close(|_| 9);
            assert_eq!(
                (tally.lost, tally.duplicated),
                (lost, duplicated),
                "{arrivals:?}"
            );
        }
    }

    #[test]
    fn a_cut_connection_is_owed_nothing_but_what_was_overtaken() {
        let mut ledger = joined();
        enter(&mut ledger, &[0, 2]);
        ledger.cut(0);
        let tally = ledger.close(|_| 10);
        assert_eq!((tally.lost, tally.missed_away, tally.arrived), (1, 7, 2));
    }

    #[test]
    fn a_receiver_that_reads_no_more_is_owed_nothing_and_misses_nothing() {
        let mut ledger = joined();
        enter(&mut ledger, &[0, 1]);
        ledger.forget(0);
        let tally = ledger.close(|_| 10);
        assert_eq!((tally.is_clean(), tally.missed_away), (true, 0));
    }

    #[test]
    fn what_was_sent_while_a_receiver_was_away_is_counted_apart() {
        for (first, missed) in [(5, 3), (6, 4), (7, 5)] {
            let mut ledger = joined();
            enter(&mut ledger, &[0, 1]);
            ledger.cut(0);
            ledger.open(0);
            // Away again before it was back.
            ledger.cut(0);
            ledger.open(0);
            ledger.owe(0, 7);
            let rest: Vec<u32> = (first..9).collect();
            enter(&mut ledger, &rest);
            let tally = ledger.close(|_| 9);
            assert!(tally.is_clean(), "{tally:?}");
            assert_eq!(tally.missed_away, missed);
        }
        let mut silent = joined();
        silent.cut(0);
        silent.open(0);
        silent.owe(0, 2);
        let tally = silent.close(|_| 5);
        assert_eq!((tally.missed_away, tally.lost), (2, 3));
    }

    #[test]
    fn messages_that_the_server_may_not_have_got_are_not_lost() {
        let mut ledger = joined();
        ledger.doubt(0, 2, 5);
        enter(&mut ledger, &[0, 3, 6]);
        let tally = ledger.close(|_| 8);
        // 1, 5 and 7 are; 2 and 4 are doubtful.
        assert_eq!((tally.lost, tally.arrived), (3, 3));
    }

    #[test]
    fn receivers_hear_the_senders_of_their_own_room() {
        let shape = Shape {
            rooms: 3,
            members: 4,
            senders: 2,
        };
        assert_eq!(shape.stream(3, 2), None);
        for receiver in 0..12 {
            for sender in [receiver / 4 * 2, receiver / 4 * 2 + 1] {
                let stream = shape.stream(receiver, sender).unwrap();
                assert!(shape.streams(receiver).contains(&stream));
                assert_eq!(shape.sender(stream), sender);
            }
        }
    }
}
