//! The task of one connection: reads, lets the layer above handle what was read, and waits for what
//! would block.
//!
//! The task's future is two pointers; everything else hangs off the connection, or is a buffer of
//! the thread that is lent for the length of one turn. An idle connection owns no buffer.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use prometheus::IntGauge;

use super::{
    connection::Connection,
    engine::{ConnectionPermit, Engine},
    frame::Frame,
    polling::Posted,
    stream::Read,
    websocket::{self, Event, Refusal},
};
use crate::close::{CloseReason, Limit};
use roomcast_protocol::engine_io::{
    open::{Revision, TransportName},
    packet::{self, Message, Packet, PacketError},
    payload, payload_v3,
    session::Received,
};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Reads in one turn before others get theirs.
const READS_PER_TURN: usize = 8;

/// Replies that may gather in one turn before they take the outbox.
const REPLY_BYTES: usize = 64 * 1024;

/// What a connection carries: one per connection, used by its driver alone.
pub(crate) trait Protocol: Send + 'static {
    /// The connection is open.
    fn open(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>);

    fn text(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        text: &str,
    ) -> Result<(), CloseReason>;

    fn binary(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Result<(), CloseReason>;

    /// Goes on with what is in progress.
    fn poll(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>);

    /// Whether another message may be handed over now. When it may not, reading pauses until
    /// [`poll`](Self::poll) has finished something.
    fn is_ready(&self) -> bool;

    /// The connection has ended.
    fn close(&mut self, turn: &mut Turn<'_>, reason: CloseReason, cx: &mut Context<'_>);

    /// Waits for what is still in progress after the end.
    fn poll_done(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>) -> Poll<()>;
}

/// The driver's turn, as the layer above sees it.
pub(crate) struct Turn<'a> {
    pub(crate) connection: &'a Arc<Connection>,
    replies: &'a mut Vec<u8>,
}

impl Turn<'_> {
    /// Sends the answer to something that was just received: written together with the other
    /// answers of this turn, without a frame of its own, as long as nothing else is queued.
    pub(crate) fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>), binary: &[Bytes]) {
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

    /// Sends a frame after everything that was sent before.
    pub(crate) fn send(&mut self, frame: &Frame) {
        // A connection that is closed meanwhile takes no more frames, and nobody waits for them.
        let _ = self.connection.send(frame, false);
    }
}

