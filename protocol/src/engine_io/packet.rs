//! Decodes one Engine.IO packet from the forms that transports carry.
//!
//! The payload modules split HTTP bodies into packets and call this one; a WebSocket frame is one
//! packet. Packets are written where they are sent, as a type digit and text. Only binary messages
//! have several forms, which are here. [`super::session`] interprets packets.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::{alphabet, encoded_len};

/// A packet of either revision. Text is borrowed from the frame or body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// The handshake as JSON text. Only servers send it.
    Open(&'a str),
    /// The sender closes the session.
    Close,
    /// `2`, or `2probe` while a transport is being upgraded.
    Ping(&'a str),
    /// `3`, or `3probe` in reply to a probe.
    Pong(&'a str),
    /// A message for the layer above.
    Message(Message<'a>),
    /// The client completes an upgrade to another transport.
    Upgrade,
    /// Ends a waiting poll during an upgrade.
    Noop,
}

/// The content of a message packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// Binary.
    Binary(Cow<'a, [u8]>),
}

/// Why bytes are not a packet, or a body is not a sequence of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// A packet without a type.
    #[error("the packet is empty")]
    Empty,
    /// A type digit or kind of body entry that does not exist.
    #[error("the packet type is unknown")]
    UnknownType,
    /// A binary message whose text is not base64.
    #[error("the binary message is not base64")]
    Base64,
    /// Text that is not UTF-8.
    #[error("the text is not UTF-8")]
    Utf8,
    /// In a body of revision 3: a length that is not a number, or that the body does not have.
    #[error("the declared length is not a number or does not fit the body")]
    Length,
    /// In a body of revision 3: a length without its separator.
    #[error("the separator after the declared length is missing")]
    Separator,
}

impl PacketError {
    /// The label of the error in metrics. It never changes.
    pub fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty_packet",
            Self::UnknownType => "unknown_packet_type",
            Self::Base64 => "bad_base64",
            Self::Utf8 => "bad_utf8",
            Self::Length => "bad_length",
            Self::Separator => "missing_separator",
        }
    }
}

/// Decodes a WebSocket text frame or one packet of a polling body, revision 4.
///
/// White space in base64 is skipped, because the official clients for Java and Android break lines.
/// Any other character that is not base64 is refused. Node's decoder skips it, so the application
/// receives bytes that were not sent.
pub fn decode_text(text: &str) -> Result<Packet<'_>, PacketError> {
    match text.strip_prefix('b') {
        Some(base64) => decode_base64(base64),
        None => decode_plain(text),
    }
}

/// Decodes a WebSocket text frame or one packet of a text body, revision 3.
///
/// Unlike in revision 4, a type digit stands between the `b` and the base64.
pub fn decode_text_v3(text: &str) -> Result<Packet<'_>, PacketError> {
    match text.strip_prefix('b') {
        Some(typed) => decode_base64(typed.strip_prefix('4').ok_or(PacketError::UnknownType)?),
        None => decode_plain(text),
    }
}

/// Decodes a WebSocket binary frame or one binary entry of a body, revision 3. The first
/// byte is the type, with the value 4. In revision 4 a binary frame is the message alone.
pub fn decode_binary_v3(bytes: &[u8]) -> Result<Packet<'_>, PacketError> {
    match bytes.split_first() {
        None => Err(PacketError::Empty),
        Some((&MESSAGE_BYTE, data)) => Ok(Packet::Message(Message::Binary(Cow::Borrowed(data)))),
        Some(_) => Err(PacketError::UnknownType),
    }
}

/// Appends a binary message as text, revision 4: `b` and base64 with padding.
pub fn write_binary_message(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'b');
    append_base64(out, bytes);
}

/// Appends a binary message as text, revision 3: `b4` and base64 with padding.
pub fn write_binary_message_v3(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b"b4");
    append_base64(out, bytes);
}

/// The length of `bytes` bytes as base64, padding included.
pub fn base64_len(bytes: usize) -> usize {
    encoded_len(bytes, true).unwrap_or(usize::MAX)
}

/// The first byte of a revision 3 binary message.
pub const MESSAGE_BYTE: u8 = 4;

