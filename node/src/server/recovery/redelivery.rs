//! Broadcasts at least once: clients acknowledge them, and receive those again after a recovery that they have not
//! acknowledged.
//!
//! The official client reports its last position, but not that of events that it acknowledges.
//! Therefore two positions determine the events that are sent again: that of the client about
//! ordinary events, and the session's [`Account`] about these.
//!
//! A client whose session ends with events that it has not acknowledged is counted, and logged. For one that may come back,
//! that is known when its time has passed; another node to which it comes back reports this before.

use std::{collections::HashMap, sync::atomic::Ordering};

use roomcast_adapter::Position;
use roomcast_protocol::target::Target;

use super::{
    Kept, LiveNamespace, LiveRecovery, Offset, Places, Record, Recoverable, Socket, millis,
    unacknowledged::{Account, Bounds, is_ack_id},
};
use crate::{
    clock::unix_millis, close::Limit, line_limit::LineLimit, metrics::Metrics,
    server::socket::LocalSocket,
};

/// Maximum number of remembered sessions of absent clients with unacknowledged events.
const MAX_ABSENT: usize = 100_000;

/// Clients that may come back and have events to acknowledge, by the owners of their sessions.
#[derive(Default)]
pub(super) struct Absent(HashMap<Box<str>, Left>);

struct Left {
    pending: usize,
    /// Until when the client may come back, in milliseconds since 1970.
    until: u64,
}

impl Absent {
    /// Removes clients that have not come back in time. Returns the number of events that they had
    /// to acknowledge.
    pub(super) fn expire(&mut self, now: u64) -> usize {
        let mut expired = 0;
        self.0.retain(|_, left| {
            let is_over = left.until <= now;
            expired += if is_over { left.pending } else { 0 };
            !is_over
        });
        expired
    }
}

impl Record {
    /// The number of events that the client had to acknowledge.
    pub(super) fn pending(&self) -> usize {
        self.account.as_ref().map_or(0, Account::pending)
    }

    /// The places for a client that has received up to this one by its own account.
    pub(super) fn places(&self, offset: Offset) -> Places {
        let Some(account) = &self.account else {
            return Places {
                received: offset,
                start: offset,
            };
        };
        let received = account.received(offset);
        Places {
            received,
            start: account.start(received),
        }
    }

    /// Whether a broadcast has to be sent to the client now.
    pub(super) fn is_missed(
        &self,
        kept: &Kept,
        received: Offset,
        is_meant: impl FnOnce(&Target) -> bool,
    ) -> bool {
        let Some((to, _)) = kept.sent() else {
            return false;
        };
        match &self.account {
            Some(account) if to.flags.at_least_once => {
                // It may have left the room since.
                let id = kept.position().id;
                account.is_pending(id) || account.is_unknown(id) && is_meant(to)
            }
            _ => kept.position().id > received.id && is_meant(to),
        }
    }
}

impl LiveNamespace {
    /// The position of a broadcast, if the clients of this node have to acknowledge it.
    pub(in crate::server) fn to_acknowledge(
        &self,
        target: &Target,
        position: Option<Position>,
    ) -> Option<Position> {
        if !target.flags.at_least_once {
            return None;
        }
        let recovery = self.recovery.as_ref()?;
        position.filter(|place| recovery.options.at_least_once && place.after.is_some())
    }

    /// Whether broadcasts of the namespace can be emitted at least once.
    pub(in crate::server) fn delivers_at_least_once(&self) -> bool {
        let recovery = self.recovery.as_ref();
        recovery.is_some_and(|recovery| recovery.options.at_least_once)
    }

    /// Counts events that will not be acknowledged, and logs them at a limited rate.
    pub(super) fn count_given_up(&self, outcome: &'static str, events: usize) {
        given_up(&self.engine.metrics, &self.name, outcome, events);
    }

