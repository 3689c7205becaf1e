//! The task of one connection: it reads, passes the bytes to the protocol, and waits where it would
//! block.
//!
//! The task's future is two pointers; everything else belongs to the connection, or is a buffer of
//! the thread that is lent for one turn. An idle connection owns no buffer.
//!
//! ```text
//! New ──▶ Open ── a reason to close ──▶ Closing ── all written, or out of time ──▶ Released ──▶ end
//!
//! a turn:  read at most 8 times ─▶ handle ─▶ poll running handlers ─▶ write replies and outbox
//! woken by: the socket (readable, or writable again), a posted body, a handler, a close
//! ```
//!
//! **Why turns are bounded.** The runtime has few workers, and a client that sends
//! without a pause would keep one of them for ever. After [`READS_PER_TURN`] reads the task wakes
//! itself, so that the other ready tasks run first.
//!
//! **Why reading may pause.** If the protocol takes no more, the bytes that were read
//! stay in `unread`, and nothing more is read. The client's TCP window fills, so the
//! pressure reaches the client instead of growing a queue here.
//!
//! **Why the stages.** The protocol is notified of the end exactly once, when the stage
//! becomes `Closing`. Its handlers may run on for any time, but the descriptor is given
//! back as soon as the last bytes are written. The permit is kept until the handlers
//! are done, because a drain waits for the permits.

use std::{
    borrow::Cow,
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use prometheus::IntGauge;

use super::{
    connection::{Carrier, Connection},
    engine::{ConnectionPermit, Place},
    frame::Frame,
    polling::Posted,
    stream::Read,
    websocket::{self, Event, Opcode, Refusal},
};
use crate::close::{CloseReason, Limit};
use roomcast_protocol::engine_io::{
    open::Revision,
    packet::{self, Message, Packet, PacketError},
    payload, payload_v3,
    session::Received,
};

/// Bytes read at once.
/// It is a buffer of the thread, so its size does not depend on the number of
/// connections.
const READ_BYTES: usize = 64 * 1024;

/// Reads in one turn before other connections get theirs.
const READS_PER_TURN: usize = 8;

/// Bytes of replies that may gather in one turn. Further ones go to the outbox.
const REPLY_BYTES: usize = 64 * 1024;

/// The protocol on top of a connection. Each connection has one, used by its driver alone.
pub(crate) trait Protocol: Send + 'static {
    /// Called once, when the connection is open.
    fn open(&mut self, turn: &mut Turn<'_, '_>);

    fn text(&mut self, turn: &mut Turn<'_, '_>, text: &str) -> Result<(), CloseReason>;

    fn binary(&mut self, turn: &mut Turn<'_, '_>, bytes: &[u8]) -> Result<(), CloseReason>;

    /// Continues the work in progress.
    fn poll(&mut self, turn: &mut Turn<'_, '_>);

    /// Whether another message may be handed over now. When it may not, reading pauses until
    /// [`poll`](Self::poll) has finished something.
    fn is_ready(&self) -> bool;

    /// Called once, when the connection has ended.
    fn close(&mut self, turn: &mut Turn<'_, '_>, reason: CloseReason);

    /// Ready when nothing is in progress; polled after the end.
    fn poll_done(&mut self, turn: &mut Turn<'_, '_>) -> Poll<()>;
}

/// The driver's turn, as the protocol sees it.
pub(crate) struct Turn<'a, 'w> {
    pub(crate) connection: &'a Arc<Connection>,
    /// Wakes the driver.
    pub(crate) cx: &'a mut Context<'w>,
    replies: &'a mut Vec<u8>,
}

impl Turn<'_, '_> {
    /// Sends the reply to something that was just received. While nothing else is queued, it is
    /// written together with the other replies of this turn, without a separate frame.
    pub(crate) fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>), binary: &[Bytes]) {
        // Binary needs separate frames after the text, which the outbox writes together.
        let direct = binary.is_empty()
            && self.replies.len() < REPLY_BYTES
            && self.connection.may_reply_directly();
        if direct {
            websocket::append_text(self.replies, |out| {
                out.push(b'4');
                write(out);
            });
        } else {
            self.send(&Frame::message(write, binary));
        }
    }

    /// Writes the output of the turn. Returns why the connection is closing, if it is.
    fn end(&mut self, gather: &mut Vec<u8>) -> Option<CloseReason> {
        let (sent, closing) = self.connection.end_turn(self.replies, gather, self.cx);
        if sent > 0 {
            let metrics = &self.connection.engine().metrics;
            metrics.bytes_sent.inc_by(sent as u64);
        }
        closing
    }

    /// Sends a frame after everything that was sent before.
    pub(crate) fn send(&mut self, frame: &Frame) {
        // A connection that has closed meanwhile takes no more frames, and its client expects none.
        let _ = self.connection.send(frame, false);
    }
}

