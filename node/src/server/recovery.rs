//! Clients that come back after their connection was lost, to this node or another.
//!
//! ```text
//! connect ──▶ session: id, rooms, data, place in the journal ──▶ stored within moments
//! join, leave, set_data ──▶ stored again          every half of its life ──▶ its life is extended,
//!                                                                 or it is stored again if it was lost
//!
//! CONNECT with `pid` and `offset` ─▶ take the session ─▶ end the socket that had it
//!        ─▶ read what the tail of the journal has not ─▶ under the journal's lock: enter the rooms,
//!           send what was missed ─▶ reply: recovered        any step fails ─▶ an ordinary connect
//! ```
//!
//! The session is written while the client is connected, because a node that is killed
//! writes nothing. For the same reason, taking a session only changes its owner: it stays
//! until the new owner has written it.

mod redelivery;
mod returns;
mod unacknowledged;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use roomcast_adapter::{BusError, Session, Sessions, SocketId, Taken};
use roomcast_protocol::{
    args::Args,
    engine_io::open::Revision,
    message::Message,
    target::{Rooms, Target},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::timeout};

pub(super) use self::unacknowledged::{ack_id, is_ack_id};
use self::{
    returns::{NotTaken, Returns},
    unacknowledged::{Account, Unacknowledged},
    writer::{Ended, Queue, Writer},
};
use super::{
    data::Data,
    journal::{Kept, Offset, is_meant},
    live_namespace::LiveNamespace,
    observe::Observation,
    server::Inner,
    socket::{DisconnectReason, Socket},
};
use crate::{
    clock::unix_millis, close::CloseReason, line_limit::LineLimit, transport::driver::Turn,
};

/// How long a returning client waits for the end of its former socket on this node.
const FAREWELL: Duration = Duration::from_secs(5);

/// Maximum time that a returning client waits for an unreachable session store.
const STORE: Duration = Duration::from_secs(10);

/// How long a server that shuts down waits for the sessions to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// The event by which a node notifies the others that a client has come back to it. Node.js servers
/// have no handler for it.
const RETURNED: &str = "roomcast:returned";

/// How clients can come back to a namespace after their connection was lost, see
/// [`Namespace::recovery`](super::Namespace::recovery).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// Minimum time for which a session is kept after the connection was lost. Default 2 minutes,
    /// as in Node.js servers.
    pub max_disconnection: Duration,
    /// Whether the authorizers run for clients that come back, too. Default: no, as in
    /// Node.js servers.
    pub authorizes_again: bool,
    /// Whether events to a [single socket](Socket::emit) go through the journal, too, so that the
    /// client receives those that it missed. Default: no, because each one then costs Redis and all
    /// nodes as much as a broadcast. Node.js servers with the adapter in memory keep them.
    ///
    /// They are also stored for a socket whose connection was lost, while the client may come back.
    /// Such an event arrives in the order of the journal: after what was emitted before it, and
    /// possibly after the acknowledgement of a handler that emitted it. Volatile events and those
    /// that request an acknowledgement are sent at once, and are not kept. If the journal cannot be
    /// reached, the event is sent at once as well.
    pub unicasts: bool,
    /// Whether broadcasts can be emitted [at least once](super::BroadcastOperator::at_least_once). Default: no, because
    /// the sessions of all sockets are then stored again every half of `max_disconnection`, and the
    /// journal must keep broadcasts that much longer.
    pub at_least_once: bool,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            max_disconnection: Duration::from_secs(120),
            authorizes_again: false,
            unicasts: false,
            at_least_once: false,
        }
    }
}

/// Creates the data of a socket from the JSON of the former data and from the authorizers' result.
/// `Err`: the client is a different one.
pub(crate) type RestoreData =
    Arc<dyn Fn(serde_json::Value, SocketData) -> Result<SocketData, Other> + Send + Sync>;

/// The data of a socket.
type SocketData = Option<Arc<dyn Data>>;

/// A client that must not resume the session.
pub(crate) struct Other;

