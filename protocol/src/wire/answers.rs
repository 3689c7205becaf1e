//! The members of an answer in both dialects, without the envelope around them.
//!
//! A Node server gets the answer that another Node server would give. A Roomcast node or emitter
//! understands more: all acknowledgements in one message with the id of each socket, that there is
//! no handler, and how many sockets a broadcast reached.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Reply, WireError,
    parts::Rooms,
    payload::{Arguments, Encoding, Payload},
};
use crate::{
    args::Args,
    id::SocketId,
    question::{Answer, Description},
    raw::{Look, Raw, lenient},
};

/// The members of an answer as they are read. The result of a handler has its own key in each
/// dialect: `data` in the classic one, `packet` in the sharded one.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Members<'a> {
    rooms: Option<Rooms>,
    #[serde(borrow, deserialize_with = "lenient::raw")]
    sockets: Option<Raw<'a>>,
    #[serde(rename = "clientCount", deserialize_with = "lenient::whole")]
    count: Option<u64>,
    #[serde(borrow, deserialize_with = "lenient::raw")]
    packet: Option<Raw<'a>>,
    #[serde(borrow, deserialize_with = "lenient::raw")]
    data: Option<Raw<'a>>,
    #[serde(borrow, deserialize_with = "lenient::raw")]
    acks: Option<Raw<'a>>,
    missing: Rooms,
    #[serde(deserialize_with = "lenient::whole")]
    unnamed: Option<u64>,
    #[serde(deserialize_with = "lenient::is_true")]
    none: bool,
    #[serde(deserialize_with = "lenient::whole")]
    reached: Option<u64>,
    #[serde(deserialize_with = "lenient::boolean")]
    order: Option<bool>,
    // The envelope's own members in the classic dialect, and the id in both.
    #[serde(rename = "type", deserialize_with = "lenient::whole")]
    pub(super) kind: Option<u64>,
    #[serde(rename = "requestId", borrow, deserialize_with = "lenient::text")]
    pub(super) id: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "lenient::text")]
    pub(super) node: Option<Cow<'a, str>>,
}

impl Members<'_> {
    pub(super) fn asked(&self) -> Result<Reply, WireError> {
        let count = self.count.ok_or(WireError::Missing {
            what: "clientCount",
        })?;
        Ok(Reply::Asked(count as usize))
    }

    pub(super) fn acknowledged(self, arguments: &Arguments) -> Result<Reply, WireError> {
        let list = self.acks.filter(|acks| acks.look() == Look::List);
        let Some(list) = list else {
            return Ok(Reply::Acknowledged(self.value(arguments)?));
        };
        let mut answers = Vec::new();
        list.each(|ack| {
            answers.push(read_ack(ack, arguments)?);
            Ok::<_, WireError>(())
        })?;
        let missing = self.missing.names();
        Ok(Reply::Answer(Answer::Acks {
            answers,
            missing: missing.iter().map(|id| SocketId::new(id)).collect(),
            missing_unnamed: self.unnamed.unwrap_or(0) as usize,
        }))
    }

    pub(super) fn server_side(&self, arguments: &Arguments) -> Result<Reply, WireError> {
        let args = if self.none {
            None
        } else {
            Some(self.value(arguments)?)
        };
        Ok(Reply::Answer(Answer::ServerSideEmit(args)))
    }

    /// An answer without a type: its members tell what it is. Node's old adapters confirm a command
    /// with an answer without members.
    pub(super) fn untyped(self, arguments: &Arguments) -> Result<Reply, WireError> {
        let sockets = self.sockets.filter(|list| list.look() == Look::List);
        let answer = match (sockets, self.rooms, self.reached) {
            (Some(sockets), ..) => read_sockets(sockets, arguments)?,
            (None, Some(rooms), _) => Answer::Rooms(rooms.names()),
            (None, None, Some(reached)) => Answer::Reached(reached as usize),
            (None, None, None) => Answer::Command(self.order.unwrap_or(true)),
        };
        Ok(Reply::Answer(answer))
    }

    /// An acknowledgement or the result of a handler.
    fn value(&self, arguments: &Arguments) -> Result<Args, WireError> {
        match self.packet.or(self.data) {
            Some(raw) => arguments.argument(raw),
            None => Ok(Args::default()),
        }
    }
}

/// Reads a list of ids or of descriptions. An empty list could be either.
fn read_sockets(list: Raw<'_>, arguments: &Arguments) -> Result<Answer, WireError> {
    let (mut ids, mut descriptions) = (Vec::new(), Vec::new());
    list.each(|socket| {
        match socket.look() {
            Look::Text(id) => ids.push(SocketId::new(&id)),
            Look::Map => descriptions.push(read_description(socket, arguments)?),
            _ => {}
        }
        Ok::<_, WireError>(())
    })?;
    Ok(if ids.is_empty() {
        Answer::Sockets(descriptions)
    } else {
        Answer::SocketIds(ids)
    })
}

