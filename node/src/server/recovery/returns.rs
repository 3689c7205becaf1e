//! Clients on their way back to their sessions, on one node.
//!
//! If several clients come back to one session at the same time, they take it one after the other,
//! because each has to find the socket that it ends. A store that is unreachable for a moment may
//! still have the session, so a client waits for it, and then retries instead of losing its
//! session:
//!
//! ```text
//! CONNECT ─▶ wait for its turn ─▶ take ─▶ taken, or unknown
//!                                 │  ▲
//!                     unreachable │  │ after a moment          at the bound: the client retries
//!                                 └──┘                         unreachable for too long: a new client
//! ```

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use roomcast_adapter::{BusError, Sessions, Taken};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::writer::Queue;
use crate::clock::Stopwatch;

/// The time between two tries to take a session.
const RETRY: Duration = Duration::from_millis(250);

/// The sessions that clients are coming back to.
#[derive(Default)]
pub(super) struct Returns {
    pids: Mutex<HashSet<Box<str>>>,
    /// Notified when one of them has come back, or not.
    freed: Notify,
    /// Since when the store is unreachable.
    away: Mutex<Option<Stopwatch>>,
}

/// The turn of one client. It ends when this is dropped.
pub(super) struct Return {
    returns: Arc<Returns>,
    pid: Box<str>,
}

/// Why a session was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// The store may have it.
    Later,
    /// The store does not respond, or was unreachable for so long that sessions have ended
    /// meanwhile.
    Unavailable,
}

impl Returns {
    /// The store has executed something.
    pub(super) fn store_is_back(&self) {
        *self.away.lock() = None;
    }

    /// Takes a session for `owner`, within `bound`. `None`: there is none. Clients do not wait for
    /// a store that is unreachable for longer than `kept`. Changes of the session that this
    /// node has not written yet are written first.
    pub(super) async fn take(
        self: &Arc<Self>,
        sessions: &dyn Sessions,
        queue: &Queue,
        (pid, owner): (&str, &str),
        bound: Duration,
        kept: Duration,
    ) -> Result<Option<(Return, Taken)>, NotTaken> {
        let taking = async {
            let turn = self.turn(pid).await;
            loop {
                let unwritten = queue.waiting.lock().unwritten(pid);
                let error = match unwritten {
                    Some(error) => error,
                    None => match sessions.take(pid, owner).await {
                        Ok(taken) => {
                            self.store_is_back();
                            return Ok(taken.map(|taken| (turn, taken)));
                        }
                        Err(error) => Some(error),
                    },
                };
                if let Some(error) = error {
                    self.may_come_back(&error, kept)?;
                }
                sleep(RETRY).await;
            }
        };
        timeout(bound, taking).await.unwrap_or(Err(NotTaken::Later))
    }

    fn may_come_back(&self, error: &BusError, kept: Duration) -> Result<(), NotTaken> {
        tracing::debug!(%error, "a session cannot be taken");
        if matches!(error, BusError::Invalid(_)) {
            return Err(NotTaken::Unavailable);
        }
        let mut away = self.away.lock();
        let since = away.get_or_insert_with(Stopwatch::start);
        if since.seconds() > kept.as_secs_f64() {
            return Err(NotTaken::Unavailable);
        }
        Ok(())
    }

    async fn turn(self: &Arc<Self>, pid: &str) -> Return {
        loop {
            let freed = self.freed.notified();
            if self.pids.lock().insert(pid.into()) {
                return Return {
                    returns: Arc::clone(self),
                    pid: pid.into(),
                };
            }
            freed.await;
        }
    }
}

impl Drop for Return {
    fn drop(&mut self) {
        self.returns.pids.lock().remove(&self.pid);
        self.returns.freed.notify_waiters();
    }
}
