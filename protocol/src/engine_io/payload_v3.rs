//! Several packets in one HTTP body, revision 3, in its two forms.
//!
//! A text body has `<length>:<packet>` entries, with lengths in UTF-16 code units, as JavaScript
//! counts them. An entry of a binary body is a byte 0 (text) or 1 (binary), the length in decimal
//! digits as bytes 0 to 9, a byte 255, and the packet. The polling transport knows from the headers
//! and the query which form a client sends and accepts.

use std::iter::FusedIterator;

use super::packet::{
    MESSAGE_BYTE, Packet, PacketError, base64_len, decode_binary_v3, decode_text_v3,
    write_binary_message_v3,
};

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text; binary messages are base64.
    Text,
    /// Bytes; binary messages are written as they are.
    Binary,
}

impl Form {
    /// The form of a POST body, by its content type.
    pub fn of_request(content_type: &str) -> Self {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case(OCTET_STREAM) {
            Self::Binary
        } else {
            Self::Text
        }
    }

    /// The form of a response: binary if one of its packets is, unless the client requested base64
    /// with `b64=1`.
    pub fn of_answer(holds_binary: bool, b64: bool) -> Self {
        if holds_binary && !b64 {
            Self::Binary
        } else {
            Self::Text
        }
    }

    /// The content type of a response in this form.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=UTF-8",
            Self::Binary => OCTET_STREAM,
        }
    }
}

/// Reads the packets of a body in order.
///
/// The iterator ends after the first error; the packets before it are valid.
pub fn decode(form: Form, body: &[u8]) -> Packets<'_> {
    Packets {
        form,
        rest: Some(body),
    }
}

/// The packets of a body, see [`decode`].
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    form: Form,
    /// `None` at the end of the body and after an error.
    rest: Option<&'a [u8]>,
}

impl<'a> Packets<'a> {
    /// The part of the body that has not been read; `None` at the end and after an error.
    pub fn rest(&self) -> Option<&'a [u8]> {
        self.rest
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, PacketError>;

    fn next(&mut self) -> Option<Self::Item> {
        let body = self.rest.take()?;
        if body.is_empty() {
            // Only a body without any packet gets here.
            return Some(Err(PacketError::Empty));
        }
        let entry = match self.form {
            Form::Text => text_entry(body),
            Form::Binary => binary_entry(body),
        };
        Some(entry.map(|(packet, rest)| {
            self.rest = (!rest.is_empty()).then_some(rest);
            packet
        }))
    }
}

impl FusedIterator for Packets<'_> {}

/// Builds the response to a GET.
#[derive(Debug)]
pub struct BodyWriter {
    form: Form,
    body: Vec<u8>,
}

impl BodyWriter {
    /// An empty body of this form.
    pub fn new(form: Form) -> Self {
        Self {
            form,
            body: Vec::new(),
        }
    }

    /// Appends a packet in its text form, which begins with its type digit.
    pub fn encoded(&mut self, packet: &[u8]) {
        self.start_text(packet.len(), utf16_len(packet));
        self.body.extend_from_slice(packet);
    }

    /// Appends a binary message, as base64 if the body is text.
    pub fn binary_message(&mut self, bytes: &[u8]) {
        match self.form {
            Form::Text => {
                let len = 2 + base64_len(bytes.len());
                self.start_text(len, len);
                write_binary_message_v3(&mut self.body, bytes);
            }
            Form::Binary => {
                self.start_binary(KIND_BINARY, 1 + bytes.len());
                self.body.push(MESSAGE_BYTE);
                self.body.extend_from_slice(bytes);
            }
        }
    }

    /// The finished body.
    pub fn finish(self) -> Vec<u8> {
        self.body
    }

    fn start_text(&mut self, bytes: usize, utf16: usize) {
        match self.form {
            Form::Text => {
                self.body.extend_from_slice(utf16.to_string().as_bytes());
                self.body.push(b':');
            }
            Form::Binary => self.start_binary(KIND_TEXT, bytes),
        }
    }

