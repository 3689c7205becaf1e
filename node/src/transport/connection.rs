//! One client's connection: its state, its transport and its driver's waker under one small lock.
//!
//! [`ConnectionState`] decides; this file carries out: it writes, wakes, sets timers and tells the
//! lane. Anyone may push and close; only the connection's driver reads. The first
//! task that finds the transport ready writes: the lane's, or the driver at the end of its turn.
//!
//! The lock is a leaf, except that the timer wheel of the connection's lane is taken under it.
//!
//! ```text
//!   application, bus ── send, deliver ──┐                        ┌── wakes ── lane's task: flush
//!   any thread ──────── close, wake ────┼─► lock: state, stream ─┤
//!   lane's wheel ────── on_timer ───────┤                        └── wakes ── driver: turn … end_turn
//!   an upgrade ──────── attach ─────────┘
//! ```
//!
//! **Who writes.** A WebSocket has at most one writer at a time, because frames must
//! not interleave. While the driver is in its turn, it is the driver: pushes queue, and
//! `end_turn` writes them together with the replies. Otherwise a push marks the
//! connection dirty and gives it to its lane, whose task writes many connections with
//! one wake-up. A socket that is full belongs to the driver again, because only the
//! driver's waker is registered with the system.
//!
//! **Why a lock and no channel.** A push returns whether the client took the frame, was
//! cut or is closed, so the number of recipients is known at once, and no task has to
//! be woken for a push. The lock is held for a push or while queued frames are written, never
//! across an await. Decisions of the state come out as [`Todo`], which is carried out before the
//! lock is released, so that no other thread sees a state whose timer or wake-up is still missing.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    connection_state::{ConnectionState, Due, Push, Reach, Todo, close_frame},
    engine::Engine,
    frame::{Frame, Wire, WireForm},
    lane::Lane,
    plain::{self, Admitted, Plain},
    polling::Polling,
    sessions::{Slot, Tick},
    stream::{Read, Stream},
};
use crate::{
    clock::Time,
    close::{CloseReason, Limit},
};
use roomcast_protocol::engine_io::{
    open::Revision,
    packet::Packet,
    session::{Heartbeat, Received, UnexpectedPacket},
};
use roomcast_protocol::id::EngineId;

pub(crate) struct Connection {
    engine: Arc<Engine>,
    locked: Mutex<Locked>,
    id: EngineId,
    // Derived from the id, so every part of the server finds the lane without a table.
    lane: u16,
    revision: Revision,
    /// Whether the client's transport takes text only. It changes when a WebSocket is attached.
    base64: AtomicBool,
    /// A copy of [`ConnectionState::may_reply_directly`], which the driver reads without the lock:
    /// everything that its handlers have seen has happened before.
    direct: AtomicBool,
    is_plain: bool,
}

pub(super) struct Locked {
    pub(super) state: ConnectionState,
    /// None while the client polls or takes a stream, and after the end.
    pub(super) stream: Option<Stream>,
    /// Wakes the driver.
    driver: Option<Waker>,
    pub(super) aside: Option<Box<Aside>>,
    slot: Slot,
    /// The tick for which the lane's wheel holds the valid timer.
    timer: Tick,
}

/// The further state of a connection that has more than a WebSocket of Engine.IO.
pub(crate) enum Aside {
    /// While the client polls, and until its remaining packets are handled.
    Polling(Polling),
    Plain(Plain),
}

/// The current transport of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Polling,
    WebSocket,
    /// A consumer of this process, which carries the events on.
    Stream,
}

impl Carrier {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Polling => "polling",
            Self::WebSocket => "websocket",
            Self::Stream => "stream",
        }
    }
}

/// The connection is closed, or was closed by this very packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// Connections that a broadcast made dirty, all of one lane.
#[derive(Default)]
pub(crate) struct Batch(Vec<Arc<Connection>>);

