//! Commands and questions of the classic dialect: JSON, or in the encoding of broadcasts if they
//! carry a packet. Node distinguishes the two by the first byte and accepts either for everything.
//!
//! ```text
//! type                   members beside uid and requestId            answered by
//! 0 SOCKETS              rooms, reached?                             ids (or their number)
//! 1 ALL_ROOMS                                                        rooms
//! 2 REMOTE_JOIN          opts, rooms; old: sid, room                 nobody; old: the owner
//! 3 REMOTE_LEAVE         opts, rooms; old: sid, room                 nobody; old: the owner
//! 4 REMOTE_DISCONNECT    opts, close; old: sid, close                nobody; old: the owner
//! 5 REMOTE_FETCH         opts, reached?                              descriptions (or their number)
//! 6 SERVER_SIDE_EMIT     data: [event, ...args]                      results, if there is an id
//! 7 BROADCAST            packet, opts with flags.timeout             acknowledgements
//! ```
//!
//! `reached`, `node` and `confirm` are ours. `node` names the asker, and allows a Roomcast node to
//! give a richer answer than Node would understand.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::{
    Asker, DEFAULT_ACK_TIMEOUT, Incoming, Wire, WireError,
    parts::{EventPacket, Options, Packet, Rooms, asked, command_parts, read_target, required},
    payload::{Arguments, Encoding, Payload, expected, missing},
};
use crate::{
    channel::EMITTER_UID, id::NodeId, message::Message, question::Question, raw::Raw,
    target::Target,
};

const SOCKETS: u8 = 0;
const ALL_ROOMS: u8 = 1;
const REMOTE_JOIN: u8 = 2;
const REMOTE_LEAVE: u8 = 3;
const REMOTE_DISCONNECT: u8 = 4;
const REMOTE_FETCH: u8 = 5;
const SERVER_SIDE_EMIT: u8 = 6;
const BROADCAST: u8 = 7;

/// The members of a request.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase", bound(deserialize = "'de: 'a"))]
struct Request<'a> {
    r#type: Raw<'a>,
    uid: Raw<'a>,
    request_id: Raw<'a>,
    node: Raw<'a>,
    confirm: Raw<'a>,
    reached: Raw<'a>,
    opts: Raw<'a>,
    rooms: Raw<'a>,
    /// Of commands before version 7 of Node's adapter: one socket and one room.
    sid: Raw<'a>,
    room: Raw<'a>,
    close: Raw<'a>,
    data: Raw<'a>,
    packet: Raw<'a>,
}

/// Reads a command or a question.
pub(in super::super) fn read(
    arguments: &Arguments,
    namespace: &str,
    raw: Raw<'_>,
) -> Result<Incoming, WireError> {
    let request: Request<'_> = raw.map().ok_or_else(|| expected("a request"))?.read()?;
    let kind = request.r#type.number().ok_or_else(|| missing("type"))?;
    let known = f64::from(SOCKETS)..=f64::from(BROADCAST);
    if kind.fract() != 0.0 || !known.contains(&kind) {
        return Ok(Incoming::Ignored);
    }
    match kind as u8 {
        SOCKETS => {
            let target = Target {
                rooms: Rooms::read(request.rooms)?.targets(),
                ..Target::default()
            };
            let question = request.reached_or(target, Question::SocketIds);
            request.question(question)
        }
        ALL_ROOMS => request.question(Question::Rooms),
        REMOTE_FETCH => {
            let target = request.target()?;
            let question = request.reached_or(target, Question::Sockets);
            request.question(question)
        }
        SERVER_SIDE_EMIT => {
            let (event, args) = arguments.event(required(request.data, "data")?)?;
            if request.request_id.text().is_some() {
                return request.question(Question::ServerSideEmit { event, args });
            }
            Ok(request.message(Message::ServerSideEmit { event, args }))
        }
        BROADCAST => request.broadcast(arguments, namespace),
        kind => request.command(kind),
    }
}