/// The sessions of a namespace at work.
pub(super) struct LiveRecovery {
    pub(super) options: Recovery,
    sessions: Arc<dyn Sessions>,
    queue: Arc<Queue>,
    returns: Arc<Returns>,
}

/// The state of a socket in a namespace with recovery.
pub(crate) struct Recoverable {
    /// The secret name of the session.
    pid: Box<str>,
    /// The token of this socket among those that have had the session.
    owner: Box<str>,
    /// The place in the journal from which on the socket received events. `None` if unknown.
    since: Option<Offset>,
    is_recovered: bool,
    is_queued: AtomicBool,
    /// Whether the session may be stored for this owner.
    is_stored: AtomicBool,
    /// Whether the store lacks the latest changes, because it could not be reached.
    is_outdated: AtomicBool,
    /// The places in the journal at which rooms were joined. Rooms that were joined
    /// before anything was emitted are not here.
    joins: Mutex<HashMap<Box<str>, Offset>>,
    /// The events that the client has to acknowledge.
    unacknowledged: Mutex<Unacknowledged>,
    /// Whether it is in the queue of those whose acknowledgements have changed.
    is_queued_lazily: AtomicBool,
    /// Whether another owner has the session.
    is_taken: AtomicBool,
    /// The time until which the client may come back after the end of its connection, in
    /// milliseconds since 1970. 0 before the end, and if it may not.
    returns_until: AtomicU64,
    /// Notified once the socket has left its rooms.
    gone: Notify,
}

impl Recoverable {
    /// Notes whether the store has the latest changes.
    fn note(&self, written: &Result<bool, BusError>) {
        match written {
            Ok(true) => self.is_outdated.store(false, Ordering::Relaxed),
            // Another owner has it, or the changes may have been stored.
            Ok(false) | Err(BusError::Unconfirmed(_)) => {}
            Err(_) => self.is_outdated.store(true, Ordering::Relaxed),
        }
    }

    /// The state of a new session.
    fn new(pid: Box<str>, owner: Box<str>, since: Option<Offset>) -> Self {
        Self {
            pid,
            owner,
            since,
            is_recovered: false,
            is_queued: AtomicBool::new(false),
            is_stored: AtomicBool::new(false),
            is_outdated: AtomicBool::new(false),
            joins: Mutex::default(),
            unacknowledged: Mutex::default(),
            is_queued_lazily: AtomicBool::new(false),
            is_taken: AtomicBool::new(false),
            returns_until: AtomicU64::new(0),
            gone: Notify::new(),
        }
    }
}

/// A session as it is stored.
#[derive(Serialize, Deserialize)]
struct Record {
    sid: String,
    owner: Box<str>,
    /// Without the private room.
    rooms: Vec<Box<str>>,
    data: serde_json::Value,
    since: Option<u64>,
    /// 0 if it is not known.
    #[serde(default)]
    since_time: u64,
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    joins: HashMap<Box<str>, Offset>,
    /// In namespaces with broadcasts at least once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<Account>,
    /// Whether no client may resume the session, because it was resumed without its latest changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_void: bool,
}

impl Record {
    /// The value of a session that cannot be resumed.
    fn void(socket: &Socket, owner: &str) -> Bytes {
        let record = Self {
            sid: socket.id().as_str().to_owned(),
            owner: owner.into(),
            rooms: Vec::new(),
            data: serde_json::Value::Null,
            since: None,
            since_time: 0,
            joins: HashMap::new(),
            account: None,
            is_void: true,
        };
        Bytes::from(serde_json::to_vec(&record).unwrap_or_default())
    }

    fn since(&self) -> Option<Offset> {
        let time = self.since_time;
        self.since.map(|id| Offset { id, time })
    }
}

/// The credentials that a client sends to come back.
#[derive(Deserialize)]
struct Credentials {
    pid: Box<str>,
    offset: Option<String>,
}

/// A session that was taken, with everything that is needed to resume it.
pub(super) struct Restored {
    record: Record,
    pid: Box<str>,
    /// The token of the socket that will have the session.
    owner: Box<str>,
    from: Places,
    /// The entries that the tail of the journal did not have.
    earlier: Vec<Arc<Kept>>,
    /// Meanwhile, no other client on this node can resume the session.
    turn: returns::Return,
}