/// Starts the driver of a connection on the current runtime.
pub(crate) fn spawn<P: Protocol>(
    connection: &Arc<Connection>,
    protocol: P,
    permit: ConnectionPermit,
) {
    let core = Core {
        protocol,
        reader: websocket::Reader::default(),
        unread: None,
        stage: Stage::New,
        on_websocket: connection.transport() == TransportName::WebSocket,
        permit: Some(permit),
    };
    // The connection count owns the task: a draining server waits for it to reach zero.
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
    /// Which transport the gauge of connections counts this one under.
    on_websocket: bool,
    permit: Option<ConnectionPermit>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Open,
    /// The layer above knows of the end; what is queued is still written.
    Closing,
    /// The transport is gone; handlers may still run.
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
        if scratch.replies.capacity() > 4 * REPLY_BYTES {
            scratch.replies = Vec::new();
        }
        SCRATCH.set(Some(scratch));
        done
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
        let engine = connection.engine();
        if matches!(self.stage, Stage::New | Stage::Open) {
            let closing = {
                let mut turn = Turn {
                    connection,
                    replies: &mut *replies,
                };
                if self.stage == Stage::New {
                    self.stage = Stage::Open;
                    drop(connection.turn(cx));
                    self.protocol.open(&mut turn, cx);
                }
                let progress = self.receive(&mut turn, read, cx);
                self.protocol.poll(&mut turn, cx);
                let resumes = progress == Progress::Paused && self.protocol.is_ready();
                if resumes || progress == Progress::Unfinished {
                    cx.waker().wake_by_ref();
                }
                let (sent, closing) = connection.end_turn(replies, gather, cx);
                if sent > 0 {
                    engine.metrics.bytes_sent.inc_by(sent as u64);
                }
                closing
            };
            let Some(reason) = closing else {
                return Poll::Pending;
            };
            self.stage = Stage::Closing;
            engine.metrics.closed(reason);
            self.counted(engine).dec();
            self.protocol.close(
                &mut Turn {
                    connection,
                    replies: &mut *replies,
                },
                reason,
                cx,
            );
        }
        if self.stage == Stage::Closing {
            drop(connection.turn(cx));
            let (sent, _) = connection.end_turn(replies, gather, cx);
            engine.metrics.bytes_sent.inc_by(sent as u64);
            if connection.poll_finished(cx, read).is_ready() {
                connection.release();
                self.stage = Stage::Released;
            }
        }
        let done = self.protocol.poll_done(
            &mut Turn {
                connection,
                replies: &mut *replies,
            },
            cx,
        );
        replies.clear();
        if self.stage == Stage::Released && done.is_ready() {
            self.permit = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Reads and handles what there is.
    fn receive(
        &mut self,
        turn: &mut Turn<'_>,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Progress {
        for _ in 0..READS_PER_TURN {
            if !self.protocol.is_ready() {
                drop(turn.connection.turn(cx));
                turn.connection
                    .engine()
                    .metrics
                    .limit_reached(Limit::EventsInFlight);
                return Progress::Paused;
            }
            let mut more = true;
            let outcome = match self.next_input(turn.connection, buffer, cx) {
                Input::Nothing => return Progress::Done,
                Input::Posted(posted) => self.handle_posted(turn, &posted, cx),
                Input::Kept(mut bytes) => self.handle_bytes(turn, &mut bytes, cx),
                Input::Read(read) => {
                    more = read.more;
                    self.handle_bytes(turn, &mut buffer[..read.count], cx)
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

    fn next_input(
        &mut self,
        connection: &Connection,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Input {
        let mut guard = connection.turn(cx);
        let locked = &mut *guard;
        if locked.state.closing().is_some() {
            return Input::Nothing;
        }
        connection.begin_replies(locked);
        if let Some(unread) = self.unread.take() {
            return Input::Kept(*unread);
        }
        if let Some(polling) = &mut locked.polling {
            if let Some(posted) = polling.take_posted() {
                return Input::Posted(posted);
            }
            if polling.is_over() {
                let read = polling.take_read();
                locked.polling = None;
                self.moved_to_websocket(connection);
                return Input::Kept(read);
            }
            return Input::Nothing;
        }
        let Some(stream) = &mut locked.stream else {
            return Input::Nothing;
        };
        match stream.poll_read(cx, buffer) {
            Poll::Pending => Input::Nothing,
            Poll::Ready(Ok(Read { count: 0, .. })) => {
                connection.abort(locked, CloseReason::TransportClose);
                Input::Nothing
            }
            Poll::Ready(Ok(read)) => {
                let received = &connection.engine().metrics.bytes_received;
                received.inc_by(read.count as u64);
                Input::Read(read)
            }
            Poll::Ready(Err(_)) => {
                connection.abort(locked, CloseReason::TransportError);
                Input::Nothing
            }
        }
    }

    fn moved_to_websocket(&mut self, connection: &Connection) {
        if !self.on_websocket {
            let engine = connection.engine();
            self.counted(engine).dec();
            self.on_websocket = true;
            self.counted(engine).inc();
            engine.metrics.upgrades.inc();
        }
    }

    /// The gauge that counts this connection now.
    fn counted<'h>(&self, engine: &'h Engine) -> &'h IntGauge {
        let metrics = &engine.metrics;
        if self.on_websocket {
            &metrics.websocket.connections
        } else {
            &metrics.polling.connections
        }
    }

    fn handle_posted(
        &mut self,
        turn: &mut Turn<'_>,
        posted: &Posted,
        cx: &mut Context<'_>,
    ) -> Result<(), CloseReason> {
        let connection = turn.connection;
        let rest = match connection.revision() {
            Revision::V4 => {
                let mut packets = payload::decode(&posted.body);
                self.handle_packets(turn, &mut packets, cx)?;
                packets.rest()
            }
            Revision::V3 => {
                let mut packets = payload_v3::decode(posted.form, &posted.body);
                self.handle_packets(turn, &mut packets, cx)?;
                packets.rest()
            }
        };
        if let (Some(rest), Some(polling)) = (rest, &mut connection.lock().polling) {
            polling.put_back(Posted {
                form: posted.form,
                body: posted.body.slice_ref(rest),
            });
        }
        Ok(())
    }

    /// Handles packets until there are no more, or too many events are in flight.
    fn handle_packets<'p>(
        &mut self,
        turn: &mut Turn<'_>,
        packets: &mut impl Iterator<Item = Result<Packet<'p>, PacketError>>,
        cx: &mut Context<'_>,
    ) -> Result<(), CloseReason> {
        while self.protocol.is_ready()
            && let Some(packet) = packets.next()
        {
            self.handle_packet(turn, packet.map_err(undecodable)?, cx)?;
        }
        Ok(())
    }

    fn handle_bytes(
        &mut self,
        turn: &mut Turn<'_>,
        bytes: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<(), CloseReason> {
        let engine = turn.connection.engine();
        let limits = websocket::Limits {
            message_bytes: engine.config.max_payload,
            fragments: engine.config.limits.fragments,
        };
        let mut input = bytes;
        while let Some(event) = self.reader.next(&mut input, &limits).map_err(refused)? {
            self.handle_event(turn, &event, cx)?;
            if !self.protocol.is_ready() {
                self.unread = (!input.is_empty()).then(|| Box::new(input.to_vec()));
                break;
            }
        }
        Ok(())
    }

    fn handle_event(
        &mut self,
        turn: &mut Turn<'_>,
        event: &Event<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), CloseReason> {
        let v3 = turn.connection.revision() == Revision::V3;
        let packet = match event {
            Event::Text(text) if v3 => packet::decode_text_v3(text).map_err(undecodable)?,
            Event::Text(text) => packet::decode_text(text).map_err(undecodable)?,
            Event::Binary(bytes) if v3 => packet::decode_binary_v3(bytes).map_err(undecodable)?,
            Event::Binary(bytes) => Packet::Message(Message::Binary(bytes[..].into())),
            Event::Ping(payload) => {
                let mut pong = Vec::new();
                websocket::append_pong(&mut pong, payload);
                turn.send(&Frame::raw(&pong));
                return Ok(());
            }
            Event::Pong(_) => return Ok(()),
            Event::Close(_) => return Err(CloseReason::TransportClose),
        };
        self.handle_packet(turn, packet, cx)
    }

    fn handle_packet(
        &mut self,
        turn: &mut Turn<'_>,
        packet: Packet<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), CloseReason> {
        let message = match packet {
            // Messages don't touch the session; the lock is not needed for them.
            Packet::Message(message) => message,
            packet => match self.handle_control(turn, packet)? {
                Some(message) => message,
                None => return Ok(()),
            },
        };
        match message {
            Message::Text(text) => self.protocol.text(turn, cx, &text),
            Message::Binary(bytes) => self.protocol.binary(turn, cx, &bytes),
        }
    }

    fn handle_control<'p>(
        &mut self,
        turn: &mut Turn<'_>,
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
    /// There is nothing more to read now.
    Done,
    /// There may be more; others are served first.
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

fn undecodable(error: PacketError) -> CloseReason {
    CloseReason::ParseError {
        kind: error.label(),
        code: None,
    }
}

/// Node's server closes without a code but for the two that tell a client something.
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