impl Connection {
    /// Registers a new connection; its open packet is queued by the caller.
    pub(super) fn new(
        engine: &Arc<Engine>,
        form: WireForm,
        stream: Option<Stream>,
        aside: Option<Aside>,
    ) -> Arc<Self> {
        Self::named(engine, engine.ids.engine_id(), form, stream, aside)
    }

    /// The same with an id that the authorizers of a plain connection know already.
    pub(super) fn named(
        engine: &Arc<Engine>,
        id: EngineId,
        form: WireForm,
        stream: Option<Stream>,
        aside: Option<Aside>,
    ) -> Arc<Self> {
        let is_plain = matches!(aside, Some(Aside::Plain(_)));
        let lane = engine.lane_index(id.as_str());
        let beats = match &aside {
            Some(Aside::Plain(plain)) => plain.form.heartbeat() != plain::Heartbeat::None,
            _ => true,
        };
        let never = Heartbeat {
            interval: Duration::MAX,
            timeout: Duration::MAX,
        };
        let config = &engine.config;
        let heartbeat = if beats { config.heartbeat } else { never };
        let locked = Locked {
            state: ConnectionState::new(form.revision, heartbeat, config, engine.clock.now()),
            stream,
            driver: None,
            aside: aside.map(Box::new),
            slot: 0,
            timer: 0,
        };
        let connection = Arc::new(Self {
            engine: Arc::clone(engine),
            locked: Mutex::new(locked),
            id,
            lane: u16::try_from(lane).expect("few lanes"),
            revision: form.revision,
            base64: AtomicBool::new(form.base64),
            direct: AtomicBool::new(false),
            is_plain,
        });
        let slot = connection.lane().sessions().insert(Arc::clone(&connection));
        let mut locked = connection.lock();
        locked.slot = slot;
        connection.arm(&mut locked);
        if engine.refuses() {
            // The drain has begun while the connection was being opened, and may not have seen it.
            connection.begin_close(&mut locked, CloseReason::ServerShutdown);
        }
        drop(locked);
        connection
    }

