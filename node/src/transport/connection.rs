//! One client's connection: its session, its outbox, its transport, under one small lock.
//!
//! The lock is a leaf but for the timer wheel of the connection's lane, which is taken under it.
//! Anyone may push and close; only the connection's driver reads; whoever finds the transport
//! ready writes: the lane's task, or the driver at the end of its turn.

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
    engine::Engine,
    frame::Frame,
    lane::{Lane, Slot},
    outbox::Outbox,
    polling::Polling,
    stream::{Read, Stream},
    websocket,
};
use crate::{
    clock::Time,
    close::{CloseReason, Limit},
    ids::EngineId,
};
use roomcast_protocol::engine_io::{
    open::{Revision, TransportName},
    packet::Packet,
    session::{Received, Session, Tick, UnexpectedPacket},
};

/// Frames that together are not larger than this are copied into one buffer and written with one
/// call; copying a few kilobytes is cheaper than a vector of buffers.
const COALESCE_BYTES: usize = 16 * 1024;

/// How many times the limit of the outbox may be queued before a write has been tried: an
/// application may emit a lot at once to a client that reads well.
const BURST: usize = 16;

/// How long a closed WebSocket may take to read what was still queued and to close its side.
const WEBSOCKET_LINGER: Duration = Duration::from_secs(5);

/// How long a polling client may take to fetch its last packets.
const POLLING_LINGER: Duration = Duration::from_secs(30);

/// The same while the whole server shuts down: clients that poll come back within a round trip, or
/// never.
const SHUTDOWN_LINGER: Duration = Duration::from_secs(2);

pub(crate) struct Connection {
    engine: Arc<Engine>,
    state: Mutex<State>,
    id: EngineId,
    lane: u16,
    revision: Revision,
    /// Whether a polling client of revision 3 takes text only.
    b64: bool,
    /// Replies of the driver's turn may be written ahead of the outbox, which was empty when the
    /// turn began. Cleared with the first frame that is queued; read without the lock, by the
    /// driver, for which whatever its handlers have seen has happened before.
    direct: AtomicBool,
}

pub(super) struct State {
    pub(super) session: Session,
    pub(super) outbox: Outbox,
    /// None while the client polls, and after the end.
    pub(super) stream: Option<Stream>,
    /// Wakes the driver.
    driver: Option<Waker>,
    /// While the client polls, and until what it left behind is handled.
    pub(super) polling: Option<Box<Polling>>,
    slot: Slot,
    /// The tick for which the lane's wheel holds the valid timer.
    timer: u64,
    /// When an unused connection, or a closing one, has had its time.
    expires: Time,
    pub(super) closing: Option<Box<CloseReason>>,
    /// What this connection adds to the gauge of waiting bytes.
    counted: u32,
    /// The lane's task will flush.
    dirty: bool,
    /// The driver is in its turn and will flush at the end of it.
    in_turn: bool,
    /// The kernel's buffer is full; the driver waits for writability.
    blocked: bool,
    /// The time of a closing connection is over.
    expired: bool,
}

/// The connection is closed, or was closed by this very packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// Connections that a broadcast made dirty, all of one lane.
#[derive(Default)]
pub(crate) struct Batch(Vec<Arc<Connection>>);

enum Push {
    Queued { flush: bool },
    Dropped,
    Closed,
}