/// The places after which the client's missed events begin.
#[derive(Clone, Copy)]
struct Places {
    /// The client has received everything up to here, except for unacknowledged events.
    received: Offset,
    /// Everything after this place must still be kept.
    start: Offset,
}

/// The outcome of a CONNECT that may name a session.
pub(super) enum Restoring {
    /// The client resumes its session.
    Taken(Box<Restored>),
    /// The client does not come back, or cannot.
    No,
    /// The session may exist, but its store is unreachable.
    Later,
}

impl Restored {
    /// The id that the socket had.
    pub(super) fn id(&self) -> SocketId {
        SocketId::new(&self.record.sid)
    }

    /// The data of the socket, unless the authorizers have returned others.
    pub(super) fn data(
        &mut self,
        namespace: &LiveNamespace,
        authorized: SocketData,
    ) -> Result<SocketData, Other> {
        let former = std::mem::take(&mut self.record.data);
        match &namespace.handlers.restore_data {
            Some(restore) => restore(former, authorized),
            None if former.is_null() => Ok(authorized),
            None => Ok(authorized.or_else(|| Some(Arc::new(former)))),
        }
    }
}

impl LiveRecovery {
    /// Starts the task that writes sessions. It ends when the namespace was dropped and everything
    /// is written.
    pub(super) fn start(
        options: Recovery,
        sessions: Arc<dyn Sessions>,
        namespace: Weak<LiveNamespace>,
        server: &Arc<Inner>,
    ) -> Self {
        let queue = Arc::<Queue>::default();
        let returns = Arc::<Returns>::default();
        let writer = Writer {
            options,
            sessions: Arc::clone(&sessions),
            queue: Arc::clone(&queue),
            returns: Arc::clone(&returns),
            namespace,
            metrics: Arc::clone(&server.engine.metrics),
        };
        drop(server.tasks.runtime().spawn(writer.run()));
        Self {
            options,
            sessions,
            queue,
            returns,
        }
    }

    /// Resolves once everything is written, or after a while.
    pub(super) async fn flush(&self) {
        let written = async {
            loop {
                let idle = self.queue.idle.notified();
                if self.queue.waiting.lock().is_done() {
                    return;
                }
                self.queue.news.notify_one();
                idle.await;
            }
        };
        let _ = timeout(FLUSH, written).await;
    }

    fn changed(&self, socket: &Socket, recoverable: &Recoverable) {
        if !recoverable.is_queued.swap(true, Ordering::AcqRel) {
            let mut waiting = self.queue.waiting.lock();
            waiting.push_changed(socket.clone(), recoverable);
            drop(waiting);
            self.queue.news.notify_one();
        }
    }

    fn ended(&self, ended: Ended) {
        self.queue.waiting.lock().push_ended(ended);
        self.queue.news.notify_one();
    }

    /// When a session ends by itself that was stored at most now, in milliseconds since 1970.
    fn end_of_stored(&self) -> u64 {
        let life = self.options.max_disconnection.saturating_mul(2);
        unix_millis().saturating_add(millis(life))
    }

    /// Failed writes are not repeated any more, because the server closes.
    pub(super) fn abandon(&self) {
        self.queue.waiting.lock().is_abandoned = true;
        self.queue.news.notify_one();
    }
}

impl Drop for LiveRecovery {
    fn drop(&mut self) {
        self.queue.waiting.lock().is_closed = true;
        self.queue.news.notify_one();
    }
}

impl Socket {
    /// Whether the client has come back to the session that it had before its connection
    /// was lost: the socket has the same id, rooms and data, and has received the missed events.
    /// Always `false` in a namespace without [recovery](super::Namespace::recovery).
    pub fn recovered(&self) -> bool {
        self.recoverable().is_some_and(|r| r.is_recovered)
    }

    /// Queues the session to be stored again, because it has changed.
    pub(super) fn session_changed(&self) {
        if let Some(recoverable) = self.recoverable()
            && let Some(recovery) = &self.live().recovery
        {
            recovery.changed(self, recoverable);
        }
    }

