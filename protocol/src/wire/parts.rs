//! The parts that messages of both dialects are made of: rooms, options, packets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Asker, Incoming, WireError,
    payload::{Arguments, Encoding, Event, Payload, expected, missing},
};
use crate::{
    args::Args,
    message::{Message, Position},
    question::Question,
    raw::{Look, Raw},
    target::{Flags, Target},
};

/// The longest time that JavaScript's timers can wait. Node would not wait at all for a longer one.
const MAX_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// A room that no socket is in. It replaces rooms that are not text, in which JavaScript's sockets
/// are not either (`io.to(undefined)`): without any room, everybody would be meant.
const NOBODY: &str = "\0";

/// The names of rooms in a list, or of a single one. Numbers are the text that they are as keys in
/// JavaScript; anything else is left out.
#[derive(Default)]
pub(super) struct Rooms {
    names: Vec<Box<str>>,
    has_others: bool,
}

impl Rooms {
    pub(super) fn read(raw: Raw<'_>) -> Result<Self, WireError> {
        let mut rooms = Self::default();
        match raw.look() {
            Look::Nothing => {}
            Look::Text(room) if room.is_empty() => {}
            Look::Text(_) => rooms.push(raw),
            Look::List | Look::Map if is_empty(raw) => {}
            Look::List => raw.each(|room| {
                rooms.push(room);
                Ok::<_, WireError>(())
            })?,
            _ => return Err(expected("a list of rooms")),
        }
        Ok(rooms)
    }

    /// The rooms to join or leave.
    pub(super) fn names(self) -> Vec<Box<str>> {
        self.names
    }

    /// The rooms of a target.
    pub(super) fn targets(mut self) -> Vec<Box<str>> {
        if self.names.is_empty() && self.has_others {
            self.names.push(NOBODY.into());
        }
        self.names
    }

    fn push(&mut self, room: Raw<'_>) {
        match room.look() {
            Look::Text(room) => self.names.push(room.into()),
            // Adding zero takes the sign from -0.
            Look::Number(number) => self.names.push((number + 0.0).to_string().into()),
            _ => self.has_others = true,
        }
    }
}

/// A member without which the message has no meaning.
pub(super) fn required<'a>(raw: Raw<'a>, what: &'static str) -> Result<Raw<'a>, WireError> {
    raw.present().ok_or_else(|| missing(what))
}

/// A question that was received.
pub(super) fn asked(asker: Asker, id: Raw<'_>, question: Question) -> Result<Incoming, WireError> {
    Ok(Incoming::Question {
        asker,
        id: id.boxed_text().ok_or_else(|| missing("requestId"))?,
        question,
    })
}

/// The type of a command, its target, its rooms, and whether it closes connections.
type Command<'a> = (u8, &'a Target, Option<&'a [Box<str>]>, Option<bool>);

/// `kinds` are the types of joins, leaves and disconnects.
pub(super) fn command_parts(message: &Message, kinds: [u8; 3]) -> Result<Command<'_>, WireError> {
    let [join, leave, disconnect] = kinds;
    Ok(match message {
        Message::SocketsJoin { target, rooms } => (join, target, Some(&**rooms), None),
        Message::SocketsLeave { target, rooms } => (leave, target, Some(&**rooms), None),
        Message::DisconnectSockets { target, close } => (disconnect, target, None, Some(*close)),
        Message::Broadcast(_) | Message::ServerSideEmit { .. } => {
            return Err(WireError::Inexpressible {
                what: "this message as a command",
            });
        }
    })
}

/// Whether a list or a map has nothing in it.
fn is_empty(raw: Raw<'_>) -> bool {
    match raw {
        Raw::Absent => true,
        Raw::Json(text) => text[1..text.len() - 1].trim_ascii().is_empty(),
        Raw::Msgpack(bytes) => bytes == [0x80] || bytes == [0x90],
    }
}

/// Reads the options of a broadcast or an operation. PHP writes an empty list for no options.
pub(super) fn read_target(raw: Raw<'_>) -> Result<Target, WireError> {
    #[derive(Deserialize, Default)]
    #[serde(default, bound(deserialize = "'de: 'a"))]
    struct Members<'a> {
        rooms: Raw<'a>,
        except: Raw<'a>,
        flags: Raw<'a>,
    }

    let members: Members<'_> = match raw.look() {
        Look::Map => raw.read()?,
        Look::List if is_empty(raw) => Members::default(),
        _ => return Err(expected("options")),
    };
    Ok(Target {
        rooms: Rooms::read(members.rooms)?.targets(),
        except: Rooms::read(members.except)?.names(),
        flags: members
            .flags
            .map()
            .map_or_else(|| Ok(Flags::default()), read_flags)?,
    })
}

