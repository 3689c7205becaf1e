//! Connections whose clients speak neither Engine.IO nor Socket.IO: a plain WebSocket, an
//! event stream, a parked request.
//!
//! They share the lock, the outbox, the limits and the driver with all others. Only their
//! bytes differ: a [`Form`] writes each event, once for all clients of that form. The other packets
//! of Engine.IO and Socket.IO (the open packet, replies to CONNECT, acknowledgements) are not sent.
//!
//! ```text
//! stream:     frame ─▶ outbox ─▶ consumer wakes ─▶ poll_chunk renders ─▶ body of an HTTP response
//!             dropped consumer ─▶ abort: the driver releases all at once
//! WebSocket:  frame ─▶ outbox ─▶ lane or driver writes what the form has rendered
//! ```

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use roomcast_protocol::{
    args::Args, engine_io::open::Revision, id::EngineId, message::Position, target::Rooms,
};

use super::{
    connection::{Aside, Connection, Locked},
    engine::Engine,
    frame::{Frame, WireForm},
    stream::Stream,
};
use crate::close::CloseReason;

/// The form in which clients of a plain connection receive events.
///
/// Connections that share one `Arc` of a form share its output: it is called once per event and
/// form, regardless of the number of recipients. So use one for all connections of a kind.
///
/// It is called while a connection is locked. It must not use the server, a socket, or a lock that
/// is held for long.
///
/// ```
/// use roomcast::plain::{Event, Form, Heartbeat};
///
/// /// Server-sent events.
/// struct Sse;
///
/// impl Form for Sse {
///     fn event(&self, event: &Event<'_>, out: &mut Vec<u8>) {
///         if let Some(id) = event.id {
///             out.extend_from_slice(format!("id: {id}\n").as_bytes());
///         }
///         out.extend_from_slice(format!("event: {}\ndata: {}\n\n", event.name, event.args).as_bytes());
///     }
///
///     fn heartbeat(&self) -> Heartbeat {
///         Heartbeat::Bytes(b":\n\n")
///     }
/// }
/// ```
pub trait Form: Send + Sync + 'static {
    /// Appends the bytes that a client receives for an event. A client of a WebSocket receives it
    /// as one text message, so it must be UTF-8. If nothing is appended, the client receives
    /// nothing.
    fn event(&self, event: &Event<'_>, out: &mut Vec<u8>);

    /// How the server keeps an idle connection in use. Default [`Heartbeat::None`].
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat::None
    }

    /// Whether binary messages of a WebSocket are skipped. Default: no, and one ends the
    /// connection with code 1003.
    fn skips_binary(&self) -> bool {
        false
    }
}

/// The sign of life that a client receives while there are no events, each
/// [ping interval](crate::Builder::ping_interval).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Heartbeat {
    /// Nothing. The end of the connection is noticed only by its stream.
    #[default]
    None,
    /// A ping frame of WebSocket, which the client has to answer within the
    /// [ping timeout](crate::Builder::ping_timeout). A stream receives nothing.
    Ping,
    /// These bytes, such as a comment of an event stream. The client does not answer. A WebSocket
    /// receives them as a text message.
    Bytes(&'static [u8]),
}

/// An event, as a [`Form`] writes it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// The name of the event.
    pub name: &'a str,
    /// The arguments as a JSON array. A binary value is `{"$binary":"<base64>"}` in its place.
    pub args: &'a str,
    /// The room that the event was emitted to, if it is exactly one.
    pub room: Option<&'a str>,
    /// The id of the event in the log of its namespace, if it was stored there. Ids of a
    /// room grow and have gaps.
    pub id: Option<u64>,
    /// When the event was stored, in milliseconds since 1970.
    pub time: Option<u64>,
}

/// An item of a stream: an event, a heartbeat, or a text for its socket alone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// The bytes that the form has written.
    pub bytes: Bytes,
    /// The [id](Event::id) of the event, if it has one.
    pub id: Option<u64>,
    /// The [time](Event::time) of the event, if it has one.
    pub time: Option<u64>,
}

/// An event as its frame keeps it until a form writes it.
pub(crate) struct Source {
    pub(crate) name: Box<str>,
    pub(crate) args: Args,
    pub(crate) room: Option<Box<str>>,
    pub(crate) position: Option<Position>,
}

impl Source {
    pub(super) fn write(&self, form: &dyn Form, out: &mut Vec<u8>) {
        // Placeholders that name no attachment come from a faulty node; there is nothing to show.
        let Ok(args) = self.args.to_plain_json() else {
            return;
        };
        let event = Event {
            name: &self.name,
            args: &args,
            room: self.room.as_deref(),
            id: self.position.map(|position| position.id),
            time: self.position.map(|position| position.time),
        };
        form.event(&event, out);
    }
}

/// The state of a plain connection.
pub(crate) struct Plain {
    pub(super) form: Arc<dyn Form>,
    /// A consumer takes the events; there is no WebSocket.
    is_stream: bool,
    /// The consumer of a stream waits.
    consumer: Option<Waker>,
    /// The consumer has seen the end.
    farewell: bool,
    /// Exists since the socket joined a room from its log.
    follow: Option<Box<Follow>>,
}

