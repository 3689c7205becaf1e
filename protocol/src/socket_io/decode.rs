//! The default parser's decoder: `<type>[<attachments>-][<namespace>,][<ack id>][JSON]`.
//!
//! A connection has one [`Decoder`], which keeps a packet only while its attachments are missing:
//!
//! ```text
//!            text without attachments: packet
//!             ┌──────┐
//!             ▼      │
//!          (no packet) ── text with n attachments ──▶ Partial { packet, missing: n }
//!             ▲                                           │            ▲      │
//!             └── binary, missing == 1: packet ───────────┘            └──────┘ binary
//! ```
//!
//! Text while attachments are missing, and binary while none are, are errors. Every error
//! closes the connection, as in socket.io-parser. Node's parser accepts a little more (an
//! attachment count with spaces or an exponent, ack ids beyond 64 bits), which no client
//! writes.

use std::borrow::Cow;

use crate::args::json::{JsonError, MAX_DEPTH, Token, is_space, unescape};
use crate::args::{JsonKind, placeholders, scan};
use crate::event::is_reserved;
use crate::msgpack::MsgpackError;
use bytes::Bytes;

use super::packet::{EventName, Packet, PacketKind};

/// The limits of one packet. Its size in bytes is limited by the transport. The server's settings
/// have the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum depth of arrays and objects in a payload; more than
    /// [`MAX_DEPTH`] is [`MAX_DEPTH`].
    pub json_depth: usize,
    /// Maximum number of binary values in a packet of either parser.
    pub attachments: usize,
    /// Maximum length of an event's name in bytes, with escapes resolved.
    pub event_name_bytes: usize,
    /// Maximum length of a namespace in bytes; for clients of revision 2 with its query.
    pub namespace_bytes: usize,
}

/// Why a message is not a packet. Every error closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is empty.
    #[error("message without a packet type")]
    Empty,
    /// The type is not a digit from 0 to 6, or missing.
    #[error("unknown packet type")]
    UnknownType,
    /// A packet with attachments has no valid count of them.
    #[error("count of attachments is not a positive number")]
    AttachmentCount,
    /// More attachments than [`Limits::attachments`].
    #[error("more than {limit} attachments")]
    TooManyAttachments {
        /// The limit.
        limit: usize,
    },
    /// A namespace beyond [`Limits::namespace_bytes`].
    #[error("namespace longer than {limit} bytes")]
    NamespaceTooLong {
        /// The limit.
        limit: usize,
    },
    /// A name beyond [`Limits::event_name_bytes`].
    #[error("event name longer than {limit} bytes")]
    EventNameTooLong {
        /// The limit.
        limit: usize,
    },
    /// The id of an acknowledgement is not a number of 64 bits.
    #[error("ack id beyond 64 bits")]
    AckId,
    /// The payload is not JSON, or not MessagePack.
    #[error("payload is not valid")]
    Syntax,
    /// A payload beyond [`Limits::json_depth`].
    #[error("payload nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The payload is valid, but not of the shape that the kind of packet requires.
    #[error("payload does not fit the packet type")]
    Payload,
    /// The event has one of [`crate::event::RESERVED_EVENTS`].
    #[error("event name is reserved")]
    ReservedEvent,
    /// A placeholder refers to no attachment, or data looks like a placeholder although there are
    /// attachments.
    #[error("placeholder without an attachment")]
    Placeholder,
    /// Text came while attachments were missing.
    #[error("text while attachments are missing")]
    UnexpectedText,
    /// Binary came while no attachment was missing.
    #[error("binary without a packet that it belongs to")]
    UnexpectedBinary,
}

impl DecodeError {
    /// The label of the error in metrics. It never changes.
    pub fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::UnknownType => "unknown_type",
            Self::AttachmentCount => "attachment_count",
            Self::TooManyAttachments { .. } => "too_many_attachments",
            Self::NamespaceTooLong { .. } => "namespace_too_long",
            Self::EventNameTooLong { .. } => "event_name_too_long",
            Self::AckId => "ack_id",
            Self::Syntax => "syntax",
            Self::TooDeep { .. } => "too_deep",
            Self::Payload => "payload",
            Self::ReservedEvent => "reserved_event",
            Self::Placeholder => "placeholder",
            Self::UnexpectedText => "unexpected_text",
            Self::UnexpectedBinary => "unexpected_binary",
        }
    }
}

impl From<JsonError> for DecodeError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::TooDeep { limit } => Self::TooDeep { limit },
            _ => Self::Syntax,
        }
    }
}

impl From<MsgpackError> for DecodeError {
    fn from(error: MsgpackError) -> Self {
        match error {
            MsgpackError::TooDeep { limit } => Self::TooDeep { limit },
            MsgpackError::TooManyAttachments { limit } => Self::TooManyAttachments { limit },
            MsgpackError::UnexpectedType { .. } => Self::Payload,
            MsgpackError::Args(_) => Self::Placeholder,
            _ => Self::Syntax,
        }
    }
}

/// Decodes the messages of one connection, which must be passed in order.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// A packet whose attachments have not all arrived.
#[derive(Debug)]
struct Partial {
    packet: Packet<'static>,
    missing: usize,
}