    fn start_binary(&mut self, kind: u8, len: usize) {
        self.body.push(kind);
        self.body
            .extend(len.to_string().bytes().map(|digit| digit - b'0'));
        self.body.push(END_OF_LENGTH);
    }
}

/// A packet, and the rest of the body.
type Entry<'a> = Result<(Packet<'a>, &'a [u8]), PacketError>;

fn text_entry(body: &[u8]) -> Entry<'_> {
    let (len, rest) = length(body, b'0', b':')?;
    let end = utf16_end(rest, len)?;
    let (packet, rest) = rest.split_at(end);
    let packet = str::from_utf8(packet).map_err(|_| PacketError::Utf8)?;
    Ok((decode_text_v3(packet)?, rest))
}

fn binary_entry(body: &[u8]) -> Entry<'_> {
    let (&kind, body) = body.split_first().ok_or(PacketError::Empty)?;
    if kind != KIND_TEXT && kind != KIND_BINARY {
        return Err(PacketError::UnknownType);
    }
    let (len, rest) = length(body, 0, END_OF_LENGTH)?;
    let (packet, rest) = rest.split_at_checked(len).ok_or(PacketError::Length)?;
    let packet = if kind == KIND_BINARY {
        decode_binary_v3(packet)?
    } else {
        decode_text_v3(str::from_utf8(packet).map_err(|_| PacketError::Utf8)?)?
    };
    Ok((packet, rest))
}

/// Reads the length in front of a packet: digits (`zero` is 0), then `end`.
fn length(body: &[u8], zero: u8, end: u8) -> Result<(usize, &[u8]), PacketError> {
    let mut len = 0;
    for (at, &byte) in body.iter().take(MAX_LENGTH_DIGITS + 1).enumerate() {
        if byte == end && at > 0 {
            return Ok((len, &body[at + 1..]));
        }
        let digit = byte.wrapping_sub(zero);
        if digit > 9 || at == MAX_LENGTH_DIGITS {
            return Err(PacketError::Length);
        }
        len = len * 10 + usize::from(digit);
    }
    Err(PacketError::Separator)
}

/// Finds where `units` UTF-16 code units end. It counts lead bytes of UTF-8 and nothing
/// else, so the caller has to check that the text is UTF-8.
///
/// Fails if the text is too short, or if the end is inside a surrogate pair.
fn utf16_end(text: &[u8], units: usize) -> Result<usize, PacketError> {
    // No character has more code units than bytes, so the text has at least this many bytes.
    let shortest = text.get(..units).ok_or(PacketError::Length)?;
    if shortest.is_ascii() {
        return Ok(units);
    }
    let (mut at, mut left) = (0, units);
    while left > 0 {
        let (bytes, utf16) = match text.get(at).ok_or(PacketError::Length)? {
            0x00..0x80 => (1, 1),
            0x80..0xc0 => return Err(PacketError::Utf8),
            0xc0..0xe0 => (2, 1),
            0xe0..0xf0 => (3, 1),
            0xf0.. => (4, 2),
        };
        left = left.checked_sub(utf16).ok_or(PacketError::Length)?;
        at += bytes;
    }
    if at > text.len() {
        Err(PacketError::Length)
    } else {
        Ok(at)
    }
}

/// How many UTF-16 code units a text in UTF-8 has: one for every lead byte, two for the lead
/// byte of a character that needs a surrogate pair.
fn utf16_len(text: &[u8]) -> usize {
    text.iter()
        .map(|&byte| usize::from(byte & 0xc0 != 0x80) + usize::from(byte >= 0xf0))
        .sum()
}