fn decode_plain(text: &str) -> Result<Packet<'_>, PacketError> {
    let kind = text.as_bytes().first().ok_or(PacketError::Empty)?;
    // A known type is one ASCII byte, so the rest starts at a character.
    let data = |text| str::get(text, 1..).unwrap_or_default();
    match kind {
        b'0' => Ok(Packet::Open(data(text))),
        b'1' => Ok(Packet::Close),
        b'2' => Ok(Packet::Ping(data(text))),
        b'3' => Ok(Packet::Pong(data(text))),
        b'4' => Ok(Packet::Message(Message::Text(Cow::Borrowed(data(text))))),
        b'5' => Ok(Packet::Upgrade),
        b'6' => Ok(Packet::Noop),
        _ => Err(PacketError::UnknownType),
    }
}

fn decode_base64(base64: &str) -> Result<Packet<'static>, PacketError> {
    let mut base64 = Cow::Borrowed(base64);
    if base64.contains(is_line_space) {
        base64 = base64.replace(is_line_space, "").into();
    }
    let url_safe = base64.bytes().any(|byte| matches!(byte, b'-' | b'_'));
    let engine = if url_safe {
        &LENIENT_URL_SAFE
    } else {
        &LENIENT
    };
    let bytes = engine.decode(&*base64).map_err(|_| PacketError::Base64)?;
    Ok(Packet::Message(Message::Binary(Cow::Owned(bytes))))
}

fn is_line_space(character: char) -> bool {
    matches!(character, '\n' | '\r' | ' ' | '\t')
}

fn append_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + base64_len(bytes.len()), 0);
    STANDARD
        .encode_slice(bytes, &mut out[start..])
        .expect("the space was measured for these bytes");
}

