//! What answers consist of in both dialects, beside the envelope around it.
//!
//! A server of Node's is answered as another one would do it. A Roomcast node or emitter understands
//! more: all acknowledgements in one message and whose they are, that there is no handler, how many
//! sockets a broadcast has reached.

use super::{
    Reply, WireError,
    cursor::{Cursor, Head},
    output::{Output, has_first},
    parts::{RoomNames, read_rooms},
};
use crate::{
    args::Args,
    id::SocketId,
    question::{Answer, Description},
};

/// The members of an answer as they were read.
#[derive(Default)]
pub(super) struct Fields {
    rooms: Option<RoomNames>,
    sockets: Option<Answer>,
    count: Option<usize>,
    value: Option<Args>,
    acks: Option<Acks>,
    missing: Vec<SocketId>,
    missing_unnamed: usize,
    has_no_handler: bool,
    reached: Option<usize>,
    order: Option<bool>,
}

type Acks = Vec<(Option<SocketId>, Args)>;

impl Fields {
    /// Reads a value if it belongs to answers, and says whether it did. The answer of a handler has
    /// its own key in each dialect.
    pub(super) fn read<'a>(
        &mut self,
        cursor: &mut impl Cursor<'a>,
        key: &str,
    ) -> Result<bool, WireError> {
        match key {
            "rooms" => self.rooms = Some(read_rooms(cursor)?),
            "sockets" => self.sockets = read_sockets(cursor)?,
            "clientCount" => self.count = cursor.count()?,
            "acks" => self.acks = read_acks(cursor)?,
            "missing" => self.missing = read_ids(cursor)?,
            "unnamed" => self.missing_unnamed = cursor.count()?.unwrap_or(0),
            "none" => self.has_no_handler = cursor.is_true()?,
            "reached" => self.reached = cursor.count()?,
            "order" => self.order = Some(cursor.is_true()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Reads an acknowledgement or the answer of a handler.
    pub(super) fn read_value<'a>(&mut self, cursor: &mut impl Cursor<'a>) -> Result<(), WireError> {
        self.value = Some(cursor.argument()?);
        Ok(())
    }

    pub(super) fn asked(self) -> Result<Reply, WireError> {
        let count = self.count.ok_or(WireError::Missing {
            what: "clientCount",
        })?;
        Ok(Reply::Asked(count))
    }

    pub(super) fn acknowledged(self) -> Reply {
        match self.acks {
            Some(answers) => Reply::Answer(Answer::Acks {
                answers,
                missing: self.missing,
                missing_unnamed: self.missing_unnamed,
            }),
            None => Reply::Acknowledged(self.value.unwrap_or_default()),
        }
    }

    pub(super) fn server_side(self) -> Reply {
        let args = (!self.has_no_handler).then(|| self.value.unwrap_or_default());
        Reply::Answer(Answer::ServerSideEmit(args))
    }

    /// What the members alone tell. None at all are how Node's old adapters say that an order was
    /// carried out.
    pub(super) fn other(self) -> Reply {
        let others = [
            self.sockets,
            self.rooms.map(|rooms| Answer::Rooms(rooms.names())),
            self.reached.map(Answer::Reached),
        ];
        let first = others.into_iter().flatten().next();
        Reply::Answer(first.unwrap_or(Answer::Order(self.order.unwrap_or(true))))
    }
}

/// Reads a list of ids or of descriptions; which of them an empty list is, nobody can tell.
fn read_sockets<'a>(cursor: &mut impl Cursor<'a>) -> Result<Option<Answer>, WireError> {
    let (mut ids, mut descriptions) = (Vec::new(), Vec::new());
    match cursor.head()? {
        Head::List(len) => cursor.items(len, |cursor| {
            match cursor.head()? {
                Head::Text(id) => ids.push(SocketId::new(&id)),
                Head::Map(len) => descriptions.push(read_description(cursor, len)?),
                other => cursor.leave(&other)?,
            }
            Ok(())
        })?,
        other => {
            cursor.leave(&other)?;
            return Ok(None);
        }
    }
    Ok(Some(if ids.is_empty() {
        Answer::Sockets(descriptions)
    } else {
        Answer::SocketIds(ids)
    }))
}

