//! The members of an answer in both dialects, without the envelope around them.
//!
//! A Node server gets the answer that another Node server would give. A Roomcast node or emitter
//! understands more: all acknowledgements in one message with the id of each socket, that there is
//! no handler, and how many sockets a broadcast reached.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Incoming, Reply, WireError,
    parts::Rooms,
    payload::{Arguments, Encoding, Payload, missing},
};
use crate::{
    args::Args,
    id::{NodeId, SocketId},
    question::{Answer, Description},
    raw::{Look, Raw},
};

/// The members of an answer as they are read. The result of a handler has its own key in each
/// dialect: `data` in the classic one, `packet` in the sharded one.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase", bound(deserialize = "'de: 'a"))]
pub(super) struct Members<'a> {
    rooms: Raw<'a>,
    sockets: Raw<'a>,
    client_count: Raw<'a>,
    packet: Raw<'a>,
    data: Raw<'a>,
    acks: Raw<'a>,
    missing: Raw<'a>,
    unnamed: Raw<'a>,
    none: Raw<'a>,
    reached: Raw<'a>,
    order: Raw<'a>,
    pub(super) request_id: Raw<'a>,
    // In the classic dialect, the members of the envelope are here, too.
    pub(super) r#type: Raw<'a>,
    pub(super) node: Raw<'a>,
}

impl Members<'_> {
    pub(super) fn asked(&self) -> Result<Reply, WireError> {
        let count = self.client_count.whole();
        Ok(Reply::Asked(count.ok_or_else(|| missing("clientCount"))?))
    }

    pub(super) fn acknowledged(&self, arguments: &Arguments) -> Result<Reply, WireError> {
        let Some(acks) = self.acks.list() else {
            return Ok(Reply::Acknowledged(self.value(arguments)?));
        };
        let mut answers = Vec::new();
        acks.each(|ack| {
            answers.push(read_ack(ack, arguments)?);
            Ok::<_, WireError>(())
        })?;
        let missing = Rooms::read(self.missing)?.names();
        Ok(Reply::Answer(Answer::Acks {
            answers,
            missing: missing.iter().map(|id| SocketId::new(id)).collect(),
            missing_unnamed: self.unnamed.whole().unwrap_or(0),
        }))
    }

    pub(super) fn server_side(&self, arguments: &Arguments) -> Result<Reply, WireError> {
        let args = match self.none.is_true() {
            true => None,
            false => Some(self.value(arguments)?),
        };
        Ok(Reply::Answer(Answer::ServerSideEmit(args)))
    }

    /// An answer without a type: its members determine its type. Node's old adapters confirm a
    /// command with an answer without members.
    pub(super) fn untyped(&self, arguments: &Arguments) -> Result<Reply, WireError> {
        let answer = if let Some(sockets) = self.sockets.list() {
            read_sockets(sockets, arguments)?
        } else if let Some(rooms) = self.rooms.present() {
            Answer::Rooms(Rooms::read(rooms)?.names())
        } else if let Some(reached) = self.reached.whole() {
            Answer::Reached(reached)
        } else {
            Answer::Command(self.order.boolean().unwrap_or(true))
        };
        Ok(Reply::Answer(answer))
    }

    /// The whole answer, of a node with this name.
    pub(super) fn response(&self, node: Raw<'_>, reply: Reply) -> Result<Incoming, WireError> {
        let id = self.request_id.boxed_text();
        Ok(Incoming::Response {
            id: id.ok_or_else(|| missing("requestId"))?,
            node: node.text().map(|name| NodeId::new(&name)),
            reply,
        })
    }

    /// An acknowledgement or the result of a handler.
    fn value(&self, arguments: &Arguments) -> Result<Args, WireError> {
        arguments.argument(self.packet.present().unwrap_or(self.data))
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
    #[serde(default, bound(deserialize = "'de: 'a"))]
    struct Socket<'a> {
        id: Raw<'a>,
        rooms: Raw<'a>,
        data: Raw<'a>,
        handshake: Raw<'a>,
    }

    let socket: Socket<'_> = socket.read()?;
    let id = socket
        .id
        .text()
        .ok_or_else(|| missing("the id of a socket"))?;
    let rooms = Rooms::read(socket.rooms)?.names();
    Ok(Description {
        id: SocketId::new(&id),
        rooms: rooms.into_iter().map(String::from).collect(),
        data: arguments.tree(socket.data)?,
        handshake: arguments.tree(socket.handshake)?,
    })
}

/// Reads a list of a socket's id, which may be unknown, and its arguments.
fn read_ack(ack: Raw<'_>, arguments: &Arguments) -> Result<(Option<SocketId>, Args), WireError> {
    let parts: Vec<Raw<'_>> = ack.read()?;
    let args = parts
        .get(1)
        .ok_or_else(|| missing("the arguments of an acknowledgement"))?;
    let id = parts[0].text().map(|id| SocketId::new(&id));
    Ok((id, arguments.args(*args)?))
}

/// The members of an answer as they are written.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) r#type: Option<u8>,
    pub(super) request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_count: Option<usize>,
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
    /// The members for a reply; `has_packet` selects the key of a handler's result.
    pub(super) fn new(
        encoding: Encoding,
        reply: &'a Reply,
        has_packet: bool,
    ) -> Result<Self, WireError> {
        let mut members = Self::default();
        let answer = match reply {
            Reply::Asked(count) => {
                members.client_count = Some(*count);
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