/// How a connection follows the logs of rooms, so that nothing is lost or sent twice between the
/// events from a log and those that arrive.
///
/// ```text
/// hold ─▶ join ─▶ read the logs ─▶ replay ─▶ release: what arrived meanwhile and is newer
/// ```
#[derive(Default)]
struct Follow {
    /// While there are some, frames are held back.
    holds: usize,
    held: Vec<Frame>,
    held_bytes: usize,
    rooms: Vec<Followed>,
}

/// A room whose log a connection follows.
pub(crate) struct Followed {
    pub(crate) room: Box<str>,
    /// The place up to which its log was read.
    pub(crate) begin: Reached,
    /// The place of the last event that was sent.
    pub(crate) last: Reached,
}

/// The place up to which the log of a room is known.
///
/// A log that has lost its data assigns ids from the clock again. They may be lower than those that
/// it assigned in an earlier burst, so only the time shows that an event is new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) id: u64,
    /// When this id was given, or later, in milliseconds since 1970.
    pub(crate) time: u64,
}

impl Reached {
    pub(crate) fn is_before(self, id: u64, time: u64) -> bool {
        id > self.id || time > self.time
    }

    /// Advances to an event. Returns `false` if it is not after this place.
    fn advance(&mut self, Position { id, time, .. }: Position) -> bool {
        if !self.is_before(id, time) {
            return false;
        }
        // If the clock of Redis was set back, the greatest time is kept, so that no event is sent
        // twice.
        let time = time.max(self.time);
        *self = Self { id, time };
        true
    }
}

/// The outcome of pushing a frame to a plain connection.
pub(super) enum Admitted {
    Now,
    /// It is held back, was sent already, or has no form for a plain connection.
    Not,
    /// The frames held back exceed the limit.
    Full,
}

impl Follow {
    /// Notes that a frame is about to be sent. Returns `false` if it was sent before.
    fn is_new(&mut self, frame: &Frame) -> bool {
        let Some((room, position)) = frame.place() else {
            return true;
        };
        let Some(followed) = self.followed(room) else {
            return true;
        };
        followed.last.advance(position)
    }

    fn followed(&mut self, room: &str) -> Option<&mut Followed> {
        self.rooms.iter_mut().find(|known| *known.room == *room)
    }
}

impl Locked {
    pub(super) fn admit(&mut self, frame: &Frame, max_bytes: usize) -> Admitted {
        if frame.is_packet() {
            return Admitted::Not;
        }
        let is_open = self.state.closing().is_none();
        let Some(follow) = self.plain().and_then(|plain| plain.follow.as_mut()) else {
            return Admitted::Now;
        };
        if is_open && follow.holds > 0 {
            follow.held_bytes += frame.cost();
            if follow.held_bytes > max_bytes {
                return Admitted::Full;
            }
            follow.held.push(frame.clone());
            return Admitted::Not;
        }
        if follow.is_new(frame) {
            Admitted::Now
        } else {
            Admitted::Not
        }
    }

    fn plain(&mut self) -> Option<&mut Plain> {
        match self.aside.as_deref_mut() {
            Some(Aside::Plain(plain)) => Some(plain),
            _ => None,
        }
    }

    fn follow(&mut self) -> Option<&mut Follow> {
        Some(self.plain()?.follow.get_or_insert_default())
    }
}

/// Holds back the events pushed to a plain connection until it is dropped.
pub(crate) struct Hold(Arc<Connection>);

impl Hold {
    pub(crate) fn new(connection: &Arc<Connection>) -> Self {
        if let Some(follow) = connection.lock().follow() {
            follow.holds += 1;
        }
        Self(Arc::clone(connection))
    }

    /// Follows rooms, and sends the events read from their logs.
    pub(crate) fn replay(&self, rooms: Vec<Followed>, frames: &[Frame]) {
        let mut locked = self.0.lock();
        if let Some(follow) = locked.follow() {
            for followed in rooms {
                follow.rooms.retain(|known| known.room != followed.room);
                follow.rooms.push(followed);
            }
        }
        self.push_new(&mut locked, frames);
    }

    fn push_new(&self, locked: &mut Locked, frames: &[Frame]) {
        let mut flush = false;
        for frame in frames {
            if locked.follow().is_none_or(|follow| follow.is_new(frame)) {
                // A connection that has closed takes no more.
                flush |= self.0.push_now(locked, frame, false, true) == Ok(true);
            }
        }
        if flush {
            self.0.lane().flush_later([Arc::clone(&self.0)]);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut locked = self.0.lock();
        let Some(follow) = locked.follow() else {
            return;
        };
        follow.holds -= 1;
        if follow.holds == 0 {
            follow.held_bytes = 0;
            let held = std::mem::take(&mut follow.held);
            self.push_new(&mut locked, &held);
        }
    }
}

impl Plain {
    pub(super) fn is_stream(&self) -> bool {
        self.is_stream
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.consumer.is_some()
    }

    pub(super) fn wake(&self) {
        if let Some(consumer) = &self.consumer {
            consumer.wake_by_ref();
        }
    }

