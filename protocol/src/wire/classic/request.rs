//! Orders and questions of the classic dialect: JSON, or in the encoding of broadcasts where they
//! carry a packet. Node tells the two apart by the first byte and takes either for everything.

use std::time::Duration;

use bytes::Bytes;

use super::super::{
    Asker, DEFAULT_ACK_TIMEOUT, Heard, Wire, WireError,
    cursor::{Cursor, Event, Head, whole},
    output::{Encoding, Output},
    parts::{Packet, RoomNames, read_packet, read_rooms, read_target, write_packet, write_target},
};
use crate::{
    args::Args,
    channel::EMITTER_UID,
    id::NodeId,
    message::Message,
    question::Question,
    target::{Flags, Target},
};

const SOCKETS: u64 = 0;
const ALL_ROOMS: u64 = 1;
const REMOTE_JOIN: u64 = 2;
const REMOTE_LEAVE: u64 = 3;
const REMOTE_DISCONNECT: u64 = 4;
const REMOTE_FETCH: u64 = 5;
const SERVER_SIDE_EMIT: u64 = 6;
const BROADCAST: u64 = 7;

/// What a request may hold.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<f64>,
    uid: Option<Box<str>>,
    id: Option<Box<str>>,
    node: Option<NodeId>,
    confirm: Option<Box<str>>,
    asks_reached: bool,
    target: Option<Target>,
    rooms: Option<RoomNames>,
    sid: Option<Box<str>>,
    room: Option<Box<str>>,
    close: bool,
    event: Option<Event>,
    packet: Option<Packet<'a>>,
}

/// Reads an order or a question.
pub(in super::super) fn read<'a, C: Cursor<'a>>(
    namespace: &str,
    mut cursor: C,
) -> Result<Heard, WireError> {
    let mut fields = Fields::default();
    match cursor.head()? {
        Head::Map(len) => cursor.members(len, |cursor, key| fields.read(cursor, key))?,
        _ => {
            return Err(WireError::Unexpected {
                expected: "a request",
            });
        }
    }
    cursor.finish()?;
    fields.heard(namespace)
}

impl<'a> Fields<'a> {
    fn read(&mut self, cursor: &mut impl Cursor<'a>, key: &str) -> Result<(), WireError> {
        match key {
            "type" => self.kind = cursor.number()?,
            "uid" => self.uid = cursor.owned_text()?,
            "requestId" => self.id = cursor.owned_text()?,
            "node" => self.node = cursor.node()?,
            "confirm" => self.confirm = cursor.owned_text()?,
            "reached" => self.asks_reached = cursor.is_true()?,
            "opts" => self.target = Some(read_target(cursor)?),
            "rooms" => self.rooms = Some(read_rooms(cursor)?),
            "sid" => self.sid = cursor.owned_text()?,
            "room" => self.room = cursor.owned_text()?,
            "close" => self.close = cursor.is_true()?,
            "data" => self.event = Some(cursor.event()?),
            "packet" => self.packet = Some(read_packet(cursor)?),
            _ => cursor.skip()?,
        }
        Ok(())
    }

    fn heard(mut self, namespace: &str) -> Result<Heard, WireError> {
        let kind = self.kind.ok_or(WireError::Missing { what: "type" })?;
        let Some(kind) = whole(kind) else {
            return Ok(Heard::Ignored);
        };
        match kind as u64 {
            SOCKETS => {
                let rooms = self.rooms.take().unwrap_or_default().targets();
                let target = Target {
                    rooms,
                    ..Target::default()
                };
                let question = self.reached_or(target, Question::SocketIds);
                self.question(question)
            }
            ALL_ROOMS => self.question(Question::Rooms),
            REMOTE_JOIN | REMOTE_LEAVE | REMOTE_DISCONNECT => self.order(kind as u64),
            REMOTE_FETCH => {
                let target = self.target()?;
                let question = self.reached_or(target, Question::Sockets);
                self.question(question)
            }
            SERVER_SIDE_EMIT => {
                let event = self.event.take();
                let (event, args) = event.ok_or(WireError::Missing { what: "data" })?;
                if self.id.is_some() {
                    return self.question(Question::ServerSideEmit { event, args });
                }
                Ok(self.message(Message::ServerSideEmit { event, args }))
            }
            BROADCAST => self.broadcast(namespace),
            _ => Ok(Heard::Ignored),
        }
    }

