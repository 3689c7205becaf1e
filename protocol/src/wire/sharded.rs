//! Node's `createShardedAdapter`: everything is an envelope of type, data, sender and namespace,
//! JSON unless it holds binary.
//!
//! What is ours beside it stands in the envelope (`node`, `confirm`) and in the data of questions
//! and answers between our own nodes; Node looks at neither.

use bytes::Bytes;

use super::{
    Asker, DEFAULT_ACK_TIMEOUT, Heard, Publication, Reply, Wire, WireError,
    answers::{self, Fields},
    cursor::{Cursor, Event, Head},
    output::{Encoding, Output},
    parts::{read_packet, read_rooms, read_target, write_packet, write_target},
};
use crate::{
    args::Args,
    channel,
    id::NodeId,
    message::Message,
    question::{Answer, Question},
    target::{Flags, Target},
};

const BROADCAST: u64 = 3;
const SOCKETS_JOIN: u64 = 4;
const SOCKETS_LEAVE: u64 = 5;
const DISCONNECT_SOCKETS: u64 = 6;
const FETCH_SOCKETS: u64 = 7;
const FETCH_SOCKETS_RESPONSE: u64 = 8;
const SERVER_SIDE_EMIT: u64 = 9;
const SERVER_SIDE_EMIT_RESPONSE: u64 = 10;
const BROADCAST_CLIENT_COUNT: u64 = 11;
const BROADCAST_ACK: u64 = 12;

