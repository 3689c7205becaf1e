//! Node's `createShardedAdapter`: everything is an envelope of type, data, sender and namespace,
//! in JSON unless it contains binary.
//!
//! ```text
//! { type, data, node?, confirm?, uid, nsp, position? }
//!
//! type                          data
//!  3 BROADCAST                  packet, requestId? (then sockets acknowledge), opts
//!  4 SOCKETS_JOIN               opts, rooms
//!  5 SOCKETS_LEAVE              opts, rooms
//!  6 DISCONNECT_SOCKETS         opts, close
//!  7 FETCH_SOCKETS              opts, requestId, reached?
//!  8 FETCH_SOCKETS_RESPONSE     requestId, sockets | reached | order
//!  9 SERVER_SIDE_EMIT           requestId?, packet: [event, ...args]
//! 10 SERVER_SIDE_EMIT_RESPONSE  requestId, packet | none
//! 11 BROADCAST_CLIENT_COUNT     requestId, clientCount
//! 12 BROADCAST_ACK              requestId, packet | acks, missing
//! ```
//!
//! Types below 3 are heartbeats of Node's adapter, which have no meaning here.
//!
//! Our additions are `node`, `confirm` and `position` in the envelope, and members in the
//! data of questions and answers between our own nodes. Node ignores both.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Asker, DEFAULT_ACK_TIMEOUT, Incoming, Publication, Reply, Wire, WireError,
    answers::{self, Members},
    parts::{
        EventPacket, Options, Packet, Rooms, asked, command_parts, read_position, read_target,
        required,
    },
    payload::{Arguments, Encoding, Event, Payload, expected, missing},
};
use crate::{
    args::Args,
    channel,
    id::NodeId,
    message::{Broadcast, Message},
    question::{Answer, Question},
    raw::Raw,
    target::{Flags, Target},
};

const BROADCAST: u8 = 3;
const SOCKETS_JOIN: u8 = 4;
const SOCKETS_LEAVE: u8 = 5;
const DISCONNECT_SOCKETS: u8 = 6;
const FETCH_SOCKETS: u8 = 7;
const FETCH_SOCKETS_RESPONSE: u8 = 8;
const SERVER_SIDE_EMIT: u8 = 9;
const SERVER_SIDE_EMIT_RESPONSE: u8 = 10;
const BROADCAST_CLIENT_COUNT: u8 = 11;
const BROADCAST_ACK: u8 = 12;

/// An envelope in its parsed form.
#[derive(Deserialize, Default)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct Envelope<'a> {
    r#type: Raw<'a>,
    data: Raw<'a>,
    uid: Raw<'a>,
    nsp: Raw<'a>,
    node: Raw<'a>,
    confirm: Raw<'a>,
    position: Raw<'a>,
}

/// The data of an envelope that is not an answer.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase", bound(deserialize = "'de: 'a"))]
struct Data<'a> {
    packet: Raw<'a>,
    opts: Raw<'a>,
    request_id: Raw<'a>,
    close: Raw<'a>,
    reached: Raw<'a>,
    rooms: Raw<'a>,
}

/// Reads any message.
pub(super) fn read(
    arguments: &Arguments,
    namespace: &str,
    raw: Raw<'_>,
) -> Result<Incoming, WireError> {
    let envelope: Envelope<'_> = raw.map().ok_or_else(|| expected("an envelope"))?.read()?;
    let kind = envelope.r#type.whole().ok_or_else(|| missing("type"))?;
    let kind = u8::try_from(kind).unwrap_or(0);
    let is_known = (BROADCAST..=BROADCAST_ACK).contains(&kind);
    if !is_known || envelope.nsp.text().as_deref() != Some(namespace) {
        return Ok(Incoming::Ignored);
    }
    envelope.contents(kind, arguments)
}