    pub(crate) fn id(&self) -> &EngineId {
        &self.id
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn lane_index(&self) -> usize {
        usize::from(self.lane)
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn takes_base64_only(&self) -> bool {
        self.base64.load(Ordering::Relaxed)
    }

    /// Whether the client speaks neither Engine.IO nor Socket.IO.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// How the WebSocket is written. It is read under the lock, as it changes.
    fn wire<'a>(&self, aside: Option<&'a Aside>) -> Wire<'a> {
        match aside {
            Some(Aside::Plain(plain)) => Wire::Plain(&plain.form),
            _ => Wire::EngineIo(WireForm {
                revision: self.revision,
                base64: self.takes_base64_only(),
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock()
    }

    /// The transport that the client uses now.
    pub(crate) fn transport(&self) -> Carrier {
        let locked = self.lock();
        match locked.aside.as_deref() {
            Some(Aside::Polling(_)) if locked.stream.is_none() => Carrier::Polling,
            Some(Aside::Plain(plain)) if plain.is_stream() => Carrier::Stream,
            _ => Carrier::WebSocket,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closing().is_some()
    }

    /// Why the connection is closed, if it is.
    pub(crate) fn closing(&self) -> Option<CloseReason> {
        self.lock().state.closing()
    }

    /// The connection is in use: the connect timeout no longer applies.
    pub(crate) fn claim(&self) {
        self.lock().state.claim();
    }

    /// Queues the packet that opens the session on the client's side. The driver, which is about to
    /// be started, writes it in its first turn.
    pub(super) fn begin(&self, opening: Frame, head: Option<&[u8]>) {
        self.lock().state.begin(opening, head);
    }

    /// Queues a frame and has it written soon: by the end of the driver's turn if it is in one.
    pub(crate) fn send(self: &Arc<Self>, frame: &Frame, volatile: bool) -> Result<(), Closed> {
        let flush = self.push(&mut self.lock(), frame, volatile, false)?;
        if flush {
            self.lane().flush_later([Arc::clone(self)]);
        }
        Ok(())
    }

    /// Queues a frame; unless a flush is pending, the connection is added to the batch. So does
    /// the connection whose handler broadcasts: if its copy were written with its turn, a client
    /// that waits for its own copy before it sends again would run ahead of everybody else.
    pub(crate) fn deliver(self: &Arc<Self>, frame: &Frame, volatile: bool, batch: &mut Batch) {
        if let Ok(true) = self.push(&mut self.lock(), frame, volatile, true) {
            batch.0.push(Arc::clone(self));
        }
    }

    /// Returns whether the connection has to be given to its lane.
    fn push(
        &self,
        locked: &mut Locked,
        frame: &Frame,
        volatile: bool,
        by_lane: bool,
    ) -> Result<bool, Closed> {
        if self.is_plain {
            let max = self.engine.config.limits.outbox_bytes;
            match locked.admit(frame, max) {
                Admitted::Now => {}
                Admitted::Not => return Ok(false),
                Admitted::Full => {
                    self.cut_locked(locked, Limit::Outbox);
                    return Err(Closed);
                }
            }
        }
        self.push_now(locked, frame, volatile, by_lane)
    }

    /// The same, for a frame that is not held back.
    pub(super) fn push_now(
        &self,
        locked: &mut Locked,
        frame: &Frame,
        volatile: bool,
        by_lane: bool,
    ) -> Result<bool, Closed> {
        let (reach, now) = (locked.reach(), || self.engine.clock.now());
        let config = &self.engine.config;
        let push = locked
            .state
            .push(frame, volatile, by_lane, reach, config, now);
        match push {
            // Frames are queued now, so replies have to follow them.
            Push::Queued { flush, waits } => {
                self.direct.store(false, Ordering::Relaxed);
                if waits {
                    frame.count_waiting(&self.engine.metrics.outbox_bytes);
                    // The lane's task looks for clients that are stuck, and cuts those
                    // with the most bytes.
                    if self.engine.is_over_budget() {
                        self.lane().wake();
                    }
                }
                Ok(flush)
            }
            Push::Dropped => {
                self.engine.metrics.volatile_dropped.inc();
                Ok(false)
            }
            Push::Closed => Err(Closed),
            Push::Cut(todo) => {
                self.carry_out(locked, todo);
                Err(Closed)
            }
        }
    }

    /// The bytes that wait, if nothing can be written now.
    pub(super) fn stuck_bytes(&self) -> Option<usize> {
        let locked = self.lock();
        locked.state.stuck_bytes(locked.reach())
    }

    /// Takes the description of the frames that waited for a slow client.
    pub(super) fn take_backlog(&self) -> Option<Box<str>> {
        self.lock().state.take_backlog()
    }

    /// Closes the connection of a client that does not read.
    pub(super) fn cut(&self, limit: Limit) {
        self.cut_locked(&mut self.lock(), limit);
    }

    fn cut_locked(&self, locked: &mut Locked, limit: Limit) {
        let (reach, now) = (locked.reach(), self.engine.clock.now());
        let todo = locked.state.cut(limit, reach, now);
        self.carry_out(locked, todo);
    }

    /// Makes the driver check the decisions about its sockets.
    pub(crate) fn wake(&self) {
        self.lock().wake_driver();
    }

    /// Ends the connection. The first reason counts.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.begin_close(&mut self.lock(), reason);
    }

    pub(super) fn begin_close(&self, locked: &mut Locked, reason: CloseReason) {
        let (reach, now) = (locked.reach(), self.engine.clock.now());
        // A plain WebSocket gets a code that tells its client the reason.
        let todo = if self.is_plain {
            let frame = close_frame(reason.plain_websocket_code());
            locked.state.close_with(reason, &frame, reach, now)
        } else {
            locked.state.close(reason, reach, now)
        };
        self.carry_out(locked, todo);
    }

    /// The client has closed its WebSocket; the server echoes its close frame (RFC 6455, 5.5.1).
    pub(super) fn close_by_peer(&self, echo: &Frame) {
        let mut locked = self.lock();
        let (reach, now) = (locked.reach(), self.engine.clock.now());
        let reason = CloseReason::TransportClose;
        let todo = locked.state.close_with(reason, echo, reach, now);
        self.carry_out(&mut locked, todo);
    }

    /// Closes a connection whose transport is closed.
    pub(super) fn abort(&self, locked: &mut Locked, reason: CloseReason) {
        let todo = locked.state.abort(reason, self.engine.clock.now());
        self.carry_out(locked, todo);
    }

    fn carry_out(&self, locked: &mut Locked, todo: Todo) {
        self.publish_direct(locked);
        if todo.arm {
            self.arm(locked);
        }
        if todo.wake {
            locked.wake_driver();
            locked.wake_poll();
        }
    }

    fn publish_direct(&self, locked: &Locked) {
        let direct = locked.state.may_reply_directly();
        self.direct.store(direct, Ordering::Relaxed);
    }

    /// Writes the queued frames, or lets a waiting poll fetch them. Returns the bytes written.
    pub(super) fn flush(&self, scratch: &mut Vec<u8>) -> usize {
        let mut locked = self.lock();
        let may_write = locked.state.begin_flush();
        if locked.stream.is_none() {
            locked.wake_poll();
        } else if may_write {
            return self.write(&mut locked, scratch, None);
        }
        0
    }

    /// Writes to the WebSocket until all is written or the system takes no more.
    fn write(
        &self,
        locked: &mut Locked,
        scratch: &mut Vec<u8>,
        mut cx: Option<&mut Context<'_>>,
    ) -> usize {
        let mut total = 0;
        let Locked {
            state,
            stream,
            aside,
            ..
        } = locked;
        let wire = self.wire(aside.as_deref());
        let Some(stream) = stream else {
            return 0;
        };
        let error = loop {
            let Some(bytes) = state.next_write(wire, scratch) else {
                // TLS may keep records back that the system has not taken. Only the
                // driver is woken when it takes more.
                if cx.is_none() && stream.holds_bytes() {
                    locked.wake_driver();
                }
                return total;
            };
            match stream.try_write(cx.as_deref_mut(), bytes) {
                Ok(count) => {
                    total += count;
                    state.wrote(count, wire);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            // From now on the frames are memory that a slow client costs, so they are
            // counted.
            if state.block(total > 0, self.engine.clock.now()) {
                let waiting = &self.engine.metrics.outbox_bytes;
                state
                    .frames()
                    .for_each(|frame| frame.count_waiting(waiting));
            }
            if cx.is_none() {
                locked.wake_driver();
            }
        } else {
            self.abort(locked, CloseReason::TransportError);
        }
        total
    }

    /// Checks the heartbeat and the remaining time; called by the lane's task.
    pub(super) fn on_timer(self: &Arc<Self>, tick: Tick, now: Time) {
        let mut locked = self.lock();
        // The timer has been replaced; wheels keep the old entry, see
        // [`sessions`](super::sessions).
        if locked.timer != tick {
            return;
        }
        let reach = locked.reach();
        match locked.state.tick(reach, &self.engine.config, now) {
            Due::Nothing => {}
            Due::Closed(todo) => self.carry_out(&mut locked, todo),
            Due::Ping => {
                let pushed = self.push_ping(&mut locked, now);
                if pushed == Ok(true) {
                    self.lane().flush_later([Arc::clone(self)]);
                }
            }
        }
        if !locked.state.is_expired() {
            self.arm(&mut locked);
        }
    }

    fn push_ping(&self, locked: &mut Locked, now: Time) -> Result<bool, Closed> {
        if !self.is_plain {
            return self.push(locked, &self.engine.ping, false, true);
        }
        let Some((frame, is_unanswered)) = self.plain_heartbeat(locked) else {
            return Ok(false);
        };
        // The client's protocol has no pong, so the ping counts as answered. A vanished client is
        // noticed when it reads no more bytes.
        if is_unanswered {
            let config = &self.engine.config;
            let (received, todo) = locked.state.receive(Packet::Pong(""), config, now);
            debug_assert!(received.is_ok(), "a ping is due");
            self.carry_out(locked, todo);
        }
        self.push(locked, &frame, false, true)
    }

    fn arm(&self, locked: &mut Locked) {
        let deadline = locked.state.deadline();
        locked.timer = self.lane().sessions().arm(locked.slot, deadline);
    }

    /// The client's WebSocket takes over from polling. `read` was received on it already, and
    /// `base64` is set if it takes only text.
    pub(super) fn attach(
        self: &Arc<Self>,
        stream: Stream,
        read: Vec<u8>,
        base64: bool,
    ) -> Result<(), Closed> {
        let mut locked = self.lock();
        if locked.state.is_expired() {
            return Err(Closed);
        }
        // A client that has received its last packet by a poll expects nothing more, so a later
        // upgrade is too late.
        match locked.polling() {
            Some(polling) if !polling.said_farewell() => polling.attached(read),
            _ => return Err(Closed),
        }
        self.base64.store(base64, Ordering::Relaxed);
        locked.stream = Some(stream);
        locked.state.attach();
        locked.wake_driver();
        Ok(())
    }

    // The rest is for the driver.

    /// Passes a packet to the session.
    pub(super) fn receive<'p>(&self, packet: Packet<'p>) -> Result<Received<'p>, UnexpectedPacket> {
        let (config, now) = (&self.engine.config, self.engine.clock.now());
        let mut locked = self.lock();
        let (received, todo) = locked.state.receive(packet, config, now);
        self.carry_out(&mut locked, todo);
        received
    }

    /// Starts or continues the driver's turn: until [`end_turn`](Self::end_turn), no other task
    /// writes to the WebSocket.
    pub(super) fn turn<'a>(&'a self, cx: &Context<'_>) -> MutexGuard<'a, Locked> {
        let mut locked = self.lock();
        locked.state.begin_turn();
        match &mut locked.driver {
            // Cloning counts references with atomics, in every turn.
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
        locked
    }

    /// Ends the turn: writes its `replies` first, and then the frames that others queued meanwhile.
    /// Returns the bytes written, and why the connection is closing if it is.
    pub(super) fn end_turn(
        &self,
        replies: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> (usize, Option<CloseReason>) {
        let mut guard = self.lock();
        let locked = &mut *guard;
        let wire = self.wire(locked.aside.as_deref());
        locked.state.end_turn(replies, wire);
        self.publish_direct(locked);
        let mut sent = 0;
        if let (false, Some(stream)) = (replies.is_empty(), &mut locked.stream) {
            // An error is not handled here: the bytes stay queued, and the write below
            // meets it again.
            sent = stream.try_write(Some(cx), replies).unwrap_or_default();
            locked.state.replied(replies, sent);
            replies.clear();
        }
        while locked.state.driver_writes() {
            sent += self.write(locked, scratch, Some(cx));
            // Polling registers the driver's waker. If the socket has become writable in between,
            // writing continues, because no wake-up would follow.
            let writable = match &mut locked.stream {
                Some(stream) if locked.state.is_blocked() => stream.poll_writable(cx).is_ready(),
                _ => false,
            };
            if !writable {
                break;
            }
        }
        match &mut locked.stream {
            None if locked.state.has_frames() => locked.wake_poll(),
            None => {}
            Some(stream) => {
                if let Poll::Ready(Err(_)) = stream.poll_flush(cx) {
                    self.abort(locked, CloseReason::TransportError);
                }
            }
        }
        (sent, locked.state.closing())
    }

    /// Whether replies may be written ahead of the outbox.
    pub(super) fn may_reply_directly(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// The turn begins to handle the bytes that were read.
    pub(super) fn begin_replies(&self, locked: &mut Locked) {
        if self.is_plain {
            return;
        }
        let reach = locked.reach();
        locked.state.begin_replies(reach);
        self.publish_direct(locked);
    }

    /// Whether a closing connection has nothing more to do: everything was written and the peer has
    /// closed too, or its time has passed.
    pub(super) fn poll_finished(&self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<()> {
        let mut locked = self.lock();
        let said_farewell = match locked.aside.as_deref() {
            Some(Aside::Polling(polling)) => polling.said_farewell(),
            Some(Aside::Plain(plain)) => plain.said_farewell(),
            None => false,
        };
        if locked.state.is_over() || said_farewell {
            return Poll::Ready(());
        }
        let has_frames = locked.state.has_frames();
        let Some(stream) = locked.stream.as_mut().filter(|_| !has_frames) else {
            return Poll::Pending;
        };
        // Closing a socket with unread bytes makes the system send a reset, which may discard the
        // last written bytes at the client. So the rest is read until the client has closed, too.
        stream.shut_down(cx);
        loop {
            match stream.poll_read(cx, scratch) {
                Poll::Ready(Ok(Read { count: 0, .. }) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Gives back everything but the memory of the connection itself, which others may still
    /// hold.
    pub(super) fn release(&self) {
        let mut locked = self.lock();
        let slot = locked.slot;
        locked.state.release();
        locked.driver = None;
        locked.wake_poll();
        // Dropped without the lock: closing the descriptor is a system call.
        let stream = locked.stream.take();
        drop(locked);
        drop(stream);
        self.lane().sessions().remove(self.id.as_str(), slot);
    }

    pub(super) fn lane(&self) -> &Lane {
        self.engine.lane(self.lane_index())
    }
}

impl Batch {
    pub(crate) fn flush(self) {
        if let Some(first) = self.0.first() {
            let first = Arc::clone(first);
            first.lane().flush_later(self.0);
        }
    }
}

impl Locked {
    fn reach(&self) -> Reach {
        if self.stream.is_some() {
            return Reach::WebSocket;
        }
        let is_waiting = match self.aside.as_deref() {
            Some(Aside::Polling(polling)) => polling.is_waiting(),
            Some(Aside::Plain(plain)) => plain.is_waiting(),
            None => false,
        };
        if is_waiting {
            Reach::WaitingPoll
        } else {
            Reach::BetweenPolls
        }
    }

    pub(super) fn polling(&mut self) -> Option<&mut Polling> {
        match self.aside.as_deref_mut() {
            Some(Aside::Polling(polling)) => Some(polling),
            _ => None,
        }
    }

    pub(super) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    fn wake_poll(&mut self) {
        match self.aside.as_deref_mut() {
            Some(Aside::Polling(polling)) => polling.wake_poll(),
            Some(Aside::Plain(plain)) => plain.wake(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::{
        metrics::Metrics,
        transport::{config::Config, engine::Phase, websocket},
    };

    #[tokio::test]
    async fn a_websocket_that_a_drain_finds_unopened_gets_its_response_before_the_close_frame() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut client, _) = listener.accept().unwrap();
        let engine = Arc::new(Engine::new(Config::default(), Arc::new(Metrics::new()), 1));
        engine.enter(Phase::Closing);
        let stream = Some(Stream::Tcp(tcp));
        let form = WireForm {
            revision: Revision::V4,
            base64: false,
        };
        let connection = Connection::new(&engine, form, stream, None);
        connection.begin(Frame::packet("0{}"), Some(b"head "));
        connection.flush(&mut Vec::new());
        connection.release();
        let mut written = Vec::new();
        client.read_to_end(&mut written).unwrap();
        let mut expected = b"head ".to_vec();
        let reason = CloseReason::ServerShutdown;
        websocket::append_close(&mut expected, reason.websocket_code());
        assert_eq!(written, expected);
    }
}
