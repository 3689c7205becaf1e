//! Coming and going beside Node.js servers, which count who hears a question, then ask, and take as
//! many answers as they counted, whosever they are.
//!
//! A node that has come in between must not be first with an answer, or another one's is not waited
//! for any more; a node that goes in between must answer all the same, or the question fails. Both
//! are served by answering late: whoever has not counted this node has its answers by then.

use std::time::Duration;

use parking_lot::Mutex;
use roomcast_protocol::question::Question;
use tokio::time::Instant;

use super::namespaces::Attached;

/// How long an official server may take from counting to asking, with a margin: so long, a node that
/// goes still hears, and one that has come keeps its answers back, so that of two that have come the
/// older one answers first.
pub(super) const COUNTING: Duration = Duration::from_millis(300);

/// How late a node answers that goes. Others have answered by then, and who asks waits for seconds.
const LATE: Duration = Duration::from_millis(100);

/// Since when the node is counted, and whether it still is.
pub(super) struct Turnover {
    up_since: Mutex<Instant>,
    going: Mutex<Going>,
}

enum Going {
    /// Heard once, and counted.
    Not,
    /// What is asked arrives twice, through the channel and through a pattern that nobody counts.
    /// The copies come one after the other: this is the first of two.
    Twice(Option<Box<[u8]>>),
    /// Through the pattern alone: not counted any more.
    Uncounted,
}

impl Turnover {
    pub(super) fn new() -> Self {
        Self {
            up_since: Mutex::new(Instant::now()),
            going: Mutex::new(Going::Not),
        }
    }

    /// The subscriptions are there, for the first time or again.
    pub(super) fn is_up(&self) {
        *self.up_since.lock() = Instant::now();
    }

    /// From now on, what is asked may arrive twice.
    pub(super) fn begin(&self) {
        *self.going.lock() = Going::Twice(None);
    }

    /// The channels have been left.
    pub(super) fn left(&self) {
        *self.going.lock() = Going::Uncounted;
    }

    /// Whether this has been heard already.
    pub(super) fn is_second_copy(&self, payload: &[u8]) -> bool {
        let mut going = self.going.lock();
        let Going::Twice(first) = &mut *going else {
            return false;
        };
        if first.take().is_some_and(|first| *first == *payload) {
            return true;
        }
        *first = Some(payload.into());
        false
    }

    /// Whether a question of an official server is not to be answered: it asks first and counts
    /// then, and cannot have counted this node.
    pub(super) fn is_none_of_ours(&self, question: &Question) -> bool {
        matches!(question, Question::Acks { .. }) && matches!(*self.going.lock(), Going::Uncounted)
    }

    /// How much later than it could an official server is to be answered, which may take the answer
    /// for another one's.
    pub(super) fn delay(&self, attached: &Attached) -> Duration {
        if !matches!(*self.going.lock(), Going::Not) {
            return LATE;
        }
        let age = attached.since.elapsed().min(self.up_since.lock().elapsed());
        COUNTING.saturating_sub(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_second_copy_is_known_while_there_are_two() {
        let turnover = Turnover::new();
        assert!(!turnover.is_second_copy(b"a"));
        assert!(!turnover.is_second_copy(b"a"), "asked twice");
        turnover.begin();
        for payload in [b"a", b"a", b"b"] {
            assert!(!turnover.is_second_copy(payload));
            assert!(turnover.is_second_copy(payload));
        }
        // The pattern was there in time for the second only.
        assert!(!turnover.is_second_copy(b"c"));
        assert!(!turnover.is_second_copy(b"d"));
        assert!(turnover.is_second_copy(b"d"));
        turnover.left();
        assert!(!turnover.is_second_copy(b"d"));
        assert!(!turnover.is_second_copy(b"d"), "asked twice");
    }
}
