//! Node's `createAdapter`: broadcasts are arrays of exactly three, in MessagePack.
//!
//! A fourth element is ours: a map whose `confirm` is the id of the question that will ask how many
//! sockets were reached. Whatever else stands there belongs to others.

mod request;
mod response;

use super::{
    Heard, WireError,
    cursor::{Cursor, Head},
    output::Output,
    parts::{read_packet, read_target, write_packet, write_target, write_target_of_emitter},
};
use crate::{args::Args, channel::EMITTER_UID, message::Message, target::Target};

pub(super) use self::request::{read as read_request, write_message, write_question};
pub(super) use self::response::{read as read_response, write as write_response};

/// Writes a broadcast.
pub(super) fn write_broadcast(
    out: &mut Output,
    namespace: &str,
    uid: &str,
    (target, event, args): (&Target, &str, &Args),
    confirm: Option<&str>,
) -> Result<(), WireError> {
    out.list(3 + usize::from(confirm.is_some())).text(uid);
    write_packet(out, event, args, Some(namespace))?;
    if uid == EMITTER_UID {
        write_target_of_emitter(out, target);
    } else {
        write_target(out, target, Some(target.flags));
    }
    if let Some(id) = confirm {
        out.map(1).key("confirm").text(id).end_map();
    }
    out.end_list();
    Ok(())
}

/// Reads a broadcast. The sender's uid may be anything; see [`super::Echo`] for one's own.
pub(super) fn read_broadcast<'a, C: Cursor<'a>>(
    namespace: &str,
    mut cursor: C,
) -> Result<Heard, WireError> {
    let (mut packet, mut target, mut confirm) = (None, None, None);
    let mut place = 0;
    match cursor.head()? {
        Head::List(len) => cursor.items(len, |cursor| {
            match place {
                1 => packet = Some(read_packet(cursor)?),
                2 => target = Some(read_target(cursor)?),
                3 => confirm = read_confirm(cursor)?,
                _ => cursor.skip()?,
            }
            place += 1;
            Ok(())
        })?,
        _ => {
            return Err(WireError::Unexpected {
                expected: "a list of sender, packet and options",
            });
        }
    }
    cursor.finish()?;
    let packet = packet.ok_or(WireError::Missing { what: "a packet" })?;
    let target = target.ok_or(WireError::Missing { what: "options" })?;
    if !packet.is_for(namespace) {
        return Ok(Heard::Ignored);
    }
    let (event, args) = packet.event()?;
    Ok(Heard::Message {
        message: Message::Broadcast {
            target,
            event,
            args,
        },
        confirm,
    })
}

fn read_confirm<'a>(cursor: &mut impl Cursor<'a>) -> Result<Option<Box<str>>, WireError> {
    let mut confirm = None;
    match cursor.head()? {
        Head::Map(len) => cursor.members(len, |cursor, key| {
            match key {
                "confirm" => confirm = cursor.owned_text()?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?,
        other => cursor.leave(&other)?,
    }
    Ok(confirm)
}
