//! The parts that messages of both dialects are made of: rooms, options, packets.

use std::{borrow::Cow, time::Duration};

use super::{
    WireError,
    cursor::{Cursor, Event, Head},
    output::Output,
};
use crate::{
    args::Args,
    target::{Flags, Target},
};

/// The longest time that JavaScript's timers can wait. Node would not wait at all for a longer one.
const MAX_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// A room in which no socket is. It stands for rooms that are no text, in which JavaScript's
/// sockets are not either (`io.to(undefined)`): without any room, everybody would be meant.
const NOBODY: &str = "\0";

/// Names of rooms as they were read.
#[derive(Default)]
pub(super) struct RoomNames {
    names: Vec<Box<str>>,
    has_others: bool,
}

impl RoomNames {
    /// The rooms, to be joined or left.
    pub(super) fn names(self) -> Vec<Box<str>> {
        self.names
    }

    /// The rooms as those of a target.
    pub(super) fn targets(mut self) -> Vec<Box<str>> {
        if self.names.is_empty() && self.has_others {
            self.names.push(NOBODY.into());
        }
        self.names
    }
}

/// Reads names of rooms. Numbers are the text that they would be as JavaScript's keys.
pub(super) fn read_rooms<'a>(cursor: &mut impl Cursor<'a>) -> Result<RoomNames, WireError> {
    const EXPECTED: WireError = WireError::Unexpected {
        expected: "a list of rooms",
    };
    let mut rooms = RoomNames::default();
    match cursor.head()? {
        Head::Nothing => {}
        Head::Text(room) if room.is_empty() => {}
        Head::Text(room) => rooms.names.push(room.into()),
        Head::List(len) => cursor.items(len, |cursor| read_room(cursor, &mut rooms))?,
        Head::Map(len) => cursor.members(len, |_, _| Err(EXPECTED))?,
        _ => return Err(EXPECTED),
    }
    Ok(rooms)
}

fn read_room<'a>(cursor: &mut impl Cursor<'a>, rooms: &mut RoomNames) -> Result<(), WireError> {
    match cursor.head()? {
        Head::Text(room) => rooms.names.push(room.into()),
        Head::Number(number) => rooms.names.push(number_text(number).into()),
        other => {
            rooms.has_others = true;
            cursor.leave(&other)?;
        }
    }
    Ok(())
}

fn number_text(number: f64) -> String {
    if number == 0.0 {
        return "0".into();
    }
    number.to_string()
}