    fn broadcast(mut self, namespace: &str) -> Result<Heard, WireError> {
        let packet = self.packet.take();
        let packet = packet.ok_or(WireError::Missing { what: "packet" })?;
        if !packet.is_for(namespace) {
            return Ok(Heard::Ignored);
        }
        let mut target = self.target()?;
        let (event, args) = packet.event()?;
        let timeout = target.flags.timeout.take();
        self.question(Question::Acks {
            target,
            event,
            args,
            timeout: timeout.unwrap_or(DEFAULT_ACK_TIMEOUT),
        })
    }

    /// An order; the old form for one socket is a question, and so is one that a node of ours wants
    /// to have answered.
    fn order(mut self, kind: u64) -> Result<Heard, WireError> {
        let is_old = self.target.is_none();
        let target = match (self.target.take(), self.sid.take()) {
            (Some(target), _) => target,
            (None, Some(sid)) => {
                let rooms = vec![sid];
                Target {
                    rooms,
                    ..Target::default()
                }
            }
            (None, None) => return Err(WireError::Missing { what: "opts" }),
        };
        let message = if kind == REMOTE_DISCONNECT {
            let close = self.close;
            Message::DisconnectSockets { target, close }
        } else {
            let rooms = match (self.rooms.take(), self.room.take()) {
                (Some(rooms), _) => rooms.names(),
                (None, Some(room)) => vec![room],
                (None, None) => return Err(WireError::Missing { what: "rooms" }),
            };
            if kind == REMOTE_JOIN {
                Message::SocketsJoin { target, rooms }
            } else {
                Message::SocketsLeave { target, rooms }
            }
        };
        if self.id.is_some() && (is_old || self.node.is_some()) {
            return self.question(Question::Order(message));
        }
        Ok(self.message(message))
    }

    fn target(&mut self) -> Result<Target, WireError> {
        self.target
            .take()
            .ok_or(WireError::Missing { what: "opts" })
    }

    fn reached_or(&self, target: Target, other: fn(Target) -> Question) -> Question {
        if self.asks_reached {
            Question::Reached(target)
        } else {
            other(target)
        }
    }

    fn message(self, message: Message) -> Heard {
        Heard::Message {
            message,
            confirm: self.confirm,
        }
    }

    fn question(self, question: Question) -> Result<Heard, WireError> {
        let id = self.id.ok_or(WireError::Missing { what: "requestId" })?;
        Ok(Heard::Question {
            asker: Asker {
                uid: self.uid,
                node: self.node,
            },
            id,
            question,
        })
    }
}

/// Writes what is said on the channel of requests: everything but broadcasts.
pub(in super::super) fn write_message(
    uid: &str,
    message: &Message,
    confirm: Option<&str>,
) -> Result<Bytes, WireError> {
    let extra = confirm.map(|id| [("confirm", id)]);
    write_order(uid, None, message, extra.as_ref().map_or(&[], |one| one))
}

/// Writes a question.
pub(in super::super) fn write_question(
    wire: &Wire,
    namespace: &str,
    uid: &str,
    asker: &NodeId,
    id: &str,
    question: &Question,
) -> Result<Bytes, WireError> {
    let node = ("node", asker.as_str());
    match question {
        Question::Sockets(target) => write_fetch(uid, id, asker, target, false),
        Question::SocketIds(target) if target.except.is_empty() => {
            write_ids(uid, id, asker, target, false)
        }
        Question::SocketIds(target) => write_fetch(uid, id, asker, target, false),
        Question::Reached(target) if target.except.is_empty() => {
            write_ids(uid, id, asker, target, true)
        }
        Question::Reached(target) => write_fetch(uid, id, asker, target, true),
        Question::Rooms => {
            let out = begin(4, Some(uid), Some(id), ALL_ROOMS);
            Ok(end(out, &[node]))
        }
        Question::ServerSideEmit { event, args } => {
            let mut out = begin(5, Some(uid), Some(id), SERVER_SIDE_EMIT);
            out.key("data").event(event, args)?;
            Ok(end(out, &[node]))
        }
        Question::Acks {
            target,
            event,
            args,
            timeout,
        } => {
            let event = (&**event, args, *timeout);
            write_acks(wire, namespace, (uid, id, asker), target, event)
        }
        Question::Order(message) => write_order(uid, Some(id), message, &[node]),
    }
}