/// Reads a message whose parts are apart: its data, and as JSON the uid, the name and the
/// confirmation's id of its sender.
pub(super) fn read_parts(
    arguments: &Arguments,
    kind: u8,
    data: Raw<'_>,
    sender: [Option<&str>; 3],
) -> Result<Incoming, WireError> {
    if !(BROADCAST..=BROADCAST_ACK).contains(&kind) {
        return Ok(Incoming::Ignored);
    }
    let [uid, node, confirm] = sender.map(|part| part.map_or(Raw::Absent, Raw::Json));
    let envelope = Envelope {
        data,
        uid,
        node,
        confirm,
        ..Envelope::default()
    };
    envelope.contents(kind, arguments)
}

impl Envelope<'_> {
    fn contents(&self, kind: u8, arguments: &Arguments) -> Result<Incoming, WireError> {
        let data = self.data.map().ok_or_else(|| missing("data"))?;
        match kind {
            FETCH_SOCKETS_RESPONSE
            | SERVER_SIDE_EMIT_RESPONSE
            | BROADCAST_CLIENT_COUNT
            | BROADCAST_ACK => self.response(kind, &data.read()?, arguments),
            kind => self.message_or_question(kind, &data.read()?, arguments),
        }
    }

    fn message_or_question(
        &self,
        kind: u8,
        data: &Data<'_>,
        arguments: &Arguments,
    ) -> Result<Incoming, WireError> {
        match kind {
            BROADCAST => self.broadcast(data, arguments),
            FETCH_SOCKETS => {
                let target = data.target()?;
                let question = if data.reached.is_true() {
                    Question::Reached(target)
                } else {
                    Question::Sockets(target)
                };
                self.question(data, question)
            }
            SERVER_SIDE_EMIT => {
                let (event, args) = arguments.event(required(data.packet, "packet")?)?;
                if data.request_id.text().is_some() {
                    return self.question(data, Question::ServerSideEmit { event, args });
                }
                Ok(self.message(Message::ServerSideEmit { event, args }))
            }
            kind => self.command(kind, data),
        }
    }

    fn broadcast(&self, data: &Data<'_>, arguments: &Arguments) -> Result<Incoming, WireError> {
        let (event, args): Event =
            Packet::read(required(data.packet, "packet")?)?.event(arguments)?;
        let mut target = data.target()?;
        if data.request_id.text().is_none() {
            let broadcast = Broadcast {
                target,
                event,
                args,
            };
            return Ok(self.message(Message::Broadcast(broadcast)));
        }
        let timeout = target.flags.timeout.take().unwrap_or(DEFAULT_ACK_TIMEOUT);
        let question = Question::Acks {
            target,
            event,
            args,
            timeout,
        };
        self.question(data, question)
    }

    fn command(&self, kind: u8, data: &Data<'_>) -> Result<Incoming, WireError> {
        let target = data.target()?;
        let message = if kind == DISCONNECT_SOCKETS {
            let close = data.close.is_true();
            Message::DisconnectSockets { target, close }
        } else {
            let rooms = Rooms::read(data.rooms)?.names();
            if kind == SOCKETS_JOIN {
                Message::SocketsJoin { target, rooms }
            } else {
                Message::SocketsLeave { target, rooms }
            }
        };
        if data.request_id.text().is_some() && self.node.text().is_some() {
            return self.question(data, Question::Command(message));
        }
        Ok(self.message(message))
    }

    fn response(
        &self,
        kind: u8,
        members: &Members<'_>,
        arguments: &Arguments,
    ) -> Result<Incoming, WireError> {
        let reply = match kind {
            SERVER_SIDE_EMIT_RESPONSE => members.server_side(arguments)?,
            BROADCAST_CLIENT_COUNT => members.asked()?,
            BROADCAST_ACK => members.acknowledged(arguments)?,
            _ => members.untyped(arguments)?,
        };
        members.response(self.node, reply)
    }

    fn message(&self, message: Message) -> Incoming {
        let confirm = self.confirm.boxed_text();
        Incoming::Message {
            message,
            confirm,
            position: read_position(self.position),
        }
    }

    fn question(&self, data: &Data<'_>, question: Question) -> Result<Incoming, WireError> {
        asked(Asker::read(self.uid, self.node), data.request_id, question)
    }
}

impl Data<'_> {
    fn target(&self) -> Result<Target, WireError> {
        read_target(required(self.opts, "opts")?)
    }
}

