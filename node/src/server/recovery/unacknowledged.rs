//! The events that one client has to acknowledge, and their part in its session.
//!
//! ```text
//!                 sent              acknowledged: removed, and all before it has been received
//! journal ────────▶ pending ────────▶
//!                      │ too many, too large: the oldest are given up
//!                      ▼
//! session: pending ids, and the place up to which they are complete
//! ```
//!
//! The session is written with a delay, so it may be outdated. Then its place is too early and its
//! pending ids have some that were acknowledged since: the client receives duplicates, and loses
//! nothing.
//!
//! Places are compared by their ids, because the clock of Redis may go backwards. A journal that
//! was lost and begins again is noticed by its chain, which is read without a gap or not at all.
//!
//! The id of an acknowledgement follows from the place in the journal, because a client may acknowledge an event after it
//! has come back to another node. It has 31 bits, because clients in Java and C++ read it as an `int`.

use std::collections::{HashSet, VecDeque};

use roomcast_adapter::Position;
use serde::{Deserialize, Serialize};

use crate::server::journal::Offset;

/// Set in the ids of these acknowledgements, and in no other id.
const MARK: u64 = 1 << 30;

/// The events that a client has been sent and has not acknowledged, in the order of the journal.
#[derive(Default)]
pub(super) struct Unacknowledged {
    pending: VecDeque<Pending>,
    bytes: usize,
    /// The last event that the client has acknowledged. It has received everything before it, because a connection
    /// keeps the order.
    received: Option<Offset>,
}

struct Pending {
    position: Position,
    bytes: usize,
}

/// The most that one client may have to acknowledge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// The part that the session keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    /// Of the events up to this place, exactly the pending ones are not acknowledged.
    upto: Offset,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    received: Option<Offset>,
    /// The broadcast before the first pending one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<u64>,
    #[serde(default, skip_serializing_if = "HashSet::is_empty")]
    pending: HashSet<u64>,
}

/// The id under which a client acknowledges the event at a place. Places that differ by less than 2^29 have different
/// ids. The bits above matter for streams, whose places are times: otherwise those of two events of which one is emitted
/// a multiple of 262 s later would be the same.
pub(in crate::server) fn ack_id(position: u64) -> u64 {
    MARK | (position ^ position >> 30) & (MARK - 1)
}

/// Whether this is the id of such an acknowledgement.
pub(in crate::server) fn is_ack_id(id: u64) -> bool {
    id >> 30 == 1
}