fn read_description(socket: Raw<'_>, arguments: &Arguments) -> Result<Description, WireError> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Socket<'a> {
        #[serde(borrow, deserialize_with = "lenient::text")]
        id: Option<Cow<'a, str>>,
        rooms: Rooms,
        #[serde(borrow, deserialize_with = "lenient::raw")]
        data: Option<Raw<'a>>,
        #[serde(borrow, deserialize_with = "lenient::raw")]
        handshake: Option<Raw<'a>>,
    }

    let socket: Socket<'_> = socket.read()?;
    let id = socket.id.ok_or(WireError::Missing {
        what: "the id of a socket",
    })?;
    let tree = |raw: Option<Raw<'_>>| raw.map_or(Ok(Value::Null), |raw| arguments.tree(raw));
    Ok(Description {
        id: SocketId::new(&id),
        rooms: socket.rooms.names().into_iter().map(String::from).collect(),
        data: tree(socket.data)?,
        handshake: tree(socket.handshake)?,
    })
}

/// Reads a list of a socket's id, which may be unknown, and its arguments.
fn read_ack(ack: Raw<'_>, arguments: &Arguments) -> Result<(Option<SocketId>, Args), WireError> {
    let parts: Vec<Raw<'_>> = ack.read()?;
    let args = parts.get(1).ok_or(WireError::Missing {
        what: "the arguments of an acknowledgement",
    })?;
    let id = parts[0].text().map(|id| SocketId::new(&id));
    Ok((id, arguments.args(*args)?))
}

/// The members of an answer as they are written.
#[derive(Serialize, Default)]
pub(super) struct Written<'a> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<u8>,
    #[serde(rename = "requestId")]
    pub(super) id: &'a str,
    #[serde(rename = "clientCount", skip_serializing_if = "Option::is_none")]
    count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<Payload<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Payload<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sockets: Option<Sockets<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<&'a [Box<str>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acks: Option<Vec<(Option<&'a SocketId>, Payload<'a>)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<&'a [SocketId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unnamed: Option<usize>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    none: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Sockets<'a> {
    Ids(&'a [SocketId]),
    Descriptions(Vec<Described<'a>>),
}

#[derive(Serialize)]
struct Described<'a> {
    id: &'a SocketId,
    handshake: &'a Value,
    rooms: &'a [String],
    data: &'a Value,
}

impl<'a> Written<'a> {
    /// The members for a reply; `has_packet` tells under which key the result of a handler goes.
    pub(super) fn new(
        encoding: Encoding,
        reply: &'a Reply,
        has_packet: bool,
    ) -> Result<Self, WireError> {
        let mut members = Self::default();
        let answer = match reply {
            Reply::Asked(count) => {
                members.count = Some(*count);
                return Ok(members);
            }
            Reply::Acknowledged(args) => {
                members.packet = Payload::first(encoding, args)?;
                return Ok(members);
            }
            Reply::Answer(answer) => answer,
        };
        match answer {
            Answer::Sockets(sockets) => {
                let described = sockets.iter().map(|socket| Described {
                    id: &socket.id,
                    handshake: &socket.handshake,
                    rooms: &socket.rooms,
                    data: &socket.data,
                });
                members.sockets = Some(Sockets::Descriptions(described.collect()));
            }
            Answer::SocketIds(ids) => members.sockets = Some(Sockets::Ids(ids)),
            Answer::Rooms(rooms) => members.rooms = Some(rooms),
            Answer::Acks {
                answers,
                missing,
                missing_unnamed,
            } => {
                let acks = answers.iter().map(|(id, args)| {
                    let args = Payload::args(encoding, args)?;
                    Ok((id.as_ref(), args))
                });
                members.acks = Some(acks.collect::<Result<_, WireError>>()?);
                members.missing = Some(missing);
                members.unnamed = (*missing_unnamed > 0).then_some(*missing_unnamed);
            }
            Answer::ServerSideEmit(Some(args)) => {
                let result = Payload::first(encoding, args)?;
                *(if has_packet {
                    &mut members.packet
                } else {
                    &mut members.data
                }) = result;
            }
            Answer::ServerSideEmit(None) => members.none = true,
            Answer::Reached(count) => members.reached = Some(*count),
            Answer::Command(was_meant) => members.order = Some(*was_meant),
        }
        Ok(members)
    }
}

/// Whether an answer contains binary, which JSON could only describe.
pub(super) fn has_binary(reply: &Reply) -> bool {
    let is_binary = |args: &Args| !args.attachments().is_empty();
    match reply {
        Reply::Acknowledged(args) | Reply::Answer(Answer::ServerSideEmit(Some(args))) => {
            is_binary(args)
        }
        Reply::Answer(Answer::Acks { answers, .. }) => {
            answers.iter().any(|(_, args)| is_binary(args))
        }
        _ => false,
    }
}