/// An envelope in its written form. The sender and the namespace come last, as in Node;
/// [`super::Echo`] looks for them there. Only the position of a stored broadcast follows:
/// nodes receive their own, too.
#[derive(Serialize)]
struct Written<'a, D> {
    r#type: u8,
    data: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm: Option<&'a str>,
    uid: &'a str,
    nsp: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<()>,
}

/// The envelope around the written data.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) namespace: &'a str,
    pub(super) uid: &'a str,
    /// The name of the asker or of the node that answers.
    pub(super) node: Option<&'a str>,
    /// The id of the question about the sockets that were reached.
    pub(super) confirm: Option<&'a str>,
    /// Whether everything is MessagePack, as on the channels of the streams dialect.
    pub(super) is_packed: bool,
    /// Whether the position is left empty, because the log that stores the broadcast assigns it.
    pub(super) is_unplaced: bool,
}

impl Around<'_> {
    /// The encoding of a message without binary.
    fn plain(self) -> Encoding {
        if self.is_packed {
            Encoding::Msgpack
        } else {
            Encoding::Json
        }
    }

    fn write(self, encoding: Encoding, kind: u8, data: impl Serialize) -> Bytes {
        self.write_sized(encoding, kind, data, 0)
    }

    /// Writes an envelope whose data takes roughly so many bytes.
    fn write_sized(
        self,
        encoding: Encoding,
        kind: u8,
        data: impl Serialize,
        bytes: usize,
    ) -> Bytes {
        let mut out = Vec::with_capacity(256 + bytes);
        let written = Written {
            r#type: kind,
            data,
            node: self.node,
            confirm: self.confirm,
            uid: self.uid,
            nsp: self.namespace,
            position: self.is_unplaced.then_some(()),
        };
        encoding.write(&mut out, &written);
        out.into()
    }
}

/// The data of a message or a question in its written form, in the order of its members.
#[derive(Serialize, Default)]
pub(super) struct WrittenData<'a> {
    /// Where server-side events have their id; the other messages have it at the end.
    #[serde(rename = "requestId", skip_serializing_if = "Option::is_none")]
    first_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<EventPacket<'a>>,
    #[serde(rename = "packet", skip_serializing_if = "Option::is_none")]
    event: Option<Payload<'a>>,
    /// Where broadcasts have their id.
    #[serde(rename = "requestId", skip_serializing_if = "Option::is_none")]
    broadcast_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opts: Option<Options<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<&'a [Box<str>]>,
    #[serde(rename = "requestId", skip_serializing_if = "Option::is_none")]
    last_id: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reached: bool,
}

/// Writes a broadcast.
pub(super) fn write_broadcast(
    around: Around<'_>,
    (target, event, args): (&Target, &str, &Args),
) -> Result<Bytes, WireError> {
    let encoding = around.plain().with(args);
    let data = broadcast(encoding, (event, args), None, (target, target.flags))?;
    Ok(around.write_sized(encoding, BROADCAST, data, args.json().len()))
}

/// The type, the encoding and the data of a message. `plain` is the encoding of one without binary.
pub(super) fn message_data(
    plain: Encoding,
    message: &Message,
) -> Result<(u8, Encoding, WrittenData<'_>), WireError> {
    Ok(match message {
        Message::Broadcast(Broadcast {
            target,
            event,
            args,
        }) => {
            let encoding = plain.with(args);
            let data = broadcast(encoding, (event, args), None, (target, target.flags))?;
            (BROADCAST, encoding, data)
        }
        Message::ServerSideEmit { event, args } => {
            let encoding = plain.with(args);
            let data = server_side(encoding, event, args, None)?;
            (SERVER_SIDE_EMIT, encoding, data)
        }
        message => {
            let (kind, data) = command(message, None)?;
            (kind, plain, data)
        }
    })
}

/// The type and the data of a question about the sockets that were reached.
pub(super) fn reached_data<'a>(target: &'a Target, id: &'a str) -> (u8, WrittenData<'a>) {
    (FETCH_SOCKETS, sockets(target, id, true))
}