fn read_description<'a>(
    cursor: &mut impl Cursor<'a>,
    len: usize,
) -> Result<Description, WireError> {
    let mut id = None;
    let mut description = Description {
        id: SocketId::new(""),
        rooms: Vec::new(),
        data: serde_json::Value::Null,
        handshake: serde_json::Value::Null,
    };
    cursor.members(len, |cursor, key| {
        match key {
            "id" => id = cursor.text()?,
            "rooms" => {
                let rooms = read_rooms(cursor)?.names();
                description.rooms = rooms.into_iter().map(String::from).collect();
            }
            "data" => description.data = cursor.value()?,
            "handshake" => description.handshake = cursor.value()?,
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    let id = id.ok_or(WireError::Missing {
        what: "the id of a socket",
    })?;
    description.id = SocketId::new(&id);
    Ok(description)
}

fn read_acks<'a>(cursor: &mut impl Cursor<'a>) -> Result<Option<Acks>, WireError> {
    let mut acks = Vec::new();
    match cursor.head()? {
        Head::List(len) => cursor.items(len, |cursor| {
            acks.push(read_ack(cursor)?);
            Ok(())
        })?,
        other => {
            cursor.leave(&other)?;
            return Ok(None);
        }
    }
    Ok(Some(acks))
}

fn read_ack<'a>(cursor: &mut impl Cursor<'a>) -> Result<(Option<SocketId>, Args), WireError> {
    let (mut place, mut id, mut args) = (0, None, None);
    match cursor.head()? {
        Head::List(len) => cursor.items(len, |cursor| {
            match place {
                0 => id = cursor.text()?.map(|id| SocketId::new(&id)),
                1 => args = Some(cursor.args()?),
                _ => cursor.skip()?,
            }
            place += 1;
            Ok(())
        })?,
        _ => {
            return Err(WireError::Unexpected {
                expected: "an acknowledgement",
            });
        }
    }
    let args = args.ok_or(WireError::Missing {
        what: "the arguments of an acknowledgement",
    })?;
    Ok((id, args))
}

fn read_ids<'a>(cursor: &mut impl Cursor<'a>) -> Result<Vec<SocketId>, WireError> {
    let ids = read_rooms(cursor)?.names();
    Ok(ids.iter().map(|id| SocketId::new(id)).collect())
}

/// How many members [`write`] writes.
pub(super) fn count(reply: &Reply) -> usize {
    match reply {
        Reply::Acknowledged(args) | Reply::Answer(Answer::ServerSideEmit(Some(args))) => {
            usize::from(has_first(args))
        }
        Reply::Answer(Answer::Acks {
            missing_unnamed, ..
        }) => 2 + usize::from(*missing_unnamed > 0),
        _ => 1,
    }
}

/// Writes the members of an answer; `handler` is the key of what a handler has answered.
pub(super) fn write(out: &mut Output, reply: &Reply, handler: &str) -> Result<(), WireError> {
    let answer = match reply {
        Reply::Asked(count) => {
            out.key("clientCount").number(*count as u64);
            return Ok(());
        }
        Reply::Acknowledged(args) => return out.first("packet", args).map(drop),
        Reply::Answer(answer) => answer,
    };
    match answer {
        Answer::Sockets(sockets) => write_sockets(out, sockets)?,
        Answer::SocketIds(ids) => drop(out.key("sockets").texts(ids)),
        Answer::Rooms(rooms) => drop(out.key("rooms").texts(rooms)),
        Answer::Acks {
            answers,
            missing,
            missing_unnamed,
        } => {
            write_acks(out, answers)?;
            out.key("missing").texts(missing);
            if *missing_unnamed > 0 {
                out.key("unnamed").number(*missing_unnamed as u64);
            }
        }
        Answer::ServerSideEmit(Some(args)) => drop(out.first(handler, args)?),
        Answer::ServerSideEmit(None) => drop(out.key("none").bool(true)),
        Answer::Reached(count) => drop(out.key("reached").number(*count as u64)),
        Answer::Order(was_meant) => drop(out.key("order").bool(*was_meant)),
    }
    Ok(())
}

fn write_sockets(out: &mut Output, sockets: &[Description]) -> Result<(), WireError> {
    out.key("sockets").list(sockets.len());
    for socket in sockets {
        out.map(4);
        out.key("id").text(socket.id.as_str());
        out.key("handshake").data(&socket.handshake)?;
        out.key("rooms").texts(&socket.rooms);
        out.key("data").data(&socket.data)?;
        out.end_map();
    }
    out.end_list();
    Ok(())
}

fn write_acks(out: &mut Output, acks: &[(Option<SocketId>, Args)]) -> Result<(), WireError> {
    out.key("acks").list(acks.len());
    for (id, args) in acks {
        out.list(2);
        match id {
            Some(id) => out.text(id.as_str()),
            None => out.nothing(),
        };
        out.args(args)?.end_list();
    }
    out.end_list();
    Ok(())
}

/// Whether an answer holds binary, which JSON could only describe.
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