/// Reads the options of a broadcast or an operation. PHP writes an empty list for no options.
pub(super) fn read_target<'a>(cursor: &mut impl Cursor<'a>) -> Result<Target, WireError> {
    const EXPECTED: WireError = WireError::Unexpected {
        expected: "options",
    };
    let mut target = Target::default();
    match cursor.head()? {
        Head::List(len) => cursor.items(len, |_| Err(EXPECTED))?,
        Head::Map(len) => cursor.members(len, |cursor, key| {
            match key {
                "rooms" => target.rooms = read_rooms(cursor)?.targets(),
                "except" => target.except = read_rooms(cursor)?.names(),
                "flags" => target.flags = read_flags(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?,
        _ => return Err(EXPECTED),
    }
    Ok(target)
}

fn read_flags<'a>(cursor: &mut impl Cursor<'a>) -> Result<Flags, WireError> {
    let mut flags = Flags::default();
    match cursor.head()? {
        Head::Map(len) => cursor.members(len, |cursor, key| {
            match key {
                "volatile" => flags.volatile = cursor.is_true()?,
                "compress" => flags.compress = read_bool(cursor)?,
                "timeout" => flags.timeout = cursor.number()?.and_then(timeout),
                // `expectSingleResponse` says how the asker counts, which is its own affair.
                _ => cursor.skip()?,
            }
            Ok(())
        })?,
        other => cursor.leave(&other)?,
    }
    Ok(flags)
}

fn read_bool<'a>(cursor: &mut impl Cursor<'a>) -> Result<Option<bool>, WireError> {
    match cursor.head()? {
        Head::Bool(value) => Ok(Some(value)),
        other => cursor.leave(&other).map(|()| None),
    }
}

fn timeout(milliseconds: f64) -> Option<Duration> {
    (milliseconds >= 0.0).then(|| Duration::from_millis(milliseconds as u64).min(MAX_TIMEOUT))
}

/// Writes options as one map. Orders and questions of the classic dialect have no flags.
pub(super) fn write_target(out: &mut Output, target: &Target, flags: Option<Flags>) {
    out.map(2 + usize::from(flags.is_some()));
    out.key("rooms").texts(&target.rooms);
    out.key("except").texts(&target.except);
    if let Some(flags) = flags {
        out.key("flags");
        write_flags(out, flags);
    }
    out.end_map();
}

/// The same in the order in which Node's emitter writes it.
pub(super) fn write_target_of_emitter(out: &mut Output, target: &Target) {
    out.map(3).key("rooms").texts(&target.rooms).key("flags");
    write_flags(out, target.flags);
    out.key("except").texts(&target.except).end_map();
}

fn write_flags(out: &mut Output, flags: Flags) {
    let known = [
        flags.volatile,
        flags.compress.is_some(),
        flags.timeout.is_some(),
    ];
    out.map(known.into_iter().filter(|known| *known).count());
    if flags.volatile {
        out.key("volatile").bool(true);
    }
    if let Some(compress) = flags.compress {
        out.key("compress").bool(compress);
    }
    if let Some(timeout) = flags.timeout {
        // Rounded up: no wish to wait becomes a wish not to.
        let whole = timeout.min(MAX_TIMEOUT).as_nanos().div_ceil(1_000_000);
        out.key("timeout").number(whole as u64);
    }
    out.end_map();
}

/// A packet as it was read.
#[derive(Default)]
pub(super) struct Packet<'a> {
    kind: Option<f64>,
    event: Option<Event>,
    namespace: Option<Option<Cow<'a, str>>>,
}

impl Packet<'_> {
    /// Whether the packet is for the namespace. Without a word about it, it is for the main one.
    pub(super) fn is_for(&self, namespace: &str) -> bool {
        match &self.namespace {
            None => namespace == "/",
            Some(named) => named.as_deref() == Some(namespace),
        }
    }

    /// The event. Old emitters mark events with binary as such, which says nothing new.
    pub(super) fn event(self) -> Result<Event, WireError> {
        const EVENT: f64 = 2.0;
        const BINARY_EVENT: f64 = 5.0;
        match self.kind {
            Some(EVENT | BINARY_EVENT) => self.event.ok_or(WireError::Missing { what: "data" }),
            Some(_) => Err(WireError::Unexpected {
                expected: "a packet with an event",
            }),
            None => Err(WireError::Missing {
                what: "the type of the packet",
            }),
        }
    }
}

pub(super) fn read_packet<'a>(cursor: &mut impl Cursor<'a>) -> Result<Packet<'a>, WireError> {
    let mut packet = Packet::default();
    match cursor.head()? {
        Head::Map(len) => cursor.members(len, |cursor, key| {
            match key {
                "type" => packet.kind = cursor.number()?,
                "data" => packet.event = Some(cursor.event()?),
                "nsp" => packet.namespace = Some(cursor.text()?),
                _ => cursor.skip()?,
            }
            Ok(())
        })?,
        _ => {
            return Err(WireError::Unexpected {
                expected: "a packet",
            });
        }
    }
    Ok(packet)
}

/// Writes a packet; in the sharded dialect the envelope names the namespace.
pub(super) fn write_packet(
    out: &mut Output,
    event: &str,
    args: &Args,
    namespace: Option<&str>,
) -> Result<(), WireError> {
    out.map(2 + usize::from(namespace.is_some()));
    out.key("type").number(2);
    out.key("data").event(event, args)?;
    if let Some(namespace) = namespace {
        out.key("nsp").text(namespace);
    }
    out.end_map();
    Ok(())
}