/// Starts the driver of a connection on the current runtime.
pub(crate) fn spawn<P: Protocol>(
    connection: &Arc<Connection>,
    protocol: P,
    permit: ConnectionPermit,
) {
    spawn_with(connection, protocol, permit, Vec::new());
}

/// The same for a WebSocket on which this was received already.
pub(crate) fn spawn_with<P: Protocol>(
    connection: &Arc<Connection>,
    protocol: P,
    permit: ConnectionPermit,
    read: Vec<u8>,
) {
    let core = Core {
        protocol,
        reader: websocket::Reader::default(),
        unread: (!read.is_empty()).then(|| Box::new(read)),
        stage: Stage::New,
        carrier: connection.transport(),
        place: permit.take(),
        has_place: true,
    };
    // The task ends by itself. A draining server waits for the count of permits to reach zero.
    drop(tokio::spawn(Driver {
        connection: Arc::clone(connection),
        core: Box::new(core),
    }));
}

struct Driver<P> {
    connection: Arc<Connection>,
    core: Box<Core<P>>,
}

struct Core<P> {
    protocol: P,
    reader: websocket::Reader,
    /// Bytes of the WebSocket that were read while too many events were in flight.
    #[expect(
        clippy::box_collection,
        reason = "nearly always absent, in every connection"
    )]
    unread: Option<Box<Vec<u8>>>,
    stage: Stage,
    /// Under which the gauge of connections counts this one.
    carrier: Carrier,
    /// An option of it would cost each connection eight bytes.
    place: Place,
    has_place: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Open,
    /// The protocol knows of the end; queued packets are still written.
    Closing,
    /// The transport is closed; handlers may still run.
    Released,
}

/// Buffers of the thread, lent to one turn after the other.
struct Scratch {
    read: Box<[u8]>,
    replies: Vec<u8>,
    gather: Vec<u8>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl<P: Protocol> Future for Driver<P> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { connection, core } = self.get_mut();
        let mut scratch = SCRATCH.take().unwrap_or_else(|| {
            let read = vec![0; READ_BYTES].into();
            Box::new(Scratch {
                read,
                replies: Vec::new(),
                gather: Vec::new(),
            })
        });
        let done = core.turn(connection, &mut scratch, cx);
        // A single large turn must not cost the thread its memory for ever.
        if scratch.replies.capacity() > 4 * REPLY_BYTES {
            scratch.replies = Vec::new();
        }
        // Taken and set again rather than borrowed: a handler that panics leaves the
        // thread without buffers for a moment, and never with a borrowed cell.
        SCRATCH.set(Some(scratch));
        done
    }
}

impl<P> Drop for Driver<P> {
    /// A driver may be dropped with its runtime.
    fn drop(&mut self) {
        self.core.give_back(&self.connection);
    }
}

impl<P> Core<P> {
    fn give_back(&mut self, connection: &Connection) {
        if std::mem::take(&mut self.has_place) {
            let place = std::mem::take(&mut self.place);
            connection.engine().give_back(place);
        }
    }
}

