//! Writes the sessions of a namespace, shortly after changes of its sockets.
//!
//! ```text
//! change, end ─▶ queue ─▶ gather for a moment ─▶ write together ─▶ stored
//!                  ▲                                   │ failed: it waits again
//!                  └───────────────────────────────────┤ another one has it: the socket ends, or, if
//!                                                      │ the other one has an older session, that one
//! every half of a life: extend all, and queue what the store has lost
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use roomcast_adapter::{BusError, Session, Sessions};
use roomcast_protocol::target::Target;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    LiveNamespace, Record, Recoverable, Recovery, Returns, Socket,
    redelivery::{Absent, given_up},
};
use crate::{clock::unix_millis, line_limit::LineLimit, metrics::Metrics};

/// How long changes of sessions gather, so that several of one socket are written once.
const GATHER: Duration = Duration::from_millis(20);

/// How long to wait before sessions are written again that could not be.
const RETRY: Duration = Duration::from_secs(1);

/// How often sessions are written because of acknowledgements. If a node is killed, its clients
/// receive again the events that they have acknowledged since.
const LAZILY: Duration = Duration::from_secs(2);

/// How long after the first notice other nodes are notified again, because those that have lost
/// Redis as well may not have subscribed yet.
const NOTIFY_AGAIN: Duration = Duration::from_secs(5);

/// Maximum number of ended sessions that wait for the store to be reachable.
const MAX_ENDED: usize = 100_000;

/// Sessions that have to be written.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: Mutex<Waiting>,
    /// Notified when there is something to write.
    pub(super) news: Notify,
    /// Notified when everything is written.
    pub(super) idle: Notify,
}

#[derive(Default)]
pub(super) struct Waiting {
    changed: Vec<Socket>,
    ended: Vec<Ended>,
    /// The sessions of both, and of those that are being written, with their number.
    unwritten: HashMap<Box<str>, usize>,
    /// Why the last write has failed, until one succeeds.
    error: Option<BusError>,
    /// Sockets whose acknowledgements have changed.
    pub(super) lazily: Vec<Socket>,
    pub(super) absent: Absent,
    /// Events that were given up because clients had to acknowledge too many.
    pub(super) surplus: usize,
    pub(super) is_writing: bool,
    pub(super) is_closed: bool,
    /// Whether failed writes are not repeated.
    pub(super) is_abandoned: bool,
}

/// A session whose socket has disconnected, or that was taken and cannot be resumed.
pub(super) struct Ended {
    pub(super) pid: Box<str>,
    pub(super) owner: Box<str>,
    pub(super) socket: Option<Socket>,
    /// The session if the client may come back. Otherwise it is removed.
    pub(super) session: Option<Session>,
    /// When an earlier version in the store ends by itself, in milliseconds since 1970.
    pub(super) until: u64,
}

impl Ended {
    fn recoverable(&self) -> Option<&Recoverable> {
        self.socket.as_ref()?.recoverable()
    }

    /// Whether the store had an older version, which another node may have resumed.
    fn is_outdated(&self) -> bool {
        self.recoverable()
            .is_some_and(|recoverable| recoverable.is_outdated.load(Ordering::Relaxed))
    }
}

impl Waiting {
    pub(super) fn is_done(&self) -> bool {
        self.changed.is_empty() && self.ended.is_empty() && !self.is_writing
    }

    /// Whether something of this session is not written yet, and the error for which it may have to
    /// be written again.
    pub(super) fn unwritten(&self, pid: &str) -> Option<Option<BusError>> {
        self.unwritten.get(pid).map(|_| self.error.clone())
    }

    pub(super) fn push_changed(&mut self, socket: Socket, recoverable: &Recoverable) {
        *self.unwritten.entry(recoverable.pid.clone()).or_default() += 1;
        self.changed.push(socket);
    }

    pub(super) fn push_ended(&mut self, ended: Ended) {
        *self.unwritten.entry(ended.pid.clone()).or_default() += 1;
        self.ended.push(ended);
    }

    /// Something of a session is written, or waits again.
    fn taken_out(&mut self, pid: &str) {
        if let Some(count) = self.unwritten.get_mut(pid) {
            *count -= 1;
            if *count == 0 {
                self.unwritten.remove(pid);
            }
        }
    }

    /// Queues an end again whose write has failed, as long as that can make a difference.
    /// Returns `false` if it is too late.
    fn repeat(&mut self, ended: Ended) -> bool {
        let is_useful = !self.is_abandoned && unix_millis() < ended.until;
        let repeats = is_useful && self.ended.len() < MAX_ENDED;
        if repeats {
            self.push_ended(ended);
        }
        repeats
    }
}