impl Connection {
    /// Registers a new connection; its open packet is queued by the caller.
    pub(super) fn new(
        engine: &Arc<Engine>,
        revision: Revision,
        stream: Option<Stream>,
        polling: Option<Box<Polling>>,
        b64: bool,
    ) -> Arc<Self> {
        let now = engine.clock.now();
        let id = engine.ids.engine_id();
        let lane = engine.lane_index(id.as_str());
        let state = State {
            session: Session::new(revision, engine.config.heartbeat, now),
            outbox: Outbox::default(),
            stream,
            driver: None,
            polling,
            slot: 0,
            timer: 0,
            expires: now.after(engine.config.connect_timeout),
            closing: None,
            counted: 0,
            dirty: false,
            in_turn: false,
            blocked: false,
            expired: false,
        };
        let connection = Arc::new(Self {
            engine: Arc::clone(engine),
            state: Mutex::new(state),
            id,
            lane: u16::try_from(lane).expect("few lanes"),
            revision,
            b64,
            direct: AtomicBool::new(false),
        });
        let slot = connection.lane().insert(&connection);
        let mut state = connection.state.lock();
        state.slot = slot;
        connection.arm(&mut state);
        if engine.is_draining() {
            // The drain has begun while the connection was being opened, and may not have seen it.
            connection.begin_close(&mut state, CloseReason::ServerShutdown);
        }
        drop(state);
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
        self.b64
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The transport that the client uses now.
    pub(crate) fn transport(&self) -> TransportName {
        let state = self.lock();
        if state.stream.is_none() && state.polling.is_some() {
            TransportName::Polling
        } else {
            TransportName::WebSocket
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closing.is_some()
    }

    /// The connection is in use: the connect timeout does not apply any more.
    pub(crate) fn claim(&self) {
        let mut state = self.lock();
        if state.closing.is_none() {
            state.expires = Time::from_millis(u64::MAX);
        }
    }

    /// Queues what opens the session on the client's side. The driver, which is about to be started,
    /// writes it in its first turn. A connection that is closed already needs no opening, but the
    /// head of its WebSocket comes before the close frame.
    pub(super) fn begin(&self, opening: &Frame, head: Option<&[u8]>) {
        let mut state = self.lock();
        if state.closing.is_none() {
            state.outbox.push(opening.clone());
        } else if let Some(head) = head {
            state.outbox.push_first(Frame::raw(head));
        }
    }

    /// Queues a frame and has it written soon.
    pub(crate) fn send(self: &Arc<Self>, frame: &Frame, volatile: bool) -> Result<(), Closed> {
        let mut state = self.lock();
        // Within the driver's turn, the end of the turn writes it.
        let later = !state.in_turn;
        match self.push(&mut state, frame, volatile, later) {
            Push::Queued { flush: false } | Push::Dropped => return Ok(()),
            Push::Closed => return Err(Closed),
            Push::Queued { flush: true } => {}
        }
        drop(state);
        self.lane().flush_one_later(Arc::clone(self));
        Ok(())
    }

    /// Queues a frame; if nobody is about to flush, the connection goes into the batch. So does
    /// the connection whose handler broadcasts: were its copy written with its turn, a client that
    /// waits for its own copy before it sends again would run ahead of everybody else.
    pub(crate) fn deliver(self: &Arc<Self>, frame: &Frame, volatile: bool, batch: &mut Batch) {
        let push = self.push(&mut self.lock(), frame, volatile, true);
        if matches!(push, Push::Queued { flush: true }) {
            batch.0.push(Arc::clone(self));
        }
    }

    /// `later`: the lane shall flush, if it is not about to do so already.
    fn push(&self, state: &mut State, frame: &Frame, volatile: bool, later: bool) -> Push {
        if state.closing.is_some() {
            return Push::Closed;
        }
        if volatile && !state.can_flush() {
            self.engine.metrics.volatile_dropped.inc();
            return Push::Dropped;
        }
        let (queued, limit) = (state.outbox.bytes(), self.engine.config.limits.outbox_bytes);
        let over = queued > 0 && queued + frame.cost() > limit;
        // Only a write that was tried says that the client does not read.
        let is_slow = !state.can_flush() || queued > BURST * limit;
        if over && is_slow {
            self.begin_close(state, CloseReason::LimitReached(Limit::Outbox));
            return Push::Closed;
        }
        state.outbox.push(frame.clone());
        self.direct.store(false, Ordering::Relaxed);
        let flush = later && !state.dirty && state.can_flush();
        state.dirty |= flush;
        Push::Queued { flush }
    }

    /// Has the driver look at what was decided about its sockets.
    pub(crate) fn wake(&self) {
        self.lock().wake_driver();
    }

    /// Ends the connection. The first reason counts.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.begin_close(&mut self.lock(), reason);
    }

    pub(super) fn begin_close(&self, state: &mut State, reason: CloseReason) {
        if state.closing.is_some() {
            // A client that takes its time to fetch its last packets does not hold up a shutdown.
            let soon = self.engine.clock.now().after(SHUTDOWN_LINGER);
            if matches!(reason, CloseReason::ServerShutdown) && soon < state.expires {
                state.expires = soon;
                self.arm(state);
            }
            return;
        }
        state.closing = Some(Box::new(reason));
        self.direct.store(false, Ordering::Relaxed);
        let linger = match reason {
            CloseReason::ServerShutdown => SHUTDOWN_LINGER,
            // Whoever did not answer for that long will not fetch anything any more.
            CloseReason::PingTimeout => Duration::ZERO,
            _ if state.stream.is_some() => WEBSOCKET_LINGER,
            _ => POLLING_LINGER,
        };
        state.expires = self.engine.clock.now().after(linger);
        self.arm(state);
        // A frame that is on the wire in part cannot be followed by a close frame, unless the
        // rest of it follows too.
        let cut = state.outbox.written() > 0 && !reason.flushes();
        if !reason.flushes() {
            state.outbox.clear();
        }
        if state.stream.is_some() && !cut && !state.expired && !reason.transport_is_gone() {
            state.outbox.push(close_frame(reason));
        }
        state.wake_driver();
        if let Some(polling) = &mut state.polling {
            polling.wake_poll();
        }
    }

    /// Writes what is queued, or lets a waiting poll fetch it; answers the bytes written.
    pub(super) fn flush(&self, scratch: &mut Vec<u8>) -> usize {
        let mut state = self.lock();
        state.dirty = false;
        if state.in_turn {
            return 0;
        }
        if state.stream.is_some() {
            return if state.blocked {
                0
            } else {
                self.write(&mut state, scratch, None)
            };
        }
        if let Some(polling) = &mut state.polling {
            polling.wake_poll();
        }
        0
    }

    /// Writes to the WebSocket until all is written or the kernel takes no more.
    fn write(
        &self,
        state: &mut State,
        scratch: &mut Vec<u8>,
        mut cx: Option<&mut Context<'_>>,
    ) -> usize {
        let mut total = 0;
        let revision = self.revision;
        let State {
            outbox,
            stream: Some(stream),
            ..
        } = state
        else {
            return 0;
        };
        let len = |frame: &Frame| frame.websocket(revision).len();
        let error = loop {
            let Some(first) = outbox.first() else {
                state.blocked = false;
                self.count(state);
                return total;
            };
            let first = &first.websocket(revision)[outbox.written()..];
            let bytes = match outbox.iter().nth(1) {
                Some(second) if first.len() + len(second) <= COALESCE_BYTES => {
                    gather(outbox, revision, scratch);
                    &scratch[..]
                }
                _ => first,
            };
            match stream.try_write(cx.as_deref_mut(), bytes) {
                Ok(count) => {
                    total += count;
                    outbox.advance(count, len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            state.blocked = true;
            self.count(state);
            if cx.is_none() {
                state.wake_driver();
            }
        } else {
            state.outbox.clear();
            state.expired = true;
            self.begin_close(state, CloseReason::TransportError);
            state.wake_driver();
        }
        total
    }

    /// Looks at the heartbeat and at the time that is left; called by the lane's task.
    pub(super) fn on_timer(self: &Arc<Self>, tick: u64, now: Time) {
        let mut state = self.lock();
        if state.timer != tick {
            return;
        }
        self.count(&mut state);
        if state.closing.is_some() {
            if now >= state.expires {
                state.expired = true;
                state.wake_driver();
                return;
            }
        } else if now >= state.expires {
            self.begin_close(&mut state, CloseReason::ConnectTimeout);
        } else {
            match state.session.tick(self.engine.config.heartbeat, now) {
                Tick::Nothing => {}
                Tick::TimedOut => self.begin_close(&mut state, CloseReason::PingTimeout),
                Tick::SendPing => {
                    if let Push::Queued { flush: true } =
                        self.push(&mut state, &self.engine.ping, false, true)
                    {
                        self.lane().flush_one_later(Arc::clone(self));
                    }
                }
            }
        }
        self.arm(&mut state);
    }

    fn arm(&self, state: &mut State) {
        let at = match &state.closing {
            Some(_) => state.expires,
            None => state.expires.min(state.session.deadline()),
        };
        state.timer = self.lane().arm(state.slot, at);
    }

    /// The client's WebSocket takes over from polling. `read` was received on it already.
    pub(super) fn attach(self: &Arc<Self>, stream: Stream, read: Vec<u8>) -> Result<(), Closed> {
        let mut state = self.lock();
        let state = &mut *state;
        if state.expired {
            return Err(Closed);
        }
        match &mut state.polling {
            Some(polling) if !polling.said_farewell() => polling.attached(read),
            _ => return Err(Closed),
        }
        state.stream = Some(stream);
        if let Some(reason) = &state.closing {
            // What is still queued reaches the client on its new transport.
            state.outbox.push(close_frame(**reason));
        }
        state.wake_driver();
        Ok(())
    }

    // What follows is for the driver.

    /// Has the session look at a packet. The timer stands where the pong is due; a pong that brings
    /// the next ping before that sets it anew.
    pub(super) fn receive<'p>(&self, packet: Packet<'p>) -> Result<Received<'p>, UnexpectedPacket> {
        let (heartbeat, now) = (self.engine.config.heartbeat, self.engine.clock.now());
        let mut state = self.lock();
        let deadline = state.session.deadline();
        let received = state.session.receive(packet, heartbeat, now);
        if state.session.deadline() < deadline {
            self.arm(&mut state);
        }
        received
    }

    /// Starts or continues the driver's turn: until [`end_turn`](Self::end_turn), nobody else
    /// writes to the WebSocket.
    pub(super) fn turn<'a>(&'a self, cx: &Context<'_>) -> MutexGuard<'a, State> {
        let mut state = self.lock();
        state.in_turn = true;
        match &mut state.driver {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
        state
    }

    /// Ends the turn: writes what it produced (`replies`, which come first) and what others
    /// queued meanwhile. Answers the bytes written, and why the connection is closing if it is.
    pub(super) fn end_turn(
        &self,
        replies: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> (usize, Option<CloseReason>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.in_turn = false;
        let mut sent = 0;
        if let (false, Some(stream)) = (replies.is_empty(), &mut state.stream) {
            // Replies are only written while the outbox was empty, so they are first in order.
            if state.outbox.bytes() > 0 && replies.len() + state.outbox.bytes() <= COALESCE_BYTES {
                for frame in state.outbox.iter() {
                    replies.extend_from_slice(frame.websocket(self.revision));
                }
                state.outbox.clear();
            }
            sent = stream.try_write(Some(cx), replies).unwrap_or_default();
            if sent < replies.len() {
                // An error that is not a full buffer comes again with the next write.
                state.outbox.push_first(Frame::raw(&replies[sent..]));
            }
            replies.clear();
        }
        // A broadcast that came meanwhile is written by the lane, in the order of its recipients.
        while !state.dirty || state.blocked || state.closing.is_some() {
            sent += self.write(state, scratch, Some(cx));
            if !state.blocked {
                break;
            }
            let Some(stream) = &mut state.stream else {
                break;
            };
            if stream.poll_writable(cx).is_pending() {
                break;
            }
        }
        if state.stream.is_none()
            && !state.outbox.is_empty()
            && let Some(polling) = &mut state.polling
        {
            polling.wake_poll();
        }
        (sent, state.closing.as_deref().copied())
    }

    /// Whether replies may be written ahead of the outbox.
    pub(super) fn may_reply_directly(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// The turn begins to handle what was read.
    pub(super) fn begin_replies(&self, state: &State) {
        let direct = state.outbox.is_empty() && state.stream.is_some() && !state.blocked;
        self.direct.store(direct, Ordering::Relaxed);
    }

    /// Whether a closing connection has nothing more to do: everything was written and the peer
    /// has closed too, or its time is over.
    pub(super) fn poll_finished(&self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<()> {
        let mut state = self.lock();
        let over = state.expired
            || state
                .closing
                .as_ref()
                .is_some_and(|reason| reason.transport_is_gone())
            || state
                .polling
                .as_ref()
                .is_some_and(|polling| polling.said_farewell());
        if over {
            return Poll::Ready(());
        }
        if !state.outbox.is_empty() {
            return Poll::Pending;
        }
        let Some(stream) = &mut state.stream else {
            return Poll::Pending;
        };
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
        let mut state = self.lock();
        let slot = state.slot;
        state.outbox.clear();
        self.count(&mut state);
        state.driver = None;
        if let Some(polling) = &mut state.polling {
            polling.wake_poll();
        }
        let stream = state.stream.take();
        drop(state);
        drop(stream);
        self.lane().remove(self, slot);
    }

    /// Brings the gauge of waiting bytes up to date. Done when the kernel takes no more, when it
    /// has taken all, and with the heartbeat: a push costs nothing.
    fn count(&self, state: &mut State) {
        let waiting = u32::try_from(state.outbox.bytes()).unwrap_or(u32::MAX);
        if waiting != state.counted {
            let more = i64::from(waiting) - i64::from(state.counted);
            self.engine.metrics.outbox_bytes.add(more);
            state.counted = waiting;
        }
    }

    fn lane(&self) -> &Lane {
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

impl State {
    /// Whether flushing now could have an effect, and a volatile packet a chance.
    fn can_flush(&self) -> bool {
        match &self.polling {
            Some(polling) if self.stream.is_none() => polling.is_waiting(),
            _ => !self.blocked,
        }
    }

    /// The client's side of the stream has ended.
    pub(super) fn peer_is_gone(&mut self) {
        self.outbox.clear();
        self.expired = true;
    }

    pub(super) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }
}

fn close_frame(reason: CloseReason) -> Frame {
    let mut close = Vec::new();
    websocket::append_close(&mut close, reason.websocket_code());
    Frame::raw(&close)
}

/// Copies as many frames as fit; the first may be written in part.
fn gather(outbox: &Outbox, revision: Revision, scratch: &mut Vec<u8>) {
    scratch.clear();
    let mut skip = outbox.written();
    for frame in outbox.iter() {
        let bytes = &frame.websocket(revision)[skip..];
        skip = 0;
        if scratch.len() + bytes.len() > COALESCE_BYTES {
            break;
        }
        scratch.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::{metrics::Metrics, transport::config::Config};

    #[tokio::test]
    async fn a_websocket_that_a_drain_finds_unopened_is_answered_before_it_is_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut client, _) = listener.accept().unwrap();
        let engine = Arc::new(Engine::new(Config::default(), Arc::new(Metrics::new()), 1));
        engine.begin_drain();
        let stream = Some(Stream::Tcp(tcp));
        let connection = Connection::new(&engine, Revision::V4, stream, None, false);
        connection.begin(&Frame::packet("0{}"), Some(b"head "));
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