    /// The place in the journal from which on events to a room that is joined now are received.
    /// `None` if that makes no difference.
    pub(super) fn place_of_joins(&self) -> Option<Offset> {
        let recoverable = self.recoverable()?;
        let last = self.live().journal.as_ref()?.last()?;
        Some(Offset::from(last)).filter(|last| recoverable.since != Some(*last))
    }

    /// The socket has joined rooms.
    pub(super) fn session_joined(&self, rooms: &[Box<str>], place: Offset) {
        if let Some(recoverable) = self.recoverable() {
            let mut joins = recoverable.joins.lock();
            joins.extend(rooms.iter().map(|room| (room.clone(), place)));
        }
    }

    /// The socket leaves rooms.
    pub(super) fn session_leaves(&self, rooms: &impl Rooms) {
        if let Some(recoverable) = self.recoverable() {
            let mut joins = recoverable.joins.lock();
            rooms.each(&mut |room| {
                joins.remove(room);
            });
        }
    }

    /// The socket is about to leave its rooms.
    pub(super) fn session_ends(&self, reason: DisconnectReason) {
        let Some(recoverable) = self.recoverable() else {
            return;
        };
        let Some(recovery) = &self.live().recovery else {
            return;
        };
        if recoverable.is_taken.load(Ordering::Relaxed) {
            return;
        }
        let is_kept = comes_back(reason);
        recovery.owes_at_end(self, recoverable, is_kept);
        let session = is_kept.then(|| {
            let life = recovery.options.max_disconnection;
            let until = unix_millis().saturating_add(millis(life));
            recoverable.returns_until.store(until, Ordering::Relaxed);
            self.session(recoverable, life)
        });
        recovery.ended(Ended {
            pid: recoverable.pid.clone(),
            owner: recoverable.owner.clone(),
            socket: Some(self.clone()),
            session,
            until: recovery.end_of_stored(),
        });
    }

    /// Whether the connection was lost, and the client may still come back.
    pub(super) fn may_return(&self) -> bool {
        let until = |recoverable: &Recoverable| recoverable.returns_until.load(Ordering::Relaxed);
        self.recoverable()
            .is_some_and(|recoverable| unix_millis() < until(recoverable))
    }

    /// Another socket has the session, so this one ends and no longer writes.
    fn session_taken(&self) {
        let Some(recoverable) = self.recoverable() else {
            return;
        };
        let was_taken = recoverable.is_taken.swap(true, Ordering::Relaxed);
        if !was_taken
            && recoverable.is_outdated.load(Ordering::Relaxed)
            && let Some(recovery) = &self.live().recovery
        {
            // The other socket has been given an older session.
            recovery.ended(Ended {
                pid: recoverable.pid.clone(),
                owner: recoverable.owner.clone(),
                socket: Some(self.clone()),
                session: None,
                until: recovery.end_of_stored(),
            });
        }
        self.connection().close(CloseReason::TransportClose);
    }

    /// The socket has left its rooms.
    pub(super) fn session_left(&self) {
        if let Some(recoverable) = self.recoverable() {
            recoverable.gone.notify_one();
        }
    }

    /// The name under which the client can come back.
    pub(super) fn pid(&self) -> Option<&str> {
        self.recoverable().map(|recoverable| &*recoverable.pid)
    }

    fn session(&self, recoverable: &Recoverable, life: Duration) -> Session {
        let account = self.account(recoverable);
        let own = self.id().as_str();
        let rooms = self.rooms().into_iter().filter(|room| room != own);
        let record = Record {
            sid: own.to_owned(),
            owner: recoverable.owner.clone(),
            rooms: rooms.map(String::into_boxed_str).collect(),
            data: self.data_json(),
            since: recoverable.since.map(|since| since.id),
            since_time: recoverable.since.map_or(0, |since| since.time),
            joins: recoverable.joins.lock().clone(),
            account,
            is_void: false,
        };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        Session {
            pid: recoverable.pid.clone(),
            owner: recoverable.owner.clone(),
            value: Bytes::from(value),
            life,
        }
    }
}