/// Writes a message.
pub(super) fn write_message(around: Around<'_>, message: &Message) -> Result<Bytes, WireError> {
    match message {
        Message::Broadcast(broadcast) => write_broadcast(around, broadcast.parts()),
        message => {
            let (kind, encoding, data) = message_data(around.plain(), message)?;
            Ok(around.write(encoding, kind, data))
        }
    }
}

/// Writes a question. A question that only the classic dialect has is asked as a question for the sockets.
pub(super) fn write_question(
    around: Around<'_>,
    id: &str,
    question: &Question,
) -> Result<Bytes, WireError> {
    let everybody = Target::default();
    let (target, reached) = match question {
        Question::Sockets(target) | Question::SocketIds(target) => (target, false),
        Question::Reached(target) => (target, true),
        Question::Rooms => (&everybody, false),
        Question::Acks {
            target,
            event,
            args,
            timeout,
        } => {
            let flags = target.flags.with_timeout(*timeout);
            let encoding = around.plain().with(args);
            let data = broadcast(encoding, (event, args), Some(id), (target, flags))?;
            return Ok(around.write(encoding, BROADCAST, data));
        }
        Question::ServerSideEmit { event, args } => {
            let encoding = around.plain().with(args);
            let data = server_side(encoding, event, args, Some(id))?;
            return Ok(around.write(encoding, SERVER_SIDE_EMIT, data));
        }
        Question::Command(message) => {
            let (kind, data) = command(message, Some(id))?;
            return Ok(around.write(around.plain(), kind, data));
        }
    };
    Ok(around.write(around.plain(), FETCH_SOCKETS, sockets(target, id, reached)))
}

/// Writes an answer. Returns `None` if the asker is a Node server that expects none.
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
    let channels = wire.channels();
    let uid = channel::uid(node, namespace, channels.dialect());
    let around = Around {
        node: to.node.as_ref().map(|_| node.as_str()),
        ..wire.around(namespace, uid.as_str())
    };
    let encoding = if answers::has_binary(reply) {
        Encoding::Msgpack
    } else {
        around.plain()
    };
    let mut members = answers::Written::new(encoding, reply, true)?;
    members.request_id = id;
    Ok(Some(Publication {
        // Node listens for answers on the main channel, too.
        channel: match &to.uid {
            Some(asker) => channels.response_of(namespace, asker),
            None => channels.broadcast(namespace),
        },
        payload: around.write(encoding, kind, members),
    }))
}

fn broadcast<'a>(
    encoding: Encoding,
    (event, args): (&'a str, &'a Args),
    id: Option<&'a str>,
    (target, flags): (&'a Target, Flags),
) -> Result<WrittenData<'a>, WireError> {
    Ok(WrittenData {
        packet: Some(EventPacket::new(encoding, event, args, None)?),
        broadcast_id: id,
        opts: Some(Options::new(target, Some(flags))),
        ..WrittenData::default()
    })
}

fn server_side<'a>(
    encoding: Encoding,
    event: &'a str,
    args: &'a Args,
    id: Option<&'a str>,
) -> Result<WrittenData<'a>, WireError> {
    Ok(WrittenData {
        first_id: id,
        event: Some(Payload::event(encoding, event, args)?),
        ..WrittenData::default()
    })
}

fn sockets<'a>(target: &'a Target, id: &'a str, reached: bool) -> WrittenData<'a> {
    WrittenData {
        opts: Some(Options::new(target, Some(target.flags))),
        last_id: Some(id),
        reached,
        ..WrittenData::default()
    }
}

fn command<'a>(
    message: &'a Message,
    id: Option<&'a str>,
) -> Result<(u8, WrittenData<'a>), WireError> {
    let (kind, target, rooms, close) =
        command_parts(message, [SOCKETS_JOIN, SOCKETS_LEAVE, DISCONNECT_SOCKETS])?;
    let data = WrittenData {
        opts: Some(Options::new(target, Some(target.flags))),
        close,
        rooms,
        last_id: id,
        ..WrittenData::default()
    };
    Ok((kind, data))
}