/// Reads the position of a broadcast that was stored in a log, `[id, time]`, or in a journal,
/// `[id, time, after]`. Anything else belongs to others and is skipped.
pub(super) fn read_position(raw: Raw<'_>) -> Option<Position> {
    let mut numbers = [None; 3];
    let mut count = 0;
    raw.list()?
        .each(|element| {
            if let Some(number) = numbers.get_mut(count) {
                *number = element.whole();
            }
            count += 1;
            Ok::<_, WireError>(())
        })
        .ok()?;
    let (id, time, after) = match (numbers, count) {
        ([Some(id), Some(time), None], 2) => (id, time, None),
        ([Some(id), Some(time), Some(after)], 3) => (id, time, Some(after as u64)),
        _ => return None,
    };
    Some(Position {
        id: id as u64,
        time: time as u64,
        after,
    })
}

/// `expectSingleResponse` is skipped like unknown flags: it is about how the asker counts.
fn read_flags(raw: Raw<'_>) -> Result<Flags, WireError> {
    #[derive(Deserialize, Default)]
    #[serde(default, bound(deserialize = "'de: 'a"))]
    struct Members<'a> {
        volatile: Raw<'a>,
        compress: Raw<'a>,
        timeout: Raw<'a>,
        #[serde(rename = "atLeastOnce")]
        at_least_once: Raw<'a>,
    }

    let members: Members<'_> = raw.read()?;
    let milliseconds = members.timeout.number().filter(|timeout| *timeout >= 0.0);
    let timeout = |milliseconds| Duration::from_millis(milliseconds as u64).min(MAX_TIMEOUT);
    Ok(Flags {
        volatile: members.volatile.is_true(),
        compress: members.compress.boolean(),
        timeout: milliseconds.map(timeout),
        local: false,
        at_least_once: members.at_least_once.is_true(),
    })
}

/// The flags that travel.
#[derive(Serialize)]
struct WrittenFlags {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    volatile: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    compress: Option<bool>,
    /// In milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
    /// Ours. Node's servers use the flags that they support.
    #[serde(rename = "atLeastOnce", skip_serializing_if = "std::ops::Not::not")]
    at_least_once: bool,
}

impl From<Flags> for WrittenFlags {
    fn from(flags: Flags) -> Self {
        // Rounded up, so that no time to wait becomes none.
        let milliseconds = |timeout: Duration| {
            let whole = timeout.min(MAX_TIMEOUT).as_nanos().div_ceil(1_000_000);
            whole as u64
        };
        Self {
            volatile: flags.volatile,
            compress: flags.compress,
            timeout: flags.timeout.map(milliseconds),
            at_least_once: flags.at_least_once,
        }
    }
}

/// Options as they are written.
#[derive(Serialize)]
pub(super) struct Options<'a> {
    rooms: &'a [Box<str>],
    /// Where Node's emitter has its flags.
    #[serde(rename = "flags", skip_serializing_if = "Option::is_none")]
    emitter_flags: Option<WrittenFlags>,
    except: &'a [Box<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<WrittenFlags>,
}

impl<'a> Options<'a> {
    /// Commands and questions of the classic dialect have no flags.
    pub(super) fn new(target: &'a Target, flags: Option<Flags>) -> Self {
        Self {
            rooms: &target.rooms,
            emitter_flags: None,
            except: &target.except,
            flags: flags.map(WrittenFlags::from),
        }
    }

    /// The options in the order in which Node's emitter writes them.
    pub(super) fn of_emitter(target: &'a Target) -> Self {
        Self {
            emitter_flags: Some(target.flags.into()),
            ..Self::new(target, None)
        }
    }
}

/// A packet in its parsed form.
#[derive(Deserialize, Default)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Packet<'a> {
    r#type: Raw<'a>,
    data: Raw<'a>,
    nsp: Raw<'a>,
}

impl<'a> Packet<'a> {
    pub(super) fn read(raw: Raw<'a>) -> Result<Self, WireError> {
        if raw.look() != Look::Map {
            return Err(expected("a packet"));
        }
        Ok(raw.read()?)
    }

    /// Whether the packet is for the namespace. One that names none is for the main namespace.
    pub(super) fn is_for(&self, namespace: &str) -> bool {
        match self.nsp.present() {
            None => namespace == "/",
            Some(named) => named.text().as_deref() == Some(namespace),
        }
    }

    /// The event. Old emitters mark events with binary by a separate type.
    pub(super) fn event(&self, arguments: &Arguments) -> Result<Event, WireError> {
        const EVENT: usize = 2;
        const BINARY_EVENT: usize = 5;
        match self.r#type.whole() {
            Some(EVENT | BINARY_EVENT) => {}
            Some(_) => return Err(expected("a packet with an event")),
            None => return Err(missing("the type of the packet")),
        }
        arguments.event(required(self.data, "data")?)
    }
}

/// A packet in its written form.
#[derive(Serialize)]
pub(super) struct EventPacket<'a> {
    r#type: u8,
    data: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nsp: Option<&'a str>,
}

impl<'a> EventPacket<'a> {
    /// In the sharded dialect the envelope names the namespace.
    pub(super) fn new(
        encoding: Encoding,
        event: &'a str,
        args: &'a Args,
        nsp: Option<&'a str>,
    ) -> Result<Self, WireError> {
        let data = Payload::event(encoding, event, args)?;
        Ok(Self {
            r#type: 2,
            data,
            nsp,
        })
    }
}