/// A time in milliseconds.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the client may come back after this end, as in Node.js servers.
fn comes_back(reason: DisconnectReason) -> bool {
    match reason {
        DisconnectReason::Connection(reason) => !matches!(
            reason,
            CloseReason::ServerDisconnect | CloseReason::ParseError { .. }
        ),
        DisconnectReason::ClientDisconnect
        | DisconnectReason::ServerDisconnect
        | DisconnectReason::HandlerPanic => false,
    }
}

impl LiveNamespace {
    /// The session of a new socket, if clients of this revision can come back.
    pub(super) fn recoverable(&self, revision: Revision) -> Option<Box<Recoverable>> {
        self.recovery.as_ref()?;
        if revision != Revision::V4 {
            return None;
        }
        let journal = self.journal.as_ref()?;
        let pid = self.engine.ids.engine_id();
        let since = journal.last().map(Offset::from);
        let recoverable = Recoverable::new(pid.as_str().into(), self.new_owner(), since);
        Some(Box::new(recoverable))
    }

    fn new_owner(&self) -> Box<str> {
        self.engine.ids.socket_id().as_str().into()
    }

    /// Whether a CONNECT with these credentials has to wait: for a session that is taken,
    /// or until the node knows where the journal ends.
    pub(super) fn has_to_wait(&self, auth: Option<&str>) -> bool {
        let is_return =
            self.recovery.is_some() && auth.is_some_and(|auth| auth.contains("\"pid\""));
        is_return || self.journal.as_ref().is_some_and(|j| j.last().is_none())
    }

    /// Takes the session that the credentials name, and prepares to resume it.
    pub(super) async fn restore(&self, auth: Option<&str>) -> Restoring {
        static LINES: LineLimit = LineLimit::new();
        if let Some(journal) = &self.journal {
            journal.begun().await;
        }
        let (Some(recovery), Some(auth)) = (&self.recovery, auth) else {
            return Restoring::No;
        };
        let Ok(Credentials { pid, offset }) = serde_json::from_str(auth) else {
            return Restoring::No;
        };
        // The end of the former socket may not be written yet.
        recovery.flush().await;
        let owner = self.new_owner();
        let bound = STORE.min(self.engine.config.connect_timeout / 2);
        let kept = recovery.options.max_disconnection;
        let (store, names) = (&*recovery.sessions, (&*pid, &*owner));
        let taking = recovery
            .returns
            .take(store, &recovery.queue, names, bound, kept);
        let (turn, taken) = match taking.await {
            Ok(Some(taken)) => taken,
            Ok(None) => {
                self.count_recovery("unknown");
                return Restoring::No;
            }
            Err(reason) => {
                self.count_recovery("unavailable");
                if let Some(left_out) = LINES.pass() {
                    let namespace = &*self.name;
                    tracing::warn!(namespace, left_out, "sessions of clients cannot be read");
                }
                return match reason {
                    NotTaken::Later => Restoring::Later,
                    NotTaken::Unavailable => Restoring::No,
                };
            }
        };
        match self.prepare(taken, offset.as_deref()).await {
            Ok((record, from, earlier)) => Restoring::Taken(Box::new(Restored {
                record,
                pid,
                owner,
                from,
                earlier,
                turn,
            })),
            Err((outcome, pending)) => {
                self.count_recovery(outcome);
                self.count_given_up("unrecovered", pending);
                self.forget_session(pid, owner);
                Restoring::No
            }
        }
    }

    /// The client that came for the session is a different one.
    pub(super) fn refuse_restored(&self, restored: Restored) {
        self.count_recovery("refused");
        self.count_given_up("unrecovered", restored.record.pending());
        self.forget_session(restored.pid, restored.owner);
    }

    fn forget_session(&self, pid: Box<str>, owner: Box<str>) {
        if let Some(recovery) = &self.recovery {
            recovery.ended(Ended {
                pid,
                owner,
                socket: None,
                session: None,
                until: recovery.end_of_stored(),
            });
        }
    }