impl<P: Protocol> Core<P> {
    fn turn(
        &mut self,
        connection: &Arc<Connection>,
        scratch: &mut Scratch,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Scratch {
            read,
            replies,
            gather,
        } = scratch;
        let mut turn = Turn {
            connection,
            cx,
            replies,
        };
        let metrics = &connection.engine().metrics;
        if matches!(self.stage, Stage::New | Stage::Open) {
            if self.stage == Stage::New {
                self.stage = Stage::Open;
                // The waker has to be known before a handler can cause anything.
                drop(connection.turn(turn.cx));
                self.protocol.open(&mut turn);
            }
            let progress = self.receive(&mut turn, read);
            self.protocol.poll(&mut turn);
            let resumes = progress == Progress::Paused && self.protocol.is_ready();
            // Nothing else would wake the task: bytes that were received already, or
            // left in the socket, cause no event.
            if resumes || progress == Progress::Unfinished {
                turn.cx.waker().wake_by_ref();
            }
            let Some(reason) = turn.end(gather) else {
                return Poll::Pending;
            };
            self.stage = Stage::Closing;
            metrics.closed(reason);
            // Only here, outside the connection's lock, because writing to the log may
            // block.
            if let Some(backlog) = connection.take_backlog() {
                tracing::warn!(
                    reason = reason.label(),
                    transport = self.carrier.as_str(),
                    %backlog,
                    "a slow client is disconnected"
                );
            }
            self.counted(connection).dec();
            self.protocol.close(&mut turn, reason);
        }
        if self.stage == Stage::Closing {
            drop(connection.turn(turn.cx));
            turn.end(gather);
            // The descriptor is released although handlers may still run: they need no
            // transport.
            if connection.poll_finished(turn.cx, read).is_ready() {
                connection.release();
                self.stage = Stage::Released;
            }
        }
        let done = self.protocol.poll_done(&mut turn);
        turn.replies.clear();
        if self.stage == Stage::Released && done.is_ready() {
            self.give_back(connection);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Reads and handles the available bytes.
    fn receive(&mut self, turn: &mut Turn<'_, '_>, buffer: &mut [u8]) -> Progress {
        for _ in 0..READS_PER_TURN {
            if !self.protocol.is_ready() {
                drop(turn.connection.turn(turn.cx));
                turn.connection
                    .engine()
                    .metrics
                    .limit_reached(Limit::EventsInFlight);
                return Progress::Paused;
            }
            let mut more = true;
            let outcome = match self.next_input(turn, buffer) {
                Input::Nothing => return Progress::Done,
                Input::Posted(posted) => self.handle_posted(turn, &posted),
                Input::Kept(mut bytes) => self.handle_bytes(turn, &mut bytes),
                Input::Read(read) => {
                    more = read.more;
                    self.handle_bytes(turn, &mut buffer[..read.count])
                }
            };
            if let Err(reason) = outcome {
                turn.connection.close(reason);
                return Progress::Done;
            }
            if !more && self.unread.is_none() {
                return Progress::Done;
            }
        }
        Progress::Unfinished
    }

    fn next_input(&mut self, turn: &mut Turn<'_, '_>, buffer: &mut [u8]) -> Input {
        let connection = turn.connection;
        let mut guard = connection.turn(turn.cx);
        let locked = &mut *guard;
        if locked.state.closing().is_some() {
            return Input::Nothing;
        }
        connection.begin_replies(locked);
        if let Some(unread) = self.unread.take() {
            return Input::Kept(*unread);
        }
        if let Some(polling) = locked.polling() {
            if let Some(posted) = polling.take_posted() {
                return Input::Posted(posted);
            }
            // The client still polls: posted bodies are all that can come.
            if !polling.is_over() {
                return Input::Nothing;
            }
            // The upgrade is complete, and all bodies that were posted before are
            // handled. Bytes that the probe has read beyond its packet come first.
            let read = polling.take_read();
            locked.aside = None;
            self.moved_to_websocket(connection);
            return Input::Kept(read);
        }
        let Some(stream) = &mut locked.stream else {
            return Input::Nothing;
        };
        let reason = match stream.poll_read(turn.cx, buffer) {
            Poll::Pending => return Input::Nothing,
            Poll::Ready(Ok(Read { count: 0, .. })) => CloseReason::TransportClose,
            Poll::Ready(Ok(read)) => {
                let metrics = &connection.engine().metrics;
                metrics.bytes_received.inc_by(read.count as u64);
                return Input::Read(read);
            }
            Poll::Ready(Err(_)) => CloseReason::TransportError,
        };
        connection.abort(locked, reason);
        Input::Nothing
    }

    fn moved_to_websocket(&mut self, connection: &Connection) {
        if self.carrier != Carrier::WebSocket {
            self.counted(connection).dec();
            self.carrier = Carrier::WebSocket;
            self.counted(connection).inc();
            connection.engine().metrics.upgrades.inc();
        }
    }

    /// The gauge that counts this connection now.
    fn counted<'c>(&self, connection: &'c Connection) -> &'c IntGauge {
        let metrics = &connection.engine().metrics.transports;
        match self.carrier {
            Carrier::Polling => &metrics.polling.connections,
            Carrier::WebSocket => &metrics.websocket.connections,
            Carrier::Stream => &metrics.streams,
        }
    }

    fn handle_posted(
        &mut self,
        turn: &mut Turn<'_, '_>,
        posted: &Posted,
    ) -> Result<(), CloseReason> {
        let connection = turn.connection;
        let rest = match connection.revision() {
            Revision::V4 => {
                let mut packets = payload::decode(&posted.body);
                self.handle_packets(turn, &mut packets)?;
                packets.rest()
            }
            Revision::V3 => {
                let mut packets = payload_v3::decode(posted.form, &posted.body);
                self.handle_packets(turn, &mut packets)?;
                packets.rest()
            }
        };
        // The protocol took no more in the middle of a body. A later turn reads the rest.
        if let (Some(rest), Some(polling)) = (rest, connection.lock().polling()) {
            polling.put_back(Posted {
                form: posted.form,
                body: posted.body.slice_ref(rest),
            });
        }
        Ok(())
    }