/// Reads whatever it is.
pub(super) fn read<'a, C: Cursor<'a>>(namespace: &str, mut cursor: C) -> Result<Heard, WireError> {
    let mut envelope = Envelope::default();
    let mut later = None;
    match cursor.head()? {
        Head::Map(len) => cursor.members(len, |cursor, key| {
            match (key, envelope.kind) {
                ("type", _) => envelope.kind = cursor.count()?,
                ("data", Some(kind)) => envelope.data = read_data(cursor, kind as u64)?,
                ("data", None) => {
                    later = Some(cursor.clone());
                    cursor.skip()?;
                }
                ("uid", _) => envelope.uid = cursor.owned_text()?,
                ("nsp", _) => {
                    let named = cursor.text()?;
                    envelope.is_here = named.as_deref() == Some(namespace);
                }
                ("node", _) => envelope.node = cursor.node()?,
                ("confirm", _) => envelope.confirm = cursor.owned_text()?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?,
        _ => {
            return Err(WireError::Unexpected {
                expected: "an envelope",
            });
        }
    }
    cursor.finish()?;
    if let (Some(mut later), Some(kind)) = (later, envelope.kind) {
        envelope.data = read_data(&mut later, kind as u64)?;
    }
    envelope.heard()
}

#[derive(Default)]
struct Envelope {
    kind: Option<usize>,
    data: Option<Data>,
    uid: Option<Box<str>>,
    is_here: bool,
    node: Option<NodeId>,
    confirm: Option<Box<str>>,
}

/// What the data of an envelope may hold.
#[derive(Default)]
struct Data {
    event: Option<Event>,
    target: Option<Target>,
    id: Option<Box<str>>,
    close: bool,
    asks_reached: bool,
    rooms: Vec<Box<str>>,
    answer: Fields,
}

/// Reads the data of an envelope of this type; none if nobody knows the type, or if it is no map.
fn read_data<'a>(cursor: &mut impl Cursor<'a>, kind: u64) -> Result<Option<Data>, WireError> {
    if !(BROADCAST..=BROADCAST_ACK).contains(&kind) {
        return cursor.skip().map(|()| None);
    }
    let mut data = Data::default();
    let len = match cursor.head()? {
        Head::Map(len) => len,
        other => return cursor.leave(&other).map(|()| None),
    };
    cursor.members(len, |cursor, key| {
        match (key, kind) {
            ("packet", BROADCAST) => data.event = Some(read_packet(cursor)?.event()?),
            ("packet", SERVER_SIDE_EMIT) => data.event = Some(cursor.event()?),
            ("packet", SERVER_SIDE_EMIT_RESPONSE | BROADCAST_ACK) => {
                data.answer.read_value(cursor)?;
            }
            ("opts", BROADCAST..=FETCH_SOCKETS) => data.target = Some(read_target(cursor)?),
            ("rooms", SOCKETS_JOIN | SOCKETS_LEAVE) => {
                data.rooms = read_rooms(cursor)?.names();
            }
            ("requestId", _) => data.id = cursor.owned_text()?,
            ("close", DISCONNECT_SOCKETS) => data.close = cursor.is_true()?,
            ("reached", FETCH_SOCKETS) => data.asks_reached = cursor.is_true()?,
            (_, FETCH_SOCKETS_RESPONSE..=BROADCAST_ACK) => {
                if !data.answer.read(cursor, key)? {
                    cursor.skip()?;
                }
            }
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    Ok(Some(data))
}

impl Envelope {
    fn heard(mut self) -> Result<Heard, WireError> {
        let kind = self.kind.ok_or(WireError::Missing { what: "type" })? as u64;
        if !self.is_here || !(BROADCAST..=BROADCAST_ACK).contains(&kind) {
            return Ok(Heard::Ignored);
        }
        let data = self.data.take();
        let data = data.ok_or(WireError::Missing { what: "data" })?;
        match kind {
            BROADCAST => self.broadcast(data),
            SOCKETS_JOIN | SOCKETS_LEAVE | DISCONNECT_SOCKETS => self.order(kind, data),
            FETCH_SOCKETS => {
                let target = target(data.target)?;
                let question = if data.asks_reached {
                    Question::Reached(target)
                } else {
                    Question::Sockets(target)
                };
                self.question(data.id, question)
            }
            SERVER_SIDE_EMIT => {
                let (event, args) = event(data.event)?;
                if data.id.is_some() {
                    return self.question(data.id, Question::ServerSideEmit { event, args });
                }
                Ok(self.message(Message::ServerSideEmit { event, args }))
            }
            _ => self.response(kind, data),
        }
    }

    fn broadcast(self, data: Data) -> Result<Heard, WireError> {
        let (event, args) = event(data.event)?;
        let mut target = target(data.target)?;
        if data.id.is_none() {
            return Ok(self.message(Message::Broadcast {
                target,
                event,
                args,
            }));
        }
        let timeout = target.flags.timeout.take().unwrap_or(DEFAULT_ACK_TIMEOUT);
        let question = Question::Acks {
            target,
            event,
            args,
            timeout,
        };
        self.question(data.id, question)
    }

    fn order(self, kind: u64, data: Data) -> Result<Heard, WireError> {
        let target = target(data.target)?;
        let (rooms, close) = (data.rooms, data.close);
        let message = match kind {
            SOCKETS_JOIN => Message::SocketsJoin { target, rooms },
            SOCKETS_LEAVE => Message::SocketsLeave { target, rooms },
            _ => Message::DisconnectSockets { target, close },
        };
        if data.id.is_some() && self.node.is_some() {
            return self.question(data.id, Question::Order(message));
        }
        Ok(self.message(message))
    }

    fn response(self, kind: u64, data: Data) -> Result<Heard, WireError> {
        let reply = match kind {
            SERVER_SIDE_EMIT_RESPONSE => data.answer.server_side(),
            BROADCAST_CLIENT_COUNT => data.answer.asked()?,
            BROADCAST_ACK => data.answer.acknowledged(),
            _ => data.answer.other(),
        };
        let id = data.id.ok_or(WireError::Missing { what: "requestId" })?;
        Ok(Heard::Response {
            id,
            node: self.node,
            reply,
        })
    }

    fn message(self, message: Message) -> Heard {
        Heard::Message {
            message,
            confirm: self.confirm,
        }
    }

    fn question(self, id: Option<Box<str>>, question: Question) -> Result<Heard, WireError> {
        Ok(Heard::Question {
            asker: Asker {
                uid: self.uid,
                node: self.node,
            },
            id: id.ok_or(WireError::Missing { what: "requestId" })?,
            question,
        })
    }
}

fn target(target: Option<Target>) -> Result<Target, WireError> {
    target.ok_or(WireError::Missing { what: "opts" })
}

fn event(event: Option<Event>) -> Result<Event, WireError> {
    event.ok_or(WireError::Missing { what: "packet" })
}

/// Writes a broadcast.
pub(super) fn write_event(
    namespace: &str,
    uid: &str,
    (target, event, args): (&Target, &str, &Args),
    confirm: Option<&str>,
) -> Result<Bytes, WireError> {
    let extra = confirm.map(|id| ("confirm", id));
    let mut out = begin(BROADCAST, args, extra);
    write_broadcast(&mut out, (event, args), None, (target, target.flags))?;
    Ok(end(out, extra, uid, namespace))
}

/// Writes an order or a broadcast.
pub(super) fn write_message(
    namespace: &str,
    uid: &str,
    message: &Message,
    confirm: Option<&str>,
) -> Result<Bytes, WireError> {
    let extra = confirm.map(|id| ("confirm", id));
    let mut out;
    match message {
        Message::Broadcast {
            target,
            event,
            args,
        } => return write_event(namespace, uid, (target, event, args), confirm),
        Message::ServerSideEmit { event, args } => {
            out = begin(SERVER_SIDE_EMIT, args, extra);
            out.map(1).key("packet").event(event, args)?.end_map();
        }
        order => {
            let (kind, target) = order_kind(order)?;
            out = begin(kind, &Args::default(), extra);
            write_order(&mut out, target, order, None);
        }
    }
    Ok(end(out, extra, uid, namespace))
}

/// Writes a question. What only the classic dialect can ask is asked as who the sockets are.
pub(super) fn write_question(
    namespace: &str,
    uid: &str,
    asker: &NodeId,
    id: &str,
    question: &Question,
) -> Result<Bytes, WireError> {
    let extra = Some(("node", asker.as_str()));
    let none = Args::default();
    let mut out;
    match question {
        Question::Sockets(target) | Question::SocketIds(target) => {
            out = begin(FETCH_SOCKETS, &none, extra);
            write_fetch(&mut out, id, target, false);
        }
        Question::Reached(target) => {
            out = begin(FETCH_SOCKETS, &none, extra);
            write_fetch(&mut out, id, target, true);
        }
        Question::Rooms => {
            out = begin(FETCH_SOCKETS, &none, extra);
            write_fetch(&mut out, id, &Target::default(), false);
        }
        Question::Acks {
            target,
            event,
            args,
            timeout,
        } => {
            let flags = Flags {
                timeout: Some(*timeout),
                ..target.flags
            };
            out = begin(BROADCAST, args, extra);
            write_broadcast(&mut out, (event, args), Some(id), (target, flags))?;
        }
        Question::ServerSideEmit { event, args } => {
            out = begin(SERVER_SIDE_EMIT, args, extra);
            out.map(2).key("requestId").text(id);
            out.key("packet").event(event, args)?.end_map();
        }
        Question::Order(order) => {
            let (kind, target) = order_kind(order)?;
            out = begin(kind, &none, extra);
            write_order(&mut out, target, order, Some(id));
        }
    }
    Ok(end(out, extra, uid, namespace))
}

/// Writes an answer; nothing if the asker, a server of Node's, expects none.
pub(super) fn write_response(
    wire: &Wire,
    namespace: &str,
    to: &Asker,
    id: &str,
    node: &NodeId,
    reply: &Reply,
) -> Result<Option<Publication>, WireError> {
    let kind = match reply {
        Reply::Asked(_) => BROADCAST_CLIENT_COUNT,
        Reply::Acknowledged(_) | Reply::Answer(Answer::Acks { .. }) => BROADCAST_ACK,
        Reply::Answer(Answer::ServerSideEmit(_)) => SERVER_SIDE_EMIT_RESPONSE,
        Reply::Answer(_) => FETCH_SOCKETS_RESPONSE,
    };
    let is_nodes = matches!(
        reply,
        Reply::Asked(_)
            | Reply::Acknowledged(_)
            | Reply::Answer(Answer::Sockets(_) | Answer::ServerSideEmit(Some(_)))
    );
    if to.node.is_none() && !is_nodes {
        return Ok(None);
    }
    let extra = to.node.as_ref().map(|_| ("node", node.as_str()));
    let encoding = encoding(answers::has_binary(reply));
    let mut out = begin_as(kind, encoding, extra);
    out.map(1 + answers::count(reply));
    out.key("requestId").text(id);
    answers::write(&mut out, reply, "packet")?;
    out.end_map();
    let channels = wire.channels();
    let uid = channel::uid(node, namespace, channels.dialect());
    Ok(Some(Publication {
        // Node listens for answers on the main channel, too.
        channel: match &to.uid {
            Some(asker) => channels.response_of(namespace, asker),
            None => channels.broadcast(namespace),
        },
        payload: end(out, extra, uid.as_str(), namespace),
    }))
}

fn write_broadcast(
    out: &mut Output,
    (event, args): (&str, &Args),
    id: Option<&str>,
    (target, flags): (&Target, Flags),
) -> Result<(), WireError> {
    out.map(2 + usize::from(id.is_some())).key("packet");
    write_packet(out, event, args, None)?;
    if let Some(id) = id {
        out.key("requestId").text(id);
    }
    out.key("opts");
    write_target(out, target, Some(flags));
    out.end_map();
    Ok(())
}

fn order_kind(order: &Message) -> Result<(u64, &Target), WireError> {
    match order {
        Message::SocketsJoin { target, .. } => Ok((SOCKETS_JOIN, target)),
        Message::SocketsLeave { target, .. } => Ok((SOCKETS_LEAVE, target)),
        Message::DisconnectSockets { target, .. } => Ok((DISCONNECT_SOCKETS, target)),
        Message::Broadcast { .. } | Message::ServerSideEmit { .. } => {
            Err(WireError::Inexpressible {
                what: "this message as an order",
            })
        }
    }
}

fn write_order(out: &mut Output, target: &Target, order: &Message, id: Option<&str>) {
    out.map(2 + usize::from(id.is_some())).key("opts");
    write_target(out, target, Some(target.flags));
    match order {
        Message::DisconnectSockets { close, .. } => drop(out.key("close").bool(*close)),
        Message::SocketsJoin { rooms, .. } | Message::SocketsLeave { rooms, .. } => {
            out.key("rooms").texts(rooms);
        }
        Message::Broadcast { .. } | Message::ServerSideEmit { .. } => {}
    }
    if let Some(id) = id {
        out.key("requestId").text(id);
    }
    out.end_map();
}

fn write_fetch(out: &mut Output, id: &str, target: &Target, asks_reached: bool) {
    out.map(2 + usize::from(asks_reached)).key("opts");
    write_target(out, target, Some(target.flags));
    out.key("requestId").text(id);
    if asks_reached {
        out.key("reached").bool(true);
    }
    out.end_map();
}

fn encoding(has_binary: bool) -> Encoding {
    if has_binary {
        Encoding::Msgpack
    } else {
        Encoding::Json
    }
}

fn begin(kind: u64, args: &Args, extra: Option<(&str, &str)>) -> Output {
    begin_as(kind, encoding(!args.attachments().is_empty()), extra)
}

fn begin_as(kind: u64, encoding: Encoding, extra: Option<(&str, &str)>) -> Output {
    let mut out = Output::new(encoding);
    out.map(4 + usize::from(extra.is_some()));
    out.key("type").number(kind).key("data");
    out
}

/// The sender and the namespace come last, as in Node: [`super::Echo`] looks there.
fn end(mut out: Output, extra: Option<(&str, &str)>, uid: &str, namespace: &str) -> Bytes {
    if let Some((key, text)) = extra {
        out.key(key).text(text);
    }
    write_sender(&mut out, uid, namespace);
    out.end_map();
    out.finish()
}

/// The last members of an envelope.
pub(super) fn write_sender(out: &mut Output, uid: &str, namespace: &str) {
    out.key("uid").text(uid);
    out.key("nsp").text(namespace);
}