impl Decoder {
    /// Decodes a text message without its Engine.IO type. Returns `None` if attachments follow.
    pub fn text<'a>(
        &mut self,
        text: &'a str,
        limits: &Limits,
    ) -> Result<Option<Packet<'a>>, DecodeError> {
        if self.partial.take().is_some() {
            return Err(DecodeError::UnexpectedText);
        }
        let (packet, missing) = parse(text, limits)?;
        if missing == 0 {
            return Ok(Some(packet));
        }
        // Refused before the attachments take memory.
        placeholders(
            if packet.data.is_empty() {
                "null"
            } else {
                &packet.data
            },
            missing,
        )
        .map_err(|_| DecodeError::Placeholder)?;
        self.partial = Some(Box::new(Partial {
            packet: packet.into_owned(),
            missing,
        }));
        Ok(None)
    }

    /// Decodes a binary message, which is an attachment. Returns `None` if more follow.
    pub fn binary(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Option<Packet<'static>>, DecodeError> {
        let mut partial = self.partial.take().ok_or(DecodeError::UnexpectedBinary)?;
        debug_assert!(partial.missing <= limits.attachments);
        partial
            .packet
            .attachments
            .push(Bytes::copy_from_slice(bytes));
        partial.missing -= 1;
        if partial.missing == 0 {
            return Ok(Some(partial.packet));
        }
        self.partial = Some(partial);
        Ok(None)
    }
}

/// The packet without its attachments, and how many of them follow.
fn parse<'a>(text: &'a str, limits: &Limits) -> Result<(Packet<'a>, usize), DecodeError> {
    let number = *text.as_bytes().first().ok_or(DecodeError::Empty)?;
    let (kind, has_binary) = match number {
        b'5' => (PacketKind::Event, true),
        b'6' => (PacketKind::Ack, true),
        b'0'..=b'4' => {
            let kind = PacketKind::from_number(u64::from(number - b'0'));
            (kind.ok_or(DecodeError::UnknownType)?, false)
        }
        _ => return Err(DecodeError::UnknownType),
    };
    let mut rest = &text[1..];
    let mut attachments = 0;
    if has_binary {
        (attachments, rest) = parse_attachments(rest, limits)?;
    }
    let (nsp, rest) = parse_namespace(rest, limits)?;
    let (id, rest) = parse_id(rest)?;
    let data = rest.trim_matches(|space: char| space.is_ascii() && is_space(space as u8));
    let event = check_payload(kind, data, limits)?;
    let (nsp, data) = (Cow::Borrowed(nsp), Cow::Borrowed(data));
    Ok((
        Packet {
            kind,
            nsp,
            id,
            data,
            event,
            attachments: Vec::new(),
        },
        attachments,
    ))
}

fn parse_attachments<'a>(text: &'a str, limits: &Limits) -> Result<(usize, &'a str), DecodeError> {
    let (digits, rest) = text.split_once('-').ok_or(DecodeError::AttachmentCount)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DecodeError::AttachmentCount);
    }
    match digits.parse() {
        Ok(0) => Err(DecodeError::AttachmentCount),
        Ok(count) if count <= limits.attachments => Ok((count, rest)),
        _ => Err(DecodeError::TooManyAttachments {
            limit: limits.attachments,
        }),
    }
}

/// The namespace ends at the first comma, or with the message.
fn parse_namespace<'a>(text: &'a str, limits: &Limits) -> Result<(&'a str, &'a str), DecodeError> {
    if !text.starts_with('/') {
        return Ok(("/", text));
    }
    let (nsp, rest) = text.split_once(',').unwrap_or((text, ""));
    if nsp.len() > limits.namespace_bytes {
        return Err(DecodeError::NamespaceTooLong {
            limit: limits.namespace_bytes,
        });
    }
    Ok((nsp, rest))
}

fn parse_id(text: &str) -> Result<(Option<u64>, &str), DecodeError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Ok((None, text));
    }
    let (digits, rest) = text.split_at(digits);
    Ok((Some(digits.parse().map_err(|_| DecodeError::AckId)?), rest))
}

/// Checks that the payload matches the kind; returns the name of an event.
fn check_payload<'a>(
    kind: PacketKind,
    data: &'a str,
    limits: &Limits,
) -> Result<Option<EventName<'a>>, DecodeError> {
    if data.is_empty() {
        return Ok(None);
    }
    let scan = scan(data, limits.json_depth.min(MAX_DEPTH))?;
    match (kind, scan.kind) {
        (PacketKind::Event, JsonKind::Array) => {
            let first = scan.first.ok_or(DecodeError::Payload)?;
            let name = match first.token {
                Token::String(raw) => check_name(unescape(raw), limits)?,
                Token::Number(text) => check_name(Cow::Borrowed(text), limits)?,
                _ => return Err(DecodeError::Payload),
            };
            Ok(Some(EventName {
                name,
                rest: first.rest,
            }))
        }
        (PacketKind::Connect | PacketKind::ConnectError, JsonKind::Object)
        | (PacketKind::ConnectError, JsonKind::String)
        | (PacketKind::Ack, JsonKind::Array) => Ok(None),
        _ => Err(DecodeError::Payload),
    }
}

/// The name, if an application may have events of that name. The MessagePack parser asks, too.
pub(super) fn check_name<'a>(
    name: Cow<'a, str>,
    limits: &Limits,
) -> Result<Cow<'a, str>, DecodeError> {
    if name.len() > limits.event_name_bytes {
        return Err(DecodeError::EventNameTooLong {
            limit: limits.event_name_bytes,
        });
    }
    if is_reserved(&name) {
        Err(DecodeError::ReservedEvent)
    } else {
        Ok(name)
    }
}

#[cfg(test)]
mod tests;