    /// Handles packets until there are none left, or too many events are in flight.
    fn handle_packets<'p>(
        &mut self,
        turn: &mut Turn<'_, '_>,
        packets: &mut impl Iterator<Item = Result<Packet<'p>, PacketError>>,
    ) -> Result<(), CloseReason> {
        while self.protocol.is_ready()
            && let Some(packet) = packets.next()
        {
            self.handle_packet(turn, packet.map_err(undecodable)?)?;
        }
        Ok(())
    }

    fn handle_bytes(
        &mut self,
        turn: &mut Turn<'_, '_>,
        bytes: &mut [u8],
    ) -> Result<(), CloseReason> {
        let engine = turn.connection.engine();
        let limits = websocket::Limits {
            message_bytes: engine.config.max_payload,
            fragments: engine.config.limits.fragments,
        };
        let mut input = bytes;
        while let Some(event) = self.reader.next(&mut input, &limits).map_err(refused)? {
            self.handle_event(turn, &event)?;
            // Copied, because the buffer belongs to the thread. It happens only to
            // clients that are too fast for their handlers.
            if !self.protocol.is_ready() {
                self.unread = (!input.is_empty()).then(|| Box::new(input.to_vec()));
                break;
            }
        }
        Ok(())
    }

    fn handle_event(
        &mut self,
        turn: &mut Turn<'_, '_>,
        event: &Event<'_>,
    ) -> Result<(), CloseReason> {
        let v3 = turn.connection.revision() == Revision::V3;
        let is_plain = turn.connection.is_plain();
        let packet = match event {
            Event::Text(text) if is_plain => return self.protocol.text(turn, text),
            Event::Binary(bytes) if is_plain => return self.protocol.binary(turn, bytes),
            Event::Pong(_) if is_plain => Packet::Pong(""),
            Event::Text(text) if v3 => packet::decode_text_v3(text).map_err(undecodable)?,
            Event::Text(text) => packet::decode_text(text).map_err(undecodable)?,
            Event::Binary(bytes) if v3 => packet::decode_binary_v3(bytes).map_err(undecodable)?,
            Event::Binary(bytes) => Packet::Message(Message::Binary(bytes[..].into())),
            Event::Ping(payload) => {
                // The pong goes through the outbox, because control frames must not
                // split a message that is half written.
                let mut pong = Vec::new();
                websocket::append_pong(&mut pong, payload);
                turn.send(&Frame::raw(&pong));
                return Ok(());
            }
            Event::Pong(_) => return Ok(()),
            Event::Close(close) => {
                let echo = Frame::raw(&echo_of(close.as_ref()));
                turn.connection.close_by_peer(&echo);
                return Err(CloseReason::TransportClose);
            }
        };
        self.handle_packet(turn, packet)
    }

    fn handle_packet(
        &mut self,
        turn: &mut Turn<'_, '_>,
        packet: Packet<'_>,
    ) -> Result<(), CloseReason> {
        let message = match packet {
            // Messages do not touch the session, so they need no lock.
            Packet::Message(message) => message,
            packet => match self.handle_control(turn, packet)? {
                Some(message) => message,
                None => return Ok(()),
            },
        };
        match message {
            Message::Text(text) => self.protocol.text(turn, &text),
            Message::Binary(bytes) => self.protocol.binary(turn, &bytes),
        }
    }

    fn handle_control<'p>(
        &mut self,
        turn: &mut Turn<'_, '_>,
        packet: Packet<'p>,
    ) -> Result<Option<Message<'p>>, CloseReason> {
        match turn.connection.receive(packet) {
            Ok(Received::Message(message)) => Ok(Some(message)),
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::Pong(text)) => {
                turn.send(&Frame::packet(&format!("3{text}")));
                Ok(None)
            }
            Ok(Received::Close) => Err(CloseReason::TransportClose),
            Err(_) => Err(CloseReason::ParseError {
                kind: "unexpected_packet",
                code: None,
            }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing more can be read now.
    Done,
    /// There may be more, but other connections are served first.
    Unfinished,
    /// Too many events are in flight.
    Paused,
}

enum Input {
    Nothing,
    Posted(Posted),
    /// Bytes of the WebSocket that were received before.
    Kept(Vec<u8>),
    Read(Read),
}

/// The close frame that a client gets back, with the code and the reason that it sent.
/// RFC 6455 requires the same code.
pub(super) fn echo_of(close: Option<&(u16, Cow<'_, str>)>) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some((code, reason)) = close {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
    }
    let mut frame = Vec::new();
    websocket::append_frame(&mut frame, Opcode::Close, &payload);
    frame
}

fn undecodable(error: PacketError) -> CloseReason {
    CloseReason::ParseError {
        kind: error.label(),
        code: None,
    }
}

/// Node's server closes without a code, except where the code informs the client.
fn refused(refusal: Refusal) -> CloseReason {
    match refusal {
        Refusal::TooLarge => CloseReason::LimitReached(Limit::MessageSize),
        Refusal::TooManyFragments => CloseReason::LimitReached(Limit::Fragments),
        refusal => CloseReason::ParseError {
            kind: refusal.label(),
            code: Some(refusal.close_code()),
        },
    }
}
