//! A Socket.IO packet, whichever parser it came through.
//!
//! The payload stays what it was on the wire, JSON text and attachments; it is known to be valid,
//! but has been neither copied nor decoded. What a packet means is for `server` to say.

use std::borrow::Cow;

use crate::args::{Args, Payload};
use bytes::Bytes;

/// What a packet is. Whether it carries binary is no kind of its own: the attachments tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    Connect,
    Disconnect,
    Event,
    Ack,
    ConnectError,
}

impl PacketKind {
    /// The number on the wire, for packets without binary.
    pub fn number(self) -> u8 {
        match self {
            Self::Connect => 0,
            Self::Disconnect => 1,
            Self::Event => 2,
            Self::Ack => 3,
            Self::ConnectError => 4,
        }
    }

    /// The kind with this number; 5 and 6, the kinds with binary, are not among them.
    pub fn from_number(number: u64) -> Option<Self> {
        const KINDS: [PacketKind; 5] = [
            PacketKind::Connect,
            PacketKind::Disconnect,
            PacketKind::Event,
            PacketKind::Ack,
            PacketKind::ConnectError,
        ];
        KINDS.get(usize::try_from(number).ok()?).copied()
    }
}

/// One decoded packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<'a> {
    pub kind: PacketKind,
    /// As the client wrote it, `/` if it wrote none. Clients of revision 2 may have put a query
    /// behind it, see `connect::split_query`.
    pub nsp: Cow<'a, str>,
    pub id: Option<u64>,
    /// Valid JSON of the shape that the kind asks for; empty if the packet has no payload.
    pub data: Cow<'a, str>,
    /// Of an event with a payload: its name. An event without one reaches no handler.
    pub event: Option<EventName<'a>>,
    /// In the order of their placeholders, each of which is known to name one of them.
    pub attachments: Vec<Bytes>,
}

/// The name of an event, and where in the payload its arguments go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventName<'a> {
    pub name: Cow<'a, str>,
    /// Offset in bytes: behind the comma that follows the name, or at the closing bracket.
    pub rest: usize,
}

impl Packet<'_> {
    /// The arguments of an event, without its name, or of an acknowledgement. Of other kinds, and
    /// without a payload: none. Copies the text once.
    pub fn to_args(&self) -> Args {
        let attachments = || self.attachments.clone();
        let args = match (self.kind, &self.event) {
            (PacketKind::Event, Some(event)) => {
                Args::after_event(&self.data[event.rest..], attachments())
            }
            (PacketKind::Ack, _) if !self.data.is_empty() => {
                Args::from_text((&*self.data).into(), attachments())
            }
            _ => return Args::default(),
        };
        args.expect("the payload of an event or acknowledgement is an array")
    }

    /// The payload of an event, from which a handler takes its arguments.
    pub fn payload(&self) -> Payload<'_> {
        let rest = self
            .event
            .as_ref()
            .map_or(self.data.len(), |event| event.rest);
        Payload::new(&self.data, rest, &self.attachments)
    }

    /// The same packet, free of the message that it was read from.
    pub fn into_owned(self) -> Packet<'static> {
        Packet {
            kind: self.kind,
            nsp: owned(self.nsp),
            id: self.id,
            data: owned(self.data),
            event: self.event.map(|event| EventName {
                name: owned(event.name),
                ..event
            }),
            attachments: self.attachments,
        }
    }
}

/// The main namespace, to which most packets belong, is not copied.
fn owned(text: Cow<'_, str>) -> Cow<'static, str> {
    if text == "/" {
        Cow::Borrowed("/")
    } else {
        Cow::Owned(text.into_owned())
    }
}