    pub(super) fn count_recovery(&self, outcome: &'static str) {
        let metrics = &self.engine.metrics;
        metrics.recoveries.with_label_values(&[outcome]).inc();
    }

    /// Ends the socket that had the session, and reads the missed events that are not in the tail.
    /// `Err` has the number of events that the client had to acknowledge, too.
    async fn prepare(
        &self,
        taken: Taken,
        offset: Option<&str>,
    ) -> Result<(Record, Places, Vec<Arc<Kept>>), (&'static str, usize)> {
        let record: Record = serde_json::from_slice(&taken.value).map_err(|_| ("unknown", 0))?;
        if record.is_void {
            return Err(("unknown", 0));
        }
        let pending = record.pending();
        // The client has left its former socket, even if it cannot resume the session.
        self.notify_former(&record.sid, &taken.owner);
        if *record.owner != *taken.owner {
            // The last owner has not written the session, and may not have ended the one before it.
            self.notify_former(&record.sid, &record.owner);
        }
        self.end_former(&record.sid).await;
        match self.read_missed(&record, offset).await {
            Some((from, earlier)) => Ok((record, from, earlier)),
            None => Err(("incomplete", pending)),
        }
    }

    async fn read_missed(
        &self,
        record: &Record,
        offset: Option<&str>,
    ) -> Option<(Places, Vec<Arc<Kept>>)> {
        let limits = &self.engine.config.limits;
        let fits = record.rooms.len() <= limits.rooms_per_socket
            && record
                .rooms
                .iter()
                .all(|room| room.len() <= limits.room_name_bytes);
        let since = record.since();
        let journal = self.journal.as_ref().filter(|_| fits)?;
        let received = match offset {
            Some(offset) => {
                let offset = journal.read_offset(offset)?;
                // A client keeps the offset of an earlier session until it receives something.
                match since {
                    Some(since) => journal.later(since, offset).await?,
                    None => offset,
                }
            }
            None => since?,
        };
        let from = record.places(received);
        let earlier = journal.read_after(self, from.start).await?;
        Some((from, earlier))
    }

    /// Makes the other nodes end the socket that was this owner of the session, because they may
    /// not have noticed the disconnect.
    fn notify_former(&self, sid: &str, owner: &str) {
        let args = (sid, owner);
        if let Ok(args) = Args::encode(&args) {
            let returned = Message::ServerSideEmit {
                event: RETURNED.into(),
                args,
            };
            // A node that does not receive the event ends the socket after the ping timeout.
            drop(self.publish(&Target::default(), || returned));
        }
        self.has_returned(owner);
    }

    /// Ends all sockets of this node that had the session. A client may have resumed it here after
    /// a client of another node had taken it; its socket is then no owner that the store knows.
    async fn end_former(&self, sid: &str) {
        let former = self.of_session(sid);
        for socket in &former {
            if let Some(recoverable) = socket.recoverable() {
                self.has_returned(&recoverable.owner);
            }
            if socket.is_connected() {
                socket.session_taken();
            }
        }
        let left = async {
            for recoverable in former.iter().filter_map(Socket::recoverable) {
                recoverable.gone.notified().await;
            }
        };
        let _ = timeout(FAREWELL, left).await;
    }

    /// The sockets of this node that have this id, also one that is just leaving.
    fn of_session(&self, sid: &str) -> Vec<Socket> {
        let mut target = Target::default();
        target.add_rooms(sid);
        // Other sockets may have joined a room of this name.
        let members = self.adapter.select(&target).into_iter().map(Socket::from);
        members
            .filter(|socket| socket.id().as_str() == sid)
            .collect()
    }

    /// The socket of this node that has this id and is this owner of its session.
    fn former(&self, sid: &str, owner: &str) -> Option<Socket> {
        let is_former = |socket: &Socket| {
            let recoverable = socket.recoverable();
            socket.is_connected()
                && recoverable.is_some_and(|recoverable| *recoverable.owner == *owner)
        };
        self.of_session(sid).into_iter().find(is_former)
    }