const KIND_TEXT: u8 = 0;
const KIND_BINARY: u8 = 1;
const END_OF_LENGTH: u8 = 255;
const OCTET_STREAM: &str = "application/octet-stream";
/// More digits than any body has bytes, and few enough not to overflow on 64 bits.
const MAX_LENGTH_DIGITS: usize = 10;

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        engine_io::packet::{Message, tests::written},
        notation::unhex,
    };

    /// The response of a server to a client that had sent one text and one binary packet.
    const CAPTURED_BINARY: &str = "000402ff3435312d5b226563686f222c7b225f706c616365686f6c646572223a\
                                   747275652c226e756d223a307d5d0105ff04010203ff";
    const HEADER: &str = "51-[\"echo\",{\"_placeholder\":true,\"num\":0}]";

    #[test]
    fn captured_text_bodies_read_and_write() {
        let body = "12:42[\"echo\",1]16:42[\"echo\",\"\u{e9}\u{1f600}\"]";
        let messages = [
            text("2[\"echo\",1]"),
            text("2[\"echo\",\"\u{e9}\u{1f600}\"]"),
        ];
        check(Form::Text, body.as_bytes(), &messages);
        check(Form::Text, b"1:2", &[Packet::Ping("")]);
        check(Form::Text, b"1:6", &[Packet::Noop]);
    }

    #[test]
    fn captured_binary_bodies_read_and_write() {
        let body = unhex(CAPTURED_BINARY);
        let packets = [text(HEADER), binary(&[1, 2, 3, 255])];
        check(Form::Binary, &body, &packets);
    }

    #[test]
    fn captured_base64_bodies_read_and_write() {
        let body = format!("42:4{HEADER}10:b4AQID/w==");
        let packets = [text(HEADER), binary(&[1, 2, 3, 255])];
        check(Form::Text, body.as_bytes(), &packets);
    }

    #[test]
    fn text_in_a_binary_body_is_counted_in_bytes() {
        check(
            Form::Binary,
            b"\x00\x05\xff4\xf0\x9f\x98\x80",
            &[text("\u{1f600}")],
        );
    }

    #[test]
    fn a_length_that_does_not_fit_the_body_is_refused() {
        for body in [
            "13:42[\"echo\",1]",
            "2:\u{e9}",
            "3:4\u{1f600}\u{e9}5:",
            "2:4\u{1f600}",
        ] {
            let last = decode(Form::Text, body.as_bytes()).last();
            assert_eq!(last, Some(Err(PacketError::Length)), "{body}");
        }
        // The end falls between the halves of a surrogate pair.
        for body in [&b"2:4\xf0\x9f\x98\x80"[..], b"2:4", b"3:4\xe9"] {
            assert_eq!(error_in_text(body), PacketError::Length, "{body:?}");
        }
        assert_eq!(error_in_binary(b"\x00\x02\xff4"), PacketError::Length);
    }

    #[test]
    fn a_length_that_is_not_a_number_is_refused() {
        for body in [&b":4"[..], b"x:4", b"-1:4", b"1e1:4", b"12345678901:4"] {
            assert_eq!(error_in_text(body), PacketError::Length, "{body:?}");
        }
        for body in [&b"\x00\x0a\xff4"[..], b"\x00\xff4"] {
            assert_eq!(error_in_binary(body), PacketError::Length, "{body:?}");
        }
        assert_eq!(error_in_text(b"12"), PacketError::Separator);
        for body in [&b"\x01\x01"[..], b"\x01"] {
            assert_eq!(error_in_binary(body), PacketError::Separator, "{body:?}");
        }
    }

    #[test]
    fn empty_bodies_and_empty_packets_are_refused() {
        for body in [&b""[..], b"0:"] {
            assert_eq!(error_in_text(body), PacketError::Empty, "{body:?}");
        }
        for body in [&b""[..], b"\x00\x00\xff", b"\x01\x00\xff"] {
            assert_eq!(error_in_binary(body), PacketError::Empty, "{body:?}");
        }
    }

    #[test]
    fn bad_text_and_unknown_kinds_are_refused() {
        for body in [&b"2:4\xff"[..], b"2:4\xff\xff\xff\xff"] {
            assert_eq!(error_in_text(body), PacketError::Length, "{body:?}");
        }
        for body in [&b"2:4\x80"[..], b"2:4\xc3x"] {
            assert_eq!(error_in_text(body), PacketError::Utf8, "{body:?}");
        }
        assert_eq!(error_in_binary(b"\x00\x02\xff4\xff"), PacketError::Utf8);
        assert_eq!(error_in_binary(b"\x02\x01\xff2"), PacketError::UnknownType);
    }

    #[test]
    fn packets_before_a_bad_one_are_read_and_those_after_it_are_not() {
        let packets: Vec<_> = decode(Form::Text, b"2:4a1:x2:4b").collect();
        assert_eq!(packets, [Ok(text("a")), Err(PacketError::UnknownType)]);
    }

    #[test]
    fn forms_follow_from_headers_and_query() {
        assert_eq!(Form::of_request("Application/Octet-Stream"), Form::Binary);
        assert_eq!(
            Form::of_request("application/octet-stream; x=y"),
            Form::Binary
        );
        assert_eq!(Form::of_request("text/plain;charset=UTF-8"), Form::Text);
        assert_eq!(Form::of_answer(true, false), Form::Binary);
        assert_eq!(Form::of_answer(true, true), Form::Text);
        assert_eq!(Form::of_answer(false, false), Form::Text);
    }

    proptest! {
        #[test]
        fn any_body_is_read_to_its_end_without_panic(body: Vec<u8>) {
            for form in [Form::Text, Form::Binary] {
                prop_assert!(decode(form, &body).count() <= body.len() + 1);
            }
        }

        #[test]
        fn nearly_valid_bodies_never_panic(body in "([0-9]{1,2}:[4b]?[4a\u{e9}\u{1f600}]{0,6}){0,5}") {
            let packets: Vec<_> = decode(Form::Text, body.as_bytes()).collect();
            prop_assert!(packets.iter().rev().skip(1).all(Result::is_ok));
        }

        #[test]
        fn written_bodies_read_back(
            messages in prop::collection::vec((any::<bool>(), ".{0,20}"), 1..20),
        ) {
            for form in [Form::Text, Form::Binary] {
                let mut body = BodyWriter::new(form);
                let mut expected = Vec::new();
                for (is_binary, data) in &messages {
                    let packet = if *is_binary {
                        binary(data.as_bytes())
                    } else {
                        text(data)
                    };
                    append(&mut body, &packet);
                    expected.push(Ok(packet));
                }
                let body = body.finish();
                prop_assert_eq!(decode(form, &body).collect::<Vec<_>>(), expected);
            }
        }

        #[test]
        fn utf16_is_counted_as_the_standard_library_does(text in ".*") {
            prop_assert_eq!(utf16_len(text.as_bytes()), text.encode_utf16().count());
        }
    }

    fn check(form: Form, body: &[u8], packets: &[Packet<'_>]) {
        let read: Vec<_> = decode(form, body).map(Result::unwrap).collect();
        assert_eq!(read, packets);
        let mut again = BodyWriter::new(form);
        for packet in packets {
            append(&mut again, packet);
        }
        assert_eq!(again.finish(), body);
    }

    fn append(body: &mut BodyWriter, packet: &Packet<'_>) {
        match packet {
            Packet::Message(Message::Binary(bytes)) => body.binary_message(bytes),
            _ => body.encoded(&written(packet)),
        }
    }

    fn error_in_text(body: &[u8]) -> PacketError {
        only_error(Form::Text, body)
    }

    fn error_in_binary(body: &[u8]) -> PacketError {
        only_error(Form::Binary, body)
    }

    fn only_error(form: Form, body: &[u8]) -> PacketError {
        let packets: Vec<_> = decode(form, body).collect();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets[0].clone().unwrap_err()
    }

    fn text(data: &str) -> Packet<'_> {
        Packet::Message(Message::Text(Cow::Borrowed(data)))
    }

    fn binary(data: &[u8]) -> Packet<'_> {
        Packet::Message(Message::Binary(Cow::Borrowed(data)))
    }
}
