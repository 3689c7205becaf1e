//! Answers in the classic dialect.
//!
//! By default Node's servers answer on a channel that all of them hear, and match answers to
//! questions by their ids alone. Nodes of ours answer each other on the asker's own channel.

use super::super::{
    Asker, Heard, Publication, Reply, Wire, WireError,
    answers::{self, Fields},
    cursor::{Cursor, Head},
    output::{Encoding, Output},
};
use crate::{id::NodeId, question::Answer};

const SERVER_SIDE_EMIT: u64 = 6;
const BROADCAST_CLIENT_COUNT: u64 = 8;
const BROADCAST_ACK: u64 = 9;

/// Reads an answer.
pub(in super::super) fn read<'a, C: Cursor<'a>>(mut cursor: C) -> Result<Heard, WireError> {
    let (mut kind, mut id, mut node) = (None, None, None);
    let mut fields = Fields::default();
    match cursor.head()? {
        Head::Map(len) => cursor.members(len, |cursor, key| {
            match key {
                "type" => kind = cursor.number()?,
                "requestId" => id = cursor.owned_text()?,
                "node" => node = cursor.node()?,
                "packet" | "data" => fields.read_value(cursor)?,
                _ => {
                    if !fields.read(cursor, key)? {
                        cursor.skip()?;
                    }
                }
            }
            Ok(())
        })?,
        _ => {
            return Err(WireError::Unexpected {
                expected: "an answer",
            });
        }
    }
    cursor.finish()?;
    let reply = match kind.map(|kind| kind as u64) {
        Some(SERVER_SIDE_EMIT) => fields.server_side(),
        Some(BROADCAST_CLIENT_COUNT) => fields.asked()?,
        Some(BROADCAST_ACK) => fields.acknowledged(),
        None => fields.other(),
        Some(_) => return Ok(Heard::Ignored),
    };
    let id = id.ok_or(WireError::Missing { what: "requestId" })?;
    Ok(Heard::Response { id, node, reply })
}

/// Writes an answer; nothing if the asker, a server of Node's, expects none.
pub(in super::super) fn write(
    wire: &Wire,
    namespace: &str,
    to: &Asker,
    id: &str,
    node: &NodeId,
    reply: &Reply,
) -> Result<Option<Publication>, WireError> {
    let is_ours = to.node.is_some();
    let (kind, encoding) = match reply {
        Reply::Asked(_) => (Some(BROADCAST_CLIENT_COUNT), Encoding::Json),
        Reply::Acknowledged(_) => (Some(BROADCAST_ACK), wire.encoding()),
        Reply::Answer(Answer::Acks { .. }) if is_ours => (Some(BROADCAST_ACK), Encoding::Msgpack),
        Reply::Answer(Answer::ServerSideEmit(Some(_))) => (Some(SERVER_SIDE_EMIT), Encoding::Json),
        Reply::Answer(Answer::ServerSideEmit(None)) if is_ours => {
            (Some(SERVER_SIDE_EMIT), Encoding::Json)
        }
        Reply::Answer(Answer::Acks { .. } | Answer::ServerSideEmit(None) | Answer::Reached(_))
            if !is_ours =>
        {
            return Ok(None);
        }
        Reply::Answer(Answer::Order(false)) if !is_ours => return Ok(None),
        Reply::Answer(_) => (None, Encoding::Json),
    };
    let has_members = is_ours || !matches!(reply, Reply::Answer(Answer::Order(_)));
    let members = if has_members {
        answers::count(reply)
    } else {
        0
    };
    let mut out = Output::new(encoding);
    out.map(1 + usize::from(kind.is_some()) + members + usize::from(is_ours));
    if let Some(kind) = kind {
        out.key("type").number(kind);
    }
    out.key("requestId").text(id);
    if has_members {
        answers::write(&mut out, reply, "data")?;
    }
    if is_ours {
        out.key("node").text(node.as_str());
    }
    out.end_map();
    Ok(Some(Publication {
        channel: channel(wire, namespace, to, reply),
        payload: out.finish(),
    }))
}

fn channel(wire: &Wire, namespace: &str, to: &Asker, reply: &Reply) -> String {
    // Node answers for its handlers to everybody, whatever is set.
    let is_handlers = matches!(reply, Reply::Answer(Answer::ServerSideEmit(_)));
    let is_specific = to.node.is_some() || wire.has_specific_responses && !is_handlers;
    let own = to.uid.as_deref().filter(|_| is_specific);
    let shared = || wire.channels().response(namespace);
    match own {
        None => shared().expect("the classic dialect has such a channel"),
        Some(uid) => wire.channels().response_of(namespace, uid),
    }
}