// Clients differ in alphabet, padding and the unused bits of the last character, and Node decodes
// all of them.
const LENIENT_CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT_CONFIG);
const LENIENT_URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT_CONFIG);

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{engine_io::payload, notation::hex};

    #[test]
    fn captured_packets_decode_as_nodes_decoder_reads_them() {
        for case in vectors("engineio_decode_packet") {
            let expected = &case["packet"];
            if let Some(hex) = case["bin_hex"].as_str() {
                // A binary frame of revision 4 has no type and never passes a decoder.
                assert_eq!(expected["data"]["$bin"], *hex);
                continue;
            }
            let text = case["text"].as_str().unwrap();
            if text == "b!!" {
                // Node reads an empty message; ours is the deliberate difference.
                assert_eq!(decode_text(text), Err(PacketError::Base64));
                continue;
            }
            assert_eq!(seen(&decode_text(text)), seen_by_node(expected), "{text:?}");
        }
    }

    #[test]
    fn captured_payloads_decode_as_nodes_decoder_reads_them() {
        for case in vectors("engineio_decode_payload") {
            let body = case["body"].as_str().unwrap();
            let ours: Vec<_> = payload::decode(body.as_bytes()).map(|p| seen(&p)).collect();
            let node: Vec<_> = case["packets"]
                .as_array()
                .unwrap()
                .iter()
                .map(seen_by_node)
                .collect();
            assert_eq!(ours, node, "{body:?}");
        }
    }

    #[test]
    fn base64_of_either_alphabet_decodes_with_and_without_padding() {
        for text in ["b+/8=", "b-_8=", "b+/8", "b-_8", "b+/9"] {
            let bytes = Cow::Borrowed(&[0xfb, 0xff][..]);
            assert_eq!(
                decode_text(text),
                Ok(Packet::Message(Message::Binary(bytes))),
                "{text}"
            );
        }
    }

    #[test]
    fn damaged_base64_is_refused() {
        for text in ["bA", "bAQ=I", "b===", "bAQ*ID", "b\u{e9}AQI"] {
            assert_eq!(decode_text(text), Err(PacketError::Base64), "{text}");
        }
    }

    /// `android.util.Base64` breaks lines after 76 characters by default, and MIME
    /// encoders with `\r\n`.
    #[test]
    fn base64_with_line_breaks_is_read_in_both_revisions() {
        let bytes: Vec<u8> = (0..=255).collect();
        let base64 = STANDARD.encode(&bytes);
        for line_break in ["\n", "\r\n"] {
            let lines: Vec<_> = base64.as_bytes().chunks(76).collect();
            let lines: Vec<_> = lines
                .iter()
                .map(|line| str::from_utf8(line).unwrap())
                .collect();
            let broken = lines.join(line_break) + line_break;
            let expected = Ok(Packet::Message(Message::Binary(Cow::Borrowed(&bytes))));
            assert_eq!(decode_text(&format!("b{broken}")), expected);
            assert_eq!(decode_text_v3(&format!("b4{broken}")), expected);
        }
    }

    #[test]
    fn a_type_that_is_not_ascii_is_unknown() {
        assert_eq!(decode_text("\u{e9}"), Err(PacketError::UnknownType));
        assert_eq!(decode_text_v3("\u{1f600}4"), Err(PacketError::UnknownType));
    }

    #[test]
    fn revision_3_has_the_type_before_the_base64() {
        let binary = Packet::Message(Message::Binary(Cow::Borrowed(&[1, 2, 3, 255])));
        assert_eq!(decode_text_v3("b4AQID/w=="), Ok(binary.clone()));
        assert_eq!(decode_binary_v3(&[4, 1, 2, 3, 255]), Ok(binary));
        assert_eq!(decode_text_v3("bAQID"), Err(PacketError::UnknownType));
        assert_eq!(decode_binary_v3(&[2]), Err(PacketError::UnknownType));
        assert_eq!(decode_binary_v3(&[]), Err(PacketError::Empty));
    }

    proptest! {
        #[test]
        fn every_packet_decodes_to_what_was_written(text in ".*", bytes: Vec<u8>) {
            for packet in [
                Packet::Open(&text),
                Packet::Close,
                Packet::Ping(&text),
                Packet::Pong(&text),
                Packet::Message(Message::Text(Cow::Borrowed(&text))),
                Packet::Message(Message::Binary(Cow::Borrowed(&bytes))),
                Packet::Upgrade,
                Packet::Noop,
            ] {
                let written = written(&packet);
                let written = str::from_utf8(&written).unwrap();
                prop_assert_eq!(decode_text(written), Ok(packet));
            }
        }
    }

    /// A packet as a server of revision 4 writes it; text packets are the same in revision 3.
    pub(crate) fn written(packet: &Packet<'_>) -> Vec<u8> {
        let (digit, data) = match packet {
            Packet::Open(json) => ("0", *json),
            Packet::Close => ("1", ""),
            Packet::Ping(data) => ("2", *data),
            Packet::Pong(data) => ("3", *data),
            Packet::Message(Message::Text(text)) => ("4", &**text),
            Packet::Message(Message::Binary(bytes)) => {
                let mut out = Vec::new();
                write_binary_message(&mut out, bytes);
                return out;
            }
            Packet::Upgrade => ("5", ""),
            Packet::Noop => ("6", ""),
        };
        [digit, data].concat().into_bytes()
    }

    fn vectors(name: &str) -> Vec<Value> {
        let all = include_str!("../../tests/data/engine-vectors.json");
        let all: Value = serde_json::from_str(all).unwrap();
        let cases = all[name].as_array().unwrap().clone();
        assert!(!cases.is_empty());
        cases
    }

    /// A packet as the captured vectors describe it: type, and data as text or hexadecimal bytes.
    type Seen = (String, Option<String>);

    fn seen(packet: &Result<Packet<'_>, PacketError>) -> Seen {
        let text = |data: &str| (!data.is_empty()).then(|| data.to_owned());
        let (kind, data) = match packet {
            Ok(Packet::Open(json)) => ("open", text(json)),
            Ok(Packet::Close) => ("close", None),
            Ok(Packet::Ping(data)) => ("ping", text(data)),
            Ok(Packet::Pong(data)) => ("pong", text(data)),
            Ok(Packet::Message(Message::Text(data))) => ("message", text(data)),
            Ok(Packet::Message(Message::Binary(data))) => {
                ("message", Some(format!("bytes {}", hex(data))))
            }
            Ok(Packet::Upgrade) => ("upgrade", None),
            Ok(Packet::Noop) => ("noop", None),
            Err(_) => ("error", Some("parser error".to_owned())),
        };
        (kind.to_owned(), data)
    }

    fn seen_by_node(packet: &Value) -> Seen {
        let data = match &packet["data"] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            bytes => Some(format!("bytes {}", bytes["$bin"].as_str().unwrap())),
        };
        (packet["type"].as_str().unwrap().to_owned(), data)
    }
}