impl Unacknowledged {
    /// The state of a client that comes back.
    pub(super) fn of(account: Option<&Account>) -> Self {
        Self {
            received: account.and_then(|account| account.received),
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// An event is sent. Returns the number of older ones that are given up for it: beyond the bounds, and those of a
    /// journal that was lost.
    pub(super) fn sent(&mut self, position: Position, bytes: usize, bounds: Bounds) -> usize {
        let before = self.pending.len();
        let is_new = |last: &Pending| position.id > last.position.id;
        if !self.pending.back().is_none_or(is_new) {
            self.pending.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.pending.push_back(Pending { position, bytes });
        while self.pending.len() > 1
            && (self.pending.len() > bounds.events || self.bytes > bounds.bytes)
        {
            self.remove(0);
        }
        before + 1 - self.pending.len()
    }

    /// The client has acknowledged an event. Returns `false` if it was not pending.
    pub(super) fn acknowledged(&mut self, id: u64) -> bool {
        let is_it = |pending: &Pending| ack_id(pending.position.id) == id;
        let Some(at) = self.pending.iter().position(is_it) else {
            return false;
        };
        let Some(place) = self.remove(at) else {
            return false;
        };
        if self.received.is_none_or(|last| place.id > last.id) {
            self.received = Some(place);
        }
        true
    }

    fn remove(&mut self, at: usize) -> Option<Offset> {
        let Pending { position, bytes } = self.pending.remove(at)?;
        self.bytes -= bytes;
        Some(position.into())
    }

    /// The part that the session keeps. Everything up to `upto` has been sent.
    pub(super) fn account(&self, upto: Offset) -> Account {
        let pending = self.pending.iter().map(|pending| pending.position.id);
        let first = self.pending.front();
        Account {
            upto,
            received: self.received,
            before: first.and_then(|pending| pending.position.after),
            pending: pending.collect(),
        }
    }
}

impl Account {
    /// The number of events that were pending.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The place up to which the client has received, if that is later than the client's own
    /// offset.
    pub(super) fn received(&self, offset: Offset) -> Offset {
        self.received
            .filter(|received| received.id > offset.id)
            .unwrap_or(offset)
    }

    /// The place after which the journal must be complete for a client that has received up to `from`.
    pub(super) fn start(&self, from: Offset) -> Offset {
        let start = match self.before {
            Some(id) if !self.pending.is_empty() => Offset { id, time: 0 },
            _ => self.upto,
        };
        if from.id > start.id { start } else { from }
    }

    /// Whether an event is certain to have been sent, and is not acknowledged.
    pub(super) fn is_pending(&self, id: u64) -> bool {
        self.pending.contains(&id)
    }

    /// Whether an event is later than all that are known.
    pub(super) fn is_unknown(&self, id: u64) -> bool {
        id > self.upto.id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        events: 4,
        bytes: 100,
    };

    /// The clock of Redis may go backwards.
    fn position(id: u64) -> Position {
        Position {
            id,
            time: 1_000_000 - id,
            after: Some(id - 1),
        }
    }

    fn place(id: u64) -> Offset {
        position(id).into()
    }

    #[test]
    fn the_oldest_are_given_up_beyond_the_bounds_but_not_the_last() {
        let mut events = Unacknowledged::default();
        for id in 1..=4 {
            assert_eq!(events.sent(position(id), 10, BOUNDS), 0);
        }
        assert_eq!(events.sent(position(5), 10, BOUNDS), 1);
        assert_eq!(events.sent(position(6), 75, BOUNDS), 2);
        assert_eq!(events.sent(position(7), 1000, BOUNDS), 3);
        assert_eq!(events.len(), 1);
        assert!(!events.acknowledged(ack_id(6)));
        assert!(events.acknowledged(ack_id(7)));
        assert_eq!(events.bytes, 0);
    }

    #[test]
    fn a_journal_that_begins_again_gives_up_what_is_pending() {
        let mut events = Unacknowledged::default();
        events.sent(position(8), 1, BOUNDS);
        events.sent(position(9), 1, BOUNDS);
        assert_eq!(events.sent(position(2), 1, BOUNDS), 2);
        assert!(events.account(place(2)).is_pending(2));
    }

    #[test]
    fn ids_of_acknowledgements_fit_an_int_and_differ_between_neighbours() {
        let streams = (1_795_158_936_777_u64 << 12, 1_795_159_198_921_u64 << 12);
        assert_ne!(ack_id(streams.0), ack_id(streams.1));
        for id in [0, MARK - 1, MARK, 1_700_000_000, (1 << 53) - 1, streams.0] {
            assert!(is_ack_id(ack_id(id)));
            assert!(i32::try_from(ack_id(id)).is_ok());
            assert_ne!(ack_id(id), ack_id(id + 1));
        }
        assert!(!is_ack_id(MARK - 1) && !is_ack_id(2 * MARK));
    }

    proptest! {
        /// With any acknowledgements and any age of the session: after a recovery the client is sent every event
        /// that it has not acknowledged.
        #[test]
        fn a_session_of_any_age_misses_no_event_that_is_not_acknowledged(
            steps in prop::collection::vec((any::<bool>(), 0usize..12), 1..60),
            stored_at in 0usize..60,
        ) {
            let bounds = Bounds { events: 1000, bytes: usize::MAX };
            let (mut events, mut last) = (Unacknowledged::default(), 0);
            let mut open = Vec::new();
            let mut account = events.account(place(1));
            let mut acknowledged = HashSet::new();
            for (step, (is_sent, which)) in steps.into_iter().enumerate() {
                if is_sent || open.is_empty() {
                    // Others are in the journal, too.
                    last += 2 + which as u64;
                    events.sent(position(last), 1, bounds);
                    open.push(last);
                } else {
                    let id = open.remove(which % open.len());
                    prop_assert!(events.acknowledged(ack_id(id)));
                    acknowledged.insert(id);
                }
                if step == stored_at {
                    account = events.account(place(last.max(1)));
                }
            }
            let start = account.start(place(last.max(1)));
            for id in &open {
                prop_assert!(*id > start.id);
                prop_assert!(account.is_pending(*id) != account.is_unknown(*id));
            }
            let now = events.account(place(last.max(1)));
            prop_assert_eq!(now.pending(), open.len());
            let beginning = Offset { id: 0, time: 0 };
            for id in acknowledged {
                prop_assert!(!now.is_pending(id) && !now.is_unknown(id));
                prop_assert!(id <= now.received(beginning).id);
            }
            let json = serde_json::to_string(&now).unwrap();
            prop_assert_eq!(serde_json::from_str::<Account>(&json).unwrap(), now);
        }
    }
}
