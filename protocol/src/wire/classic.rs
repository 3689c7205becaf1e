//! Node's `createAdapter`: broadcasts are arrays of exactly three elements, in MessagePack.
//!
//! ```text
//! [uid, { type: 2, data: [event, ...args], nsp }, { rooms, except, flags }, { confirm }?]
//! ```
//!
//! Emitters have the uid `emitter` and write `flags` before `except`. Requests and
//! responses are maps (see the submodules).
//!
//! A fourth element is ours: a map whose `confirm` is the id of the question that will
//! ask how many sockets were reached, or a list with the position of a stored broadcast.
//! Anything else there belongs to others and is skipped.

mod request;
mod response;

use serde::{Deserialize, Serialize};

use super::{
    Incoming, WireError,
    parts::{EventPacket, Options, Packet, read_position, read_target},
    payload::{Arguments, Encoding, missing},
};
use crate::{
    args::Args,
    channel::EMITTER_UID,
    message::{Broadcast, Message},
    raw::Raw,
    target::Target,
};

pub(super) use self::request::{read as read_request, write_message, write_question};
pub(super) use self::response::{read as read_response, write as write_response};

/// The fourth element of a broadcast.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Last<'a> {
    /// The id of the question that will ask how many sockets were reached.
    Asked { confirm: &'a str },
    /// Nothing, in the place of a position.
    Unplaced,
}

/// Appends a broadcast.
pub(super) fn write_broadcast(
    out: &mut Vec<u8>,
    encoding: Encoding,
    namespace: &str,
    uid: &str,
    (target, event, args): (&Target, &str, &Args),
    last: Option<Last<'_>>,
) -> Result<(), WireError> {
    let packet = EventPacket::new(encoding, event, args, Some(namespace))?;
    let options = if uid == EMITTER_UID {
        Options::of_emitter(target)
    } else {
        Options::new(target, Some(target.flags))
    };
    match last {
        None => encoding.write(out, &(uid, packet, options)),
        Some(last) => encoding.write(out, &(uid, packet, options, last)),
    }
    Ok(())
}

/// Reads a broadcast. The sender's uid may be anything; [`super::Echo`] recognizes one's own.
pub(super) fn read_broadcast(
    arguments: &Arguments,
    namespace: &str,
    raw: Raw<'_>,
) -> Result<Incoming, WireError> {
    let (mut place, mut packet, mut target) = (0, None, None);
    let (mut confirm, mut position) = (None, None);
    raw.each(|element| {
        match place {
            1 => packet = Some(Packet::read(element)?),
            2 => target = Some(read_target(element)?),
            3 => {
                confirm = read_confirm(element)?;
                position = read_position(element);
            }
            _ => {}
        }
        place += 1;
        Ok::<_, WireError>(())
    })?;
    let packet = packet.ok_or_else(|| missing("a packet"))?;
    let target = target.ok_or_else(|| missing("options"))?;
    if !packet.is_for(namespace) {
        return Ok(Incoming::Ignored);
    }
    let (event, args) = packet.event(arguments)?;
    Ok(Incoming::Message {
        message: Message::Broadcast(Broadcast {
            target,
            event,
            args,
        }),
        confirm,
        position,
    })
}

fn read_confirm(extension: Raw<'_>) -> Result<Option<Box<str>>, WireError> {
    #[derive(Deserialize, Default)]
    #[serde(default, bound(deserialize = "'de: 'a"))]
    struct Extension<'a> {
        confirm: Raw<'a>,
    }

    let Some(map) = extension.map() else {
        return Ok(None);
    };
    let extension: Extension<'_> = map.read()?;
    Ok(extension.confirm.boxed_text())
}