impl Request<'_> {
    fn broadcast(self, arguments: &Arguments, namespace: &str) -> Result<Incoming, WireError> {
        let packet = Packet::read(required(self.packet, "packet")?)?;
        if !packet.is_for(namespace) {
            return Ok(Incoming::Ignored);
        }
        let mut target = self.target()?;
        let (event, args) = packet.event(arguments)?;
        let timeout = target.flags.timeout.take();
        self.question(Question::Acks {
            target,
            event,
            args,
            timeout: timeout.unwrap_or(DEFAULT_ACK_TIMEOUT),
        })
    }

    /// A command. It is a question in its old form for one socket, and if a node of ours asks for
    /// an answer.
    fn command(self, kind: u8) -> Result<Incoming, WireError> {
        let is_old = self.opts.present().is_none();
        let target = match self.sid.boxed_text().filter(|_| is_old) {
            Some(sid) => Target {
                rooms: vec![sid],
                ..Target::default()
            },
            None => self.target()?,
        };
        let message = if kind == REMOTE_DISCONNECT {
            let close = self.close.is_true();
            Message::DisconnectSockets { target, close }
        } else {
            let rooms = self.rooms.present().or_else(|| self.room.present());
            let rooms = Rooms::read(rooms.ok_or_else(|| missing("rooms"))?)?.names();
            if kind == REMOTE_JOIN {
                Message::SocketsJoin { target, rooms }
            } else {
                Message::SocketsLeave { target, rooms }
            }
        };
        let is_answered = is_old || self.node.text().is_some();
        if is_answered && self.request_id.text().is_some() {
            return self.question(Question::Command(message));
        }
        Ok(self.message(message))
    }

    fn target(&self) -> Result<Target, WireError> {
        read_target(required(self.opts, "opts")?)
    }

    fn reached_or(&self, target: Target, other: fn(Target) -> Question) -> Question {
        if self.reached.is_true() {
            Question::Reached(target)
        } else {
            other(target)
        }
    }

    fn message(&self, message: Message) -> Incoming {
        let confirm = self.confirm.boxed_text();
        Incoming::Message {
            message,
            confirm,
            position: None,
        }
    }

    fn question(&self, question: Question) -> Result<Incoming, WireError> {
        asked(Asker::read(self.uid, self.node), self.request_id, question)
    }
}

/// A request in its written form, in the order of its members.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    r#type: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Payload<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<EventPacket<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opts: Option<Options<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<&'a [Box<str>]>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm: Option<&'a str>,
}

/// Writes a message on the channel of requests that is not a question.
pub(in super::super) fn write_message(
    uid: &str,
    message: &Message,
    confirm: Option<&str>,
) -> Result<Bytes, WireError> {
    let mut request = if let Message::ServerSideEmit { event, args } = message {
        Written {
            uid: Some(uid),
            r#type: SERVER_SIDE_EMIT,
            data: Some(Payload::event(Encoding::Json, event, args)?),
            ..Written::default()
        }
    } else {
        command(uid, message)?
    };
    request.confirm = confirm;
    Ok(Encoding::Json.to_bytes(&request))
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
    let mut encoding = Encoding::Json;
    let mut request = match question {
        Question::Sockets(target) => fetch(target, false),
        Question::SocketIds(target) => ids_or_fetch(target, false),
        Question::Reached(target) => ids_or_fetch(target, true),
        Question::Rooms => Written {
            r#type: ALL_ROOMS,
            ..Written::default()
        },
        Question::ServerSideEmit { event, args } => Written {
            r#type: SERVER_SIDE_EMIT,
            data: Some(Payload::event(Encoding::Json, event, args)?),
            ..Written::default()
        },
        Question::Acks {
            target,
            event,
            args,
            timeout,
        } => {
            encoding = wire.encoding();
            let packet = EventPacket::new(encoding, event, args, Some(namespace))?;
            Written {
                r#type: BROADCAST,
                packet: Some(packet),
                opts: Some(Options::new(
                    target,
                    Some(target.flags.with_timeout(*timeout)),
                )),
                ..Written::default()
            }
        }
        Question::Command(message) => command(uid, message)?,
    };
    if !matches!(question, Question::Command(_)) {
        request.uid = Some(uid);
    }
    request.request_id = Some(id);
    request.node = Some(asker.as_str());
    Ok(encoding.to_bytes(&request))
}

fn fetch(target: &Target, reached: bool) -> Written<'_> {
    Written {
        r#type: REMOTE_FETCH,
        opts: Some(Options::new(target, None)),
        reached,
        ..Written::default()
    }
}

/// The lighter question, which Node answers with ids alone. It has no exceptions.
fn ids_or_fetch(target: &Target, reached: bool) -> Written<'_> {
    if !target.except.is_empty() {
        return fetch(target, reached);
    }
    Written {
        r#type: SOCKETS,
        rooms: Some(&target.rooms),
        reached,
        ..Written::default()
    }
}

fn command<'a>(uid: &'a str, message: &'a Message) -> Result<Written<'a>, WireError> {
    // Emitters name themselves only where it matters, as Node's do.
    let sender = (uid != EMITTER_UID).then_some(uid);
    let (kind, target, rooms, close) =
        command_parts(message, [REMOTE_JOIN, REMOTE_LEAVE, REMOTE_DISCONNECT])?;
    Ok(Written {
        uid: sender,
        r#type: kind,
        opts: Some(Options::new(target, None)),
        close,
        rooms,
        ..Written::default()
    })
}
