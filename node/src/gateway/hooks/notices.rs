//! Notices on their way to a backend: repeated until the backend has confirmed them.
//!
//! ```text
//! push ──► pending ──► call ─── ok ──► gone
//!            ▲            └─ failure ──► pause, each time longer ──┐
//!            └────────────────────── not yet for too long ─────────┤
//!                                              given up, counted ◄─┘
//! ```
//!
//! A backend sees each at least once. A repeated one has the same id. With Redis, the store keeps
//! it meanwhile, so that another node takes over if this one ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use prometheus::{IntCounter, IntGauge};
use roomcast::Server;
use tokio::{
    sync::{Notify, Semaphore},
    time::sleep,
};

use super::{
    backend::{Backend, Subject, read_list},
    metrics::Metrics,
    store::{Record, Store},
};
use crate::gateway::operations::{self, Asks};

/// Notices of one hook that wait for their confirmation. Beyond it they are lost.
/// Each is a task with its body.
const MAX_PENDING: usize = 10_000;

/// Notices of one hook that are sent at the same time, so that events have most of the requests.
const AT_ONCE: usize = 8;

const FIRST_PAUSE: Duration = Duration::from_secs(1);

const MAX_PAUSE: Duration = Duration::from_secs(60);

/// After pauses of this length in all, a notice is given up.
const GIVE_UP: Duration = Duration::from_secs(3600);

/// The notices of one hook.
pub(super) struct Notices {
    backend: Arc<Backend>,
    at_once: Semaphore,
    pending: AtomicUsize,
    is_done: Notify,
    pending_gauge: IntGauge,
    lost: IntCounter,
    store: Option<Arc<Store>>,
}

/// A disconnect or a change of a room, with the data for carrying out the response.
pub(super) struct Notice {
    pub(super) id: String,
    pub(super) namespace: String,
    pub(super) body: Bytes,
    pub(super) forwarded: HeaderMap,
    pub(super) server: Option<Server>,
    pub(super) limits: roomcast::Limits,
    pub(super) asks: Asks,
}

impl Notice {
    /// The form in which it is stored.
    pub(super) fn record(&self, hook: &str) -> Record {
        let id = self.id.clone();
        Record::new(id, hook, &self.namespace, &self.body, &self.forwarded)
    }
}

impl Notices {
    pub(super) fn new(backend: Arc<Backend>, metrics: &Metrics, store: Option<Arc<Store>>) -> Self {
        let name = [&*backend.name];
        Self {
            at_once: Semaphore::new(AT_ONCE),
            pending: AtomicUsize::new(0),
            is_done: Notify::new(),
            pending_gauge: metrics.disconnects_pending.with_label_values(&name),
            lost: metrics.disconnects_lost.with_label_values(&name),
            backend,
            store,
        }
    }

    /// The number of those that wait for their confirmation.
    pub(super) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Takes over a notice. It is lost at once if too many wait already.
    pub(super) fn push(self: &Arc<Self>, notice: Notice) {
        if self.pending.fetch_add(1, Ordering::Relaxed) >= MAX_PENDING {
            self.lost(&notice, "too many wait already");
            self.finished(&notice.id);
            return;
        }
        self.pending_gauge.inc();
        let notices = Arc::clone(self);
        tokio::spawn(async move {
            notices.deliver(&notice).await;
            notices.pending_gauge.dec();
            notices.finished(&notice.id);
        });
    }

    /// Resolves when none is pending.
    pub(super) async fn flush(&self) {
        loop {
            // Before the number is read, because a notification between the two would
            // be missed.
            let done = self.is_done.notified();
            if self.pending.load(Ordering::Acquire) == 0 {
                return;
            }
            done.await;
        }
    }

    /// Reports those that are pending, because the process ends.
    pub(super) fn abandon(&self) {
        let pending = self.pending.load(Ordering::Acquire);
        if pending > 0 {
            let hook = &*self.backend.name;
            if self.store.is_some() {
                let text = "disconnects or changes of rooms were not delivered before the end: another node delivers them";
                tracing::warn!(hook, pending, "{text}");
            } else {
                tracing::error!(
                    hook,
                    pending,
                    "disconnects or changes of rooms were not delivered before the end"
                );
            }
        }
    }

    fn finished(&self, id: &str) {
        if let Some(store) = &self.store {
            store.remove(id);
        }
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.is_done.notify_waiters();
        }
    }

    async fn deliver(&self, notice: &Notice) {
        let mut pause = FIRST_PAUSE;
        let mut waited = Duration::ZERO;
        loop {
            match self.attempt(notice).await {
                Ok(operations) => {
                    self.carry_out(notice, operations).await;
                    return;
                }
                Err(()) if waited >= GIVE_UP => {
                    self.lost(notice, "the backend has not confirmed it for an hour");
                    return;
                }
                Err(()) => {}
            }
            // Spread, so that those that failed together do not come back together.
            let spread = pause.mul_f64(0.75 + 0.5 * roomcast::emitter::entropy::fraction());
            sleep(spread).await;
            waited += pause;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// The backend has counted and logged a failure.
    async fn attempt(&self, notice: &Notice) -> Result<Vec<operations::Operation>, ()> {
        // Not held during the pause, so that those that can be delivered are.
        let _one = self.at_once.acquire().await.map_err(drop)?;
        let (body, forwarded) = (notice.body.clone(), notice.forwarded.clone());
        let subject = Subject::request(&notice.id);
        let called = self.backend.call(subject, body, forwarded, read_list).await;
        called.map_err(drop)
    }

    async fn carry_out(&self, notice: &Notice, list: Vec<operations::Operation>) {
        let Some(server) = &notice.server else {
            return;
        };
        match operations::check(list, notice.asks, &notice.limits) {
            Ok(checked) => {
                let namespace = server.of(&notice.namespace);
                let report = checked.carry_out(&namespace, None, &mut None).await;
                if let Some((index, error)) = report.failure() {
                    let error = error.to_string();
                    tracing::warn!(
                        hook = &*self.backend.name,
                        index,
                        error,
                        "an operation failed"
                    );
                }
            }
            Err(problem) => {
                let subject = Subject::request(&notice.id);
                self.backend.note(subject, &problem.into());
            }
        }
    }

    fn lost(&self, notice: &Notice, reason: &str) {
        self.lost.inc();
        tracing::error!(
            hook = &*self.backend.name,
            id = notice.id,
            reason,
            "a disconnect or a change of a room was not delivered"
        );
    }
}