    /// Whether an event between servers reports that a client has come back to another node.
    /// Its former socket is ended then.
    pub(super) fn is_return(&self, event: &str, args: &Args) -> bool {
        if event != RETURNED {
            return false;
        }
        if self.recovery.is_some()
            && let Ok((sid, owner)) = args.decode::<(String, String)>()
        {
            self.has_returned(&owner);
            if let Some(former) = self.former(&sid, &owner) {
                former.session_taken();
            }
        }
        true
    }

    /// Resumes a client's session: the socket is in its rooms again, and the missed events are in
    /// its outbox. `None` if that cannot be complete.
    pub(super) fn readmit(
        self: &Arc<Self>,
        turn: &mut Turn<'_, '_>,
        restored: Restored,
        socket: impl FnOnce(SocketId, Box<Recoverable>) -> Socket,
    ) -> Option<Socket> {
        let (pid, owner) = (restored.pid.clone(), restored.owner.clone());
        let pending = restored.record.pending();
        let readmitted = self.readmit_whole(turn, restored, socket);
        if readmitted.is_some() {
            self.count_recovery("recovered");
        } else {
            self.count_recovery("incomplete");
            self.count_given_up("unrecovered", pending);
            self.forget_session(pid, owner);
        }
        readmitted
    }

    fn readmit_whole(
        self: &Arc<Self>,
        turn: &mut Turn<'_, '_>,
        restored: Restored,
        socket: impl FnOnce(SocketId, Box<Recoverable>) -> Socket,
    ) -> Option<Socket> {
        let Restored {
            mut record,
            pid,
            owner,
            from,
            earlier,
            turn: _turn,
        } = restored;
        if !self.of_session(&record.sid).is_empty() {
            // The former socket did not end in time, and an id has one socket.
            return None;
        }
        let mut rooms: HashSet<&str> = record.rooms.iter().map(|room| &**room).collect();
        rooms.insert(&record.sid);
        let state = self.journal.as_ref()?.lock();
        let mut missed = state.after(from.start, &earlier)?;
        // Ids of one journal tell whether a room was joined before something was emitted, which
        // times do not, because the clock of Redis may go back.
        let joins = record.joins.iter();
        let joins = joins.filter(|(_, place)| state.is_ahead(**place, &missed));
        let joins: HashMap<&str, u64> = joins.map(|(room, place)| (&**room, place.id)).collect();
        missed.retain(|kept| {
            let id = kept.position().id;
            let was_in =
                |room: &str| rooms.contains(room) && joins.get(room).is_none_or(|join| id > *join);
            record.is_missed(kept, from.received, |to| is_meant(to, was_in))
        });
        let bytes: usize = missed.iter().map(|kept| kept.cost()).sum();
        if bytes > self.engine.config.limits.outbox_bytes / 2 {
            // It would be cut off as a slow consumer.
            return None;
        }
        let recoverable = Box::new(Recoverable {
            is_recovered: true,
            // It exists, because it was taken.
            is_stored: AtomicBool::new(true),
            joins: Mutex::new(std::mem::take(&mut record.joins)),
            unacknowledged: Mutex::new(Unacknowledged::of(record.account.as_ref())),
            ..Recoverable::new(pid, owner, record.since())
        });
        let socket = socket(SocketId::new(&record.sid), recoverable);
        for kept in &missed {
            if let Some((to, frame)) = kept.sent() {
                turn.send(frame);
                if let Some(position) = self.to_acknowledge(to, Some(kept.position())) {
                    self.engine.metrics.count_acknowledgements("resent", 1);
                    socket
                        .local_socket()
                        .has_to_acknowledge(position, kept.cost());
                }
            }
        }
        socket.insert();
        // The limits were checked.
        let _ = self.adapter.join(socket.local_socket(), &record.rooms);
        drop(state);
        if self.observers.is_any() {
            socket.observed(Observation::Connected { socket: &socket });
            let (socket, rooms) = (&socket, &*record.rooms);
            if !rooms.is_empty() {
                socket.observed(Observation::Joined { socket, rooms });
            }
        }
        Some(socket)
    }
}
