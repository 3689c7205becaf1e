//! Answers in the classic dialect.
//!
//! By default Node's servers answer on a channel that all of them subscribe to, and match answers
//! to questions by their ids alone. Nodes of ours answer each other on the asker's own channel.
//!
//! ```text
//! { requestId, sockets | rooms | reached | order }      without a type: its members tell what it is
//! { type: 6, requestId, data | none }                   the result of a handler
//! { type: 8, requestId, clientCount }                   how many sockets will acknowledge
//! { type: 9, requestId, packet | acks, missing }        one acknowledgement, or all (ours)
//! ```

use super::super::{
    Asker, Incoming, Publication, Reply, Wire, WireError,
    answers::{Members, Written},
    payload::{Arguments, Encoding, expected},
};
use crate::{id::NodeId, question::Answer, raw::Raw};

const SERVER_SIDE_EMIT: u8 = 6;
const BROADCAST_CLIENT_COUNT: u8 = 8;
const BROADCAST_ACK: u8 = 9;

/// Reads an answer.
pub(in super::super) fn read(arguments: &Arguments, raw: Raw<'_>) -> Result<Incoming, WireError> {
    let members: Members<'_> = raw.map().ok_or_else(|| expected("an answer"))?.read()?;
    let reply = match members.r#type.number().map(|kind| kind as u8) {
        Some(SERVER_SIDE_EMIT) => members.server_side(arguments)?,
        Some(BROADCAST_CLIENT_COUNT) => members.asked()?,
        Some(BROADCAST_ACK) => members.acknowledged(arguments)?,
        None => members.untyped(arguments)?,
        Some(_) => return Ok(Incoming::Ignored),
    };
    members.response(members.node, reply)
}

/// Writes an answer. Returns `None` if the asker is a Node server that expects none.
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
        Reply::Answer(Answer::ServerSideEmit(args)) if is_ours || args.is_some() => {
            (Some(SERVER_SIDE_EMIT), Encoding::Json)
        }
        Reply::Answer(
            Answer::Acks { .. }
            | Answer::ServerSideEmit(_)
            | Answer::Reached(_)
            | Answer::Command(false),
        ) if !is_ours => return Ok(None),
        Reply::Answer(_) => (None, Encoding::Json),
    };
    let mut members = match reply {
        Reply::Answer(Answer::Command(_)) if !is_ours => Written::default(),
        reply => Written::new(encoding, reply, false)?,
    };
    members.r#type = kind;
    members.request_id = id;
    members.node = is_ours.then_some(node.as_str());
    Ok(Some(Publication {
        channel: channel(wire, namespace, to, reply),
        payload: encoding.to_bytes(&members),
    }))
}

fn channel(wire: &Wire, namespace: &str, to: &Asker, reply: &Reply) -> String {
    // Node answers for its handlers on the shared channel, regardless of the configuration.
    let is_handlers = matches!(reply, Reply::Answer(Answer::ServerSideEmit(_)));
    let is_specific = to.node.is_some() || wire.has_specific_responses && !is_handlers;
    let own = to.uid.as_deref().filter(|_| is_specific);
    let shared = || wire.channels().response(namespace);
    match own {
        None => shared().expect("the classic dialect has such a channel"),
        Some(uid) => wire.channels().response_of(namespace, uid),
    }
}
