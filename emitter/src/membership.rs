//! The members that must answer a question, and the pending questions. For authors of buses.
//!
//! Redis knows two things: leases, which name our nodes and show that they are alive, and the
//! numbers of subscribers, which show which nodes can be reached. Both change while they are read,
//! so a question needs four readings around it:
//!
//! ```text
//!  ── count 1 ── question ──── leases 2 ── count 3 ── leases 4 ──▶ time
//!     (with the                (repeated every 200 ms while an answer is missing)
//!      leases of a
//!      moment ago)
//! ```
//!
//! | at count 1 | at count 3 | lease | so the node |
//! |---|---|---|---|
//! | subscribed | subscribed | holds | has to answer |
//! | subscribed | subscribed | expired | hangs, or Redis refuses writes: silent unless it answers within 300 ms |
//! | any | gone, everywhere | holds | is not connected or has just died: a confirmed emit lists it as silent |
//! | gone, everywhere | any | holds | was not connected: a confirmed emit lists it as silent |
//! | any | gone | none | has left: not awaited |
//! | absent | subscribed | any | joined after the question: not awaited |
//!
//! "Everywhere" includes the channel that a node has regardless of its namespaces, so a node
//! without the namespace does not count as disconnected.
//!
//! A node that leaves gives up its lease before its subscriptions. Leases 4 shows whether
//! a node of count 3 left in between, in which case one number may include its subscription and the
//! other may not, and everything is counted again (`census`). Subscribers without a lease are
//! Node.js servers, or nodes that are too new to be known; `pending` reclassifies them when they
//! answer.

mod census;
mod commands;
mod pending;
mod roster;

pub use self::{
    census::{Members, look},
    commands::{SETTINGS, TIME, count, leases, read_leases, read_time, subscribers},
    pending::{FOREIGN, Outcome, PendingQuestions, TooManyQuestions, Waiting, is_quick},
    roster::{
        Attendance, Counted, LEASE_SECONDS, Leases, MAX_NODES, RENEWAL_SECONDS, Roster, TRACE,
    },
};