    pub(super) fn said_farewell(&self) -> bool {
        self.farewell
    }
}

impl Connection {
    /// A plain connection over a WebSocket, or for a consumer of this process. `head` has to be
    /// written to the WebSocket before anything else.
    pub(crate) fn plain(
        engine: &Arc<Engine>,
        id: EngineId,
        form: Arc<dyn Form>,
        stream: Option<Stream>,
        head: &[u8],
    ) -> Arc<Self> {
        let plain = Plain {
            form,
            is_stream: stream.is_none(),
            consumer: None,
            farewell: false,
            follow: None,
        };
        let wire = WireForm {
            revision: Revision::V4,
            base64: false,
        };
        let connection = Self::named(engine, id, wire, stream, Some(Aside::Plain(plain)));
        if !head.is_empty() {
            connection.begin(Frame::raw(head), Some(head));
        }
        connection
    }

    /// Takes the next chunk for the consumer of a stream; none when the connection has ended.
    pub(crate) fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        loop {
            let mut guard = self.lock();
            let locked = &mut *guard;
            let Some(Aside::Plain(plain)) = locked.aside.as_deref_mut() else {
                return Poll::Ready(None);
            };
            if let Some(frame) = locked.state.take_frame() {
                plain.consumer = None;
                locked.state.poll_ended(self.engine().clock.now());
                let form = Arc::clone(&plain.form);
                drop(guard);
                if let Some(chunk) = self.chunk(&frame, &form) {
                    return Poll::Ready(Some(chunk));
                }
                continue;
            }
            if locked.state.closing().is_some() {
                plain.consumer = None;
                plain.farewell = true;
                locked.wake_driver();
                return Poll::Ready(None);
            }
            match &mut plain.consumer {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                waker => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
    }

    fn chunk(&self, frame: &Frame, form: &Arc<dyn Form>) -> Option<Chunk> {
        let bytes = frame.chunk(form);
        self.engine().metrics.bytes_sent.inc_by(bytes.len() as u64);
        let position = frame.place().map(|(_, position)| position);
        let id = position.map(|position| position.id);
        let time = position.map(|position| position.time);
        (!bytes.is_empty()).then_some(Chunk { bytes, id, time })
    }

    /// Whether binary messages of the client are allowed.
    pub(crate) fn skips_binary(&self) -> bool {
        let mut locked = self.lock();
        locked
            .plain()
            .is_some_and(|plain| plain.form.skips_binary())
    }

    /// The rooms whose logs it follows.
    pub(crate) fn followed(&self) -> Vec<Box<str>> {
        let mut locked = self.lock();
        let follow = locked.plain().and_then(|plain| plain.follow.as_ref());
        let rooms = follow.iter().flat_map(|follow| &follow.rooms);
        rooms.map(|known| known.room.clone()).collect()
    }

    /// Stops following the logs of rooms that the socket leaves.
    pub(crate) fn unfollow(&self, rooms: &impl Rooms) {
        let mut locked = self.lock();
        if let Some(follow) = locked.plain().and_then(|plain| plain.follow.as_mut()) {
            rooms.each(&mut |room| follow.rooms.retain(|known| *known.room != *room));
        }
    }

    /// Sends the events of a log that were stored after the connection began to follow it and have
    /// not arrived.
    pub(crate) fn send_missed(
        self: &Arc<Self>,
        frames: &[Frame],
        has_arrived: impl Fn(Position) -> bool,
    ) {
        let mut locked = self.lock();
        let mut flush = false;
        for frame in frames {
            let Some((room, position)) = frame.place() else {
                continue;
            };
            let followed = locked.follow().and_then(|follow| follow.followed(room));
            let is_later =
                |known: &&mut Followed| known.begin.is_before(position.id, position.time);
            let Some(followed) = followed.filter(is_later) else {
                continue;
            };
            // An arrival is noted before it is pushed, so under this lock the result holds.
            if !has_arrived(position) {
                followed.last.advance(position);
                flush |= self.push_now(&mut locked, frame, false, true) == Ok(true);
            }
        }
        if flush {
            self.lane().flush_later([Arc::clone(self)]);
        }
    }

    /// The consumer of a stream was dropped, and its client with it.
    pub(crate) fn drop_consumer(&self) {
        let mut locked = self.lock();
        if let Some(plain) = locked.plain() {
            plain.consumer = None;
        }
        self.abort(&mut locked, CloseReason::TransportClose);
    }

    /// The heartbeat of a plain connection, and whether it is unanswered.
    pub(super) fn plain_heartbeat(&self, locked: &Locked) -> Option<(Frame, bool)> {
        let Some(Aside::Plain(plain)) = locked.aside.as_deref() else {
            return None;
        };
        match plain.form.heartbeat() {
            Heartbeat::Ping if locked.stream.is_some() => {
                Some((self.engine().websocket_ping.clone(), false))
            }
            Heartbeat::Bytes(bytes) => Some((Frame::text(bytes), true)),
            Heartbeat::None | Heartbeat::Ping => None,
        }
    }
}