    /// The owner of a session has another owner after it.
    pub(super) fn has_returned(&self, owner: &str) {
        if let Some(recovery) = &self.recovery {
            let mut waiting = recovery.queue.waiting.lock();
            waiting.absent.0.remove(owner);
        }
    }
}

/// Counts and logs events that were not acknowledged.
pub(super) fn given_up(metrics: &Metrics, namespace: &str, outcome: &'static str, events: usize) {
    static LINES: LineLimit = LineLimit::new();
    if events == 0 {
        return;
    }
    metrics.count_acknowledgements(outcome, events);
    if let Some(left_out) = LINES.pass() {
        tracing::warn!(
            namespace,
            events,
            reason = outcome,
            left_out,
            "events to be received at least once were not acknowledged"
        );
    }
}

impl LiveRecovery {
    /// The end of a socket that may have events to acknowledge.
    pub(super) fn owes_at_end(&self, socket: &Socket, recoverable: &Recoverable, is_kept: bool) {
        if !self.options.at_least_once {
            return;
        }
        let pending = recoverable.unacknowledged.lock().len();
        if pending == 0 {
            return;
        }
        if is_kept {
            let until = unix_millis().saturating_add(millis(self.options.max_disconnection));
            let absent = &mut self.queue.waiting.lock().absent.0;
            if absent.len() < MAX_ABSENT {
                absent.insert(recoverable.owner.clone(), Left { pending, until });
                return;
            }
        }
        let outcome = if is_kept { "expired" } else { "ended" };
        socket.live().count_given_up(outcome, pending);
    }
}

impl Socket {
    /// The part of the session about acknowledgements.
    pub(super) fn account(&self, recoverable: &Recoverable) -> Option<Account> {
        let namespace = self.live();
        namespace.delivers_at_least_once().then_some(())?;
        // Before the lock of the events: everything up to it has been sent to the socket then.
        let upto = namespace.journal.as_ref()?.last()?;
        let unacknowledged = recoverable.unacknowledged.lock();
        Some(unacknowledged.account(upto.into()))
    }

    /// Takes an acknowledgement of a broadcast. Returns `false` if it is of something else.
    pub(in crate::server) fn acknowledges(&self, id: u64) -> bool {
        if !is_ack_id(id) {
            return false;
        }
        if let Some(recoverable) = self.recoverable()
            && recoverable.unacknowledged.lock().acknowledged(id)
        {
            let metrics = &self.live().engine.metrics;
            metrics.count_acknowledgements("acknowledged", 1);
            self.local_socket().acknowledgements_changed();
        }
        true
    }
}

impl LocalSocket {
    /// The client is sent an event that it has to acknowledge. Clients that cannot come back do not count.
    pub(in crate::server) fn has_to_acknowledge(&self, position: Position, bytes: usize) {
        let Some(recoverable) = self.recoverable() else {
            return;
        };
        let namespace = self.namespace();
        let limits = &namespace.engine.config.limits;
        let bounds = Bounds {
            events: limits.unacknowledged_events,
            bytes: limits.unacknowledged_bytes,
        };
        let mut unacknowledged = recoverable.unacknowledged.lock();
        let surplus = unacknowledged.sent(position, bytes, bounds);
        drop(unacknowledged);
        if surplus > 0 {
            namespace
                .engine
                .metrics
                .limit_reached(Limit::Unacknowledged);
            if let Some(recovery) = &namespace.recovery {
                // Nothing is logged under the locks that are held here.
                recovery.queue.waiting.lock().surplus += surplus;
            }
        }
        self.acknowledgements_changed();
    }

    /// Queues the session to be stored again after a while.
    fn acknowledgements_changed(&self) {
        if let Some(recoverable) = self.recoverable()
            && let Some(recovery) = &self.namespace().recovery
            && !recoverable.is_queued_lazily.swap(true, Ordering::AcqRel)
        {
            let mut waiting = recovery.queue.waiting.lock();
            waiting.lazily.push(self.clone().into());
        }
    }
}
