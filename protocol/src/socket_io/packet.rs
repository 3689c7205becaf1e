//! A Socket.IO packet of either parser.
//!
//! The payload is as on the wire: JSON text and attachments. It was validated, but neither
//! copied nor decoded.

use std::borrow::Cow;

use crate::args::{Args, Payload};
use bytes::Bytes;

/// The kind of a packet. Packets with attachments have no separate kinds here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    /// A client joins a namespace, or the server's reply to that.
    Connect,
    /// Either side leaves a namespace.
    Disconnect,
    /// An event, with or without attachments.
    Event,
    /// The acknowledgement of an event, with or without attachments.
    Ack,
    /// The server refuses a CONNECT.
    ConnectError,
}

impl PacketKind {
    /// The number on the wire of a packet without attachments.
    pub fn number(self) -> u8 {
        match self {
            Self::Connect => 0,
            Self::Disconnect => 1,
            Self::Event => 2,
            Self::Ack => 3,
            Self::ConnectError => 4,
        }
    }

    /// The kind with this number. `None` for 5 and 6 (event and acknowledgement with attachments)
    /// and for unknown numbers.
    pub(super) fn from_number(number: u64) -> Option<Self> {
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
    /// The kind.
    pub kind: PacketKind,
    /// The namespace as the client wrote it; `/` if it wrote none. Clients of revision 2 may append
    /// a query, see [`super::connect::split_query`].
    pub nsp: Cow<'a, str>,
    /// The id under which the sender of an event expects an acknowledgement, or the id of the
    /// event that is acknowledged.
    pub id: Option<u64>,
    /// Valid JSON of the shape that the kind requires; empty if the packet has no payload.
    pub data: Cow<'a, str>,
    /// The name of an event that has a payload. An event without one reaches no handler.
    pub event: Option<EventName<'a>>,
    /// The attachments. Each placeholder of the payload has one.
    pub attachments: Vec<Bytes>,
}

/// The name of an event, and where its arguments begin in the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventName<'a> {
    /// The name, with JSON escapes resolved.
    pub name: Cow<'a, str>,
    /// Offset in bytes: after the comma that follows the name, or at the closing bracket.
    pub rest: usize,
}

impl Packet<'_> {
    /// The arguments of an event, without its name, or of an acknowledgement. Packets of
    /// other kinds and without a payload have none. This copies the text and brings
    /// numbers into the form that all nodes pass on: `1.0` becomes `1`.
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

    /// The same packet without borrows from the message.
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