fn write_acks(
    wire: &Wire,
    namespace: &str,
    (uid, id, asker): (&str, &str, &NodeId),
    target: &Target,
    (event, args, timeout): (&str, &Args, Duration),
) -> Result<Bytes, WireError> {
    let flags = Flags {
        timeout: Some(timeout),
        ..target.flags
    };
    let mut out = Output::new(wire.encoding());
    head(&mut out, 6, Some(uid), Some(id), BROADCAST);
    out.key("packet");
    write_packet(&mut out, event, args, Some(namespace))?;
    out.key("opts");
    write_target(&mut out, target, Some(flags));
    Ok(end(out, &[("node", asker.as_str())]))
}

fn write_fetch(
    uid: &str,
    id: &str,
    asker: &NodeId,
    target: &Target,
    asks_reached: bool,
) -> Result<Bytes, WireError> {
    let len = 5 + usize::from(asks_reached);
    let mut out = begin(len, Some(uid), Some(id), REMOTE_FETCH);
    out.key("opts");
    write_target(&mut out, target, None);
    if asks_reached {
        out.key("reached").bool(true);
    }
    Ok(end(out, &[("node", asker.as_str())]))
}

/// The lighter question: Node answers with ids alone. It knows no exceptions.
fn write_ids(
    uid: &str,
    id: &str,
    asker: &NodeId,
    target: &Target,
    asks_reached: bool,
) -> Result<Bytes, WireError> {
    let len = 5 + usize::from(asks_reached);
    let mut out = begin(len, Some(uid), Some(id), SOCKETS);
    out.key("rooms").texts(&target.rooms);
    if asks_reached {
        out.key("reached").bool(true);
    }
    Ok(end(out, &[("node", asker.as_str())]))
}

fn write_order(
    uid: &str,
    id: Option<&str>,
    message: &Message,
    extra: &[(&str, &str)],
) -> Result<Bytes, WireError> {
    // Emitters say who they are only where it matters, as Node's do.
    let sender = (uid != EMITTER_UID).then_some(uid);
    let ids = usize::from(sender.is_some()) + usize::from(id.is_some()) + extra.len();
    let (kind, target) = match message {
        Message::SocketsJoin { target, .. } => (REMOTE_JOIN, target),
        Message::SocketsLeave { target, .. } => (REMOTE_LEAVE, target),
        Message::DisconnectSockets { target, .. } => (REMOTE_DISCONNECT, target),
        Message::ServerSideEmit { event, args } if id.is_none() => {
            let mut out = begin(3 + extra.len(), Some(uid), None, SERVER_SIDE_EMIT);
            out.key("data").event(event, args)?;
            return Ok(end(out, extra));
        }
        _ => {
            return Err(WireError::Inexpressible {
                what: "this message as an order",
            });
        }
    };
    let mut out = begin(3 + ids, sender, id, kind);
    out.key("opts");
    write_target(&mut out, target, None);
    match message {
        Message::DisconnectSockets { close, .. } => drop(out.key("close").bool(*close)),
        Message::SocketsJoin { rooms, .. } | Message::SocketsLeave { rooms, .. } => {
            out.key("rooms").texts(rooms);
        }
        _ => {}
    }
    Ok(end(out, extra))
}

fn begin(len: usize, uid: Option<&str>, id: Option<&str>, kind: u64) -> Output {
    let mut out = Output::new(Encoding::Json);
    head(&mut out, len, uid, id, kind);
    out
}

fn head(out: &mut Output, len: usize, uid: Option<&str>, id: Option<&str>, kind: u64) {
    out.map(len);
    if let Some(uid) = uid {
        out.key("uid").text(uid);
    }
    if let Some(id) = id {
        out.key("requestId").text(id);
    }
    out.key("type").number(kind);
}

fn end(mut out: Output, extra: &[(&str, &str)]) -> Bytes {
    for (key, text) in extra {
        out.key(key).text(text);
    }
    out.end_map();
    out.finish()
}