/// Writes the sessions of a namespace.
pub(super) struct Writer {
    pub(super) options: Recovery,
    pub(super) sessions: Arc<dyn Sessions>,
    pub(super) queue: Arc<Queue>,
    pub(super) returns: Arc<Returns>,
    pub(super) namespace: Weak<LiveNamespace>,
    pub(super) metrics: Arc<Metrics>,
}

impl Writer {
    pub(super) async fn run(self) {
        // Sessions end by themselves if this node is killed, so their lives are extended in time.
        let period = (self.options.max_disconnection / 2).max(Duration::from_millis(100));
        let mut due = interval(period);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        due.tick().await;
        let mut lazily = interval(LAZILY);
        lazily.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_due = tokio::select! {
                () = self.queue.news.notified() => false,
                _ = due.tick() => true,
                _ = lazily.tick(), if self.options.at_least_once => {
                    self.look_at_acknowledgements();
                    continue;
                }
            };
            if is_due {
                self.refresh().await;
                continue;
            }
            sleep(GATHER).await;
            if !self.write().await {
                sleep(RETRY).await;
                self.queue.news.notify_one();
            }
            let waiting = self.queue.waiting.lock();
            if waiting.is_done() {
                self.queue.idle.notify_waiters();
                if waiting.is_closed {
                    return;
                }
            }
        }
    }

    /// Queues the sessions whose acknowledgements have changed, and counts events that will not be
    /// acknowledged.
    fn look_at_acknowledgements(&self) {
        let (changed, surplus, expired) = {
            let mut waiting = self.queue.waiting.lock();
            (
                std::mem::take(&mut waiting.lazily),
                std::mem::take(&mut waiting.surplus),
                waiting.absent.expire(unix_millis()),
            )
        };
        for socket in changed {
            if let Some(recoverable) = socket.recoverable() {
                recoverable.is_queued_lazily.store(false, Ordering::Release);
            }
            socket.session_changed();
        }
        if let Some(namespace) = self.namespace.upgrade() {
            given_up(&self.metrics, &namespace.name, "limit", surplus);
            given_up(&self.metrics, &namespace.name, "expired", expired);
        }
    }

    /// How long a session is kept after it was last extended.
    fn life(&self) -> Duration {
        self.options.max_disconnection * 2
    }

    /// Writes the collected sessions. Returns `false` if some of it has to be written again.
    async fn write(&self) -> bool {
        let (changed, ended) = {
            let mut waiting = self.queue.waiting.lock();
            waiting.is_writing = true;
            (
                std::mem::take(&mut waiting.changed),
                std::mem::take(&mut waiting.ended),
            )
        };
        let changes = changed.iter().filter_map(|socket| {
            let recoverable = socket.recoverable()?;
            // From here on, a change is a new one.
            recoverable.is_queued.store(false, Ordering::Release);
            if !socket.is_connected() || recoverable.is_taken.load(Ordering::Relaxed) {
                // Its end is queued as well, or another socket has the session.
                return None;
            }
            let session = socket.session(recoverable, self.life());
            let storing = self.store(recoverable, session);
            Some(async move { (socket, storing.await) })
        });
        let written = join_all(changes.collect::<Vec<_>>()).await;
        // After them, so that the end of a socket is written last.
        let ends = ended.iter().map(|ended| -> BoxFuture<'_, _> {
            match ended.recoverable().zip(ended.session.clone()) {
                Some((recoverable, session)) => Box::pin(self.store(recoverable, session)),
                None => self.sessions.remove(&ended.pid, &ended.owner),
            }
        });
        let ends = join_all(ends.collect::<Vec<_>>()).await;
        let mut is_done = true;
        let mut resumed = Vec::new();
        for (ended, written) in ended.into_iter().zip(ends) {
            self.count(&written);
            if let Some(recoverable) = ended.recoverable() {
                recoverable.note(&written);
            }
            self.queue.waiting.lock().taken_out(&ended.pid);
            match written {
                Ok(false) if ended.is_outdated() => resumed.push(ended),
                Ok(_) => {}
                Err(_) => is_done &= !self.queue.waiting.lock().repeat(ended),
            }
        }
        is_done &= self.end_resumed(resumed).await;
        for socket in &changed {
            if let Some(recoverable) = socket.recoverable() {
                self.queue.waiting.lock().taken_out(&recoverable.pid);
            }
        }
        for (socket, written) in written {
            self.count(&written);
            let Some(recoverable) = socket.recoverable() else {
                continue;
            };
            recoverable.note(&written);
            match written {
                Ok(true) => {}
                // The client has come back elsewhere, and this node was not notified.
                Ok(false) => socket.session_taken(),
                Err(_) => {
                    if !recoverable.is_queued.swap(true, Ordering::AcqRel) {
                        let mut waiting = self.queue.waiting.lock();
                        waiting.push_changed(socket.clone(), recoverable);
                    }
                    is_done = false;
                }
            }
        }
        self.queue.waiting.lock().is_writing = false;
        is_done
    }

    /// Stores a session: the first time unconditionally, then unless the session has another owner.
    /// Resolves to whether it was stored.
    fn store<'a>(
        &self,
        recoverable: &'a Recoverable,
        session: Session,
    ) -> impl Future<Output = Result<bool, BusError>> + Send + use<'a> {
        let storing = if recoverable.is_stored.load(Ordering::Relaxed) {
            self.sessions.update(session)
        } else {
            let create = self.sessions.create(session);
            Box::pin(async move { create.await.map(|()| true) })
        };
        async move {
            let written = storing.await;
            // Also after an error, because the session may have been stored without a confirmation, and
            // taken by another node.
            recoverable.is_stored.store(true, Ordering::Relaxed);
            written
        }
    }

    /// Ends sessions that other nodes have resumed without their latest changes, because this node
    /// could not store these in time. The clients notice it because they get new sockets.
    /// Returns `false` if some of it has to be done again.
    async fn end_resumed(&self, resumed: Vec<Ended>) -> bool {
        static LINES: LineLimit = LineLimit::new();
        let mut is_done = true;
        let mut notices = Vec::new();
        for ended in resumed {
            match self.end_one_resumed(&ended).await {
                Ok(owner) => notices.extend(ended.socket.zip(owner)),
                Err(_) => is_done &= !self.queue.waiting.lock().repeat(ended),
            }
        }
        let Some((first, _)) = notices.first() else {
            return is_done;
        };
        if let Some(left_out) = LINES.pass() {
            let namespace = first.namespace_name();
            let sessions = notices.len();
            tracing::warn!(
                namespace,
                sessions,
                left_out,
                "clients came back to sessions whose latest changes could not be stored: they get new sockets"
            );
        }
        let notify = move || {
            for (socket, owner) in &notices {
                socket.live().notify_former(socket.id().as_str(), owner);
            }
        };
        notify();
        drop(tokio::spawn(async move {
            sleep(NOTIFY_AGAIN).await;
            notify();
        }));
        is_done
    }

    /// Makes the session one that cannot be resumed, and returns the owner that had it. The void session
    /// stays, because its former owner would store a missing one again.
    async fn end_one_resumed(&self, ended: &Ended) -> Result<Option<Box<str>>, BusError> {
        let Some(socket) = &ended.socket else {
            return Ok(None);
        };
        let Some(taken) = self.sessions.take(&ended.pid, &ended.owner).await? else {
            return Ok(None);
        };
        let session = Session {
            pid: ended.pid.clone(),
            owner: ended.owner.clone(),
            value: Record::void(socket, &ended.owner),
            life: self.life(),
        };
        self.sessions.update(session).await?;
        socket.live().count_recovery("incomplete");
        Ok(Some(taken.owner))
    }

    async fn refresh(&self) {
        let Some(namespace) = self.namespace.upgrade() else {
            return;
        };
        let mut sockets = namespace.local_sockets(&Target::default());
        drop(namespace);
        sockets.retain(|socket| socket.recoverable().is_some());
        let pids = sockets.iter().filter_map(Socket::recoverable);
        let pids: Vec<_> = pids.map(|recoverable| recoverable.pid.clone()).collect();
        let mut sockets = sockets.into_iter();
        for pids in pids.chunks(1024) {
            let refreshed = self.sessions.refresh(pids, self.life()).await;
            match refreshed {
                Ok(exist) => {
                    self.returns.store_is_back();
                    // A store that was restarted empty, or has evicted them, has lost sessions.
                    let known = sockets.by_ref().take(pids.len());
                    // Its place in the journal must not become too old.
                    let is_old = self.options.at_least_once;
                    let lost = known.zip(exist).filter(|(_, exists)| is_old || !exists);
                    let lost: Vec<_> = lost.collect();
                    for (socket, _) in &lost {
                        socket.session_changed();
                    }
                    if !lost.is_empty() {
                        // Before the next ones, so that the store does not get all at once.
                        self.write().await;
                    }
                }
                Err(error) => {
                    self.count(&Err(error));
                    return;
                }
            }
        }
    }

    fn count(&self, written: &Result<bool, BusError>) {
        static LINES: LineLimit = LineLimit::new();
        self.queue.waiting.lock().error = written.as_ref().err().cloned();
        let outcome = match written {
            Ok(_) => {
                self.returns.store_is_back();
                "written"
            }
            Err(_) => "failed",
        };
        self.metrics
            .session_writes
            .with_label_values(&[outcome])
            .inc();
        if let Err(error) = written
            && let Some(left_out) = LINES.pass()
        {
            tracing::warn!(%error, left_out, "sessions of clients cannot be written: they may not come back");
        }
    }
}
