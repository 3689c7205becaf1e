//! Several packets in one HTTP body, revision 4: text packets separated by the byte 0x1e.
//!
//! The polling transport limits the size of a body before it is decoded here.

use std::iter::FusedIterator;

use super::packet::{Packet, PacketError, decode_text};

/// Maximum number of packets in one response to a GET. python-engineio drops the connection when
/// there are more.
///
/// It does not apply to bodies that clients POST, because Node's client has no such limit; their
/// size bounds them.
pub const MAX_PACKETS_PER_BODY: usize = 16;

/// Reads the packets of a POST body in order.
///
/// The iterator ends after the first error; the packets before it are valid. An empty body and a
/// separator at the end are an empty packet, which is an error.
pub fn decode(body: &[u8]) -> Packets<'_> {
    Packets { rest: Some(body) }
}

/// The packets of a body, see [`decode`].
#[derive(Debug, Clone)]
pub struct Packets<'a> {
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
        // The separator is ASCII and never part of another character, so the body can be split
        // before it is known to be UTF-8.
        let packet = match body.iter().position(|&byte| byte == SEPARATOR) {
            Some(at) => {
                self.rest = Some(&body[at + 1..]);
                &body[..at]
            }
            None => body,
        };
        let packet = str::from_utf8(packet)
            .map_err(|_| PacketError::Utf8)
            .and_then(decode_text);
        if packet.is_err() {
            self.rest = None;
        }
        Some(packet)
    }
}

impl FusedIterator for Packets<'_> {}

/// Builds the response to a GET.
#[derive(Debug, Default)]
pub struct BodyWriter {
    body: Vec<u8>,
}

impl BodyWriter {
    /// An empty body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a packet in its text form: a type digit and text, or `b` and base64.
    pub fn encoded(&mut self, packet: impl AsRef<[u8]>) {
        // No packet is empty, so the body is empty only before the first one.
        if !self.body.is_empty() {
            self.body.push(SEPARATOR);
        }
        self.body.extend_from_slice(packet.as_ref());
    }

    /// The finished body.
    pub fn finish(self) -> Vec<u8> {
        self.body
    }
}

const SEPARATOR: u8 = 0x1e;

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;
    use crate::engine_io::packet::{Message, tests::written};

    #[test]
    fn packets_before_a_bad_one_are_read_and_those_after_it_are_not() {
        let mut packets = decode(b"4a\x1e4\xff\x1e4b");
        assert_eq!(packets.next(), Some(Ok(text("a"))));
        assert_eq!(packets.next(), Some(Err(PacketError::Utf8)));
        assert_eq!(packets.next(), None);
        assert_eq!(packets.next(), None);
    }

    #[test]
    fn an_empty_body_and_a_trailing_separator_are_errors() {
        assert_eq!(decode(b"").collect::<Vec<_>>(), [Err(PacketError::Empty)]);
        assert_eq!(
            decode(b"\x1e").collect::<Vec<_>>(),
            [Err(PacketError::Empty)]
        );
        assert_eq!(
            decode(b"6\x1e").collect::<Vec<_>>(),
            [Ok(Packet::Noop), Err(PacketError::Empty)]
        );
    }

    #[test]
    fn a_post_may_hold_more_packets_than_an_answer() {
        let body = vec!["4x"; 10 * MAX_PACKETS_PER_BODY].join("\x1e");
        assert_eq!(decode(body.as_bytes()).filter(Result::is_ok).count(), 160);
    }

    #[test]
    fn a_body_is_written_in_order_with_separators_between_packets() {
        let mut body = BodyWriter::new();
        for packet in ["4a\u{e9}", "bAQID", "2", "6"] {
            body.encoded(packet);
        }
        assert_eq!(body.finish(), "4a\u{e9}\x1ebAQID\x1e2\x1e6".as_bytes());
        assert_eq!(BodyWriter::new().finish(), b"");
    }

    proptest! {
        #[test]
        fn any_body_is_read_to_its_end_without_panic(body: Vec<u8>) {
            let separators = body.iter().filter(|&&byte| byte == 0x1e).count();
            let packets: Vec<_> = decode(&body).collect();
            prop_assert!(packets.len() <= separators + 1);
            prop_assert!(packets.iter().rev().skip(1).all(Result::is_ok));
        }

        #[test]
        fn a_written_body_reads_back(
            messages in prop::collection::vec((any::<bool>(), "[^\x1e]{0,20}"), 1..20),
        ) {
            let mut body = BodyWriter::new();
            let mut expected = Vec::new();
            for (is_binary, data) in &messages {
                let packet = if *is_binary {
                    Packet::Message(Message::Binary(Cow::Borrowed(data.as_bytes())))
                } else {
                    text(data)
                };
                body.encoded(written(&packet));
                expected.push(Ok(packet));
            }
            let body = body.finish();
            prop_assert_eq!(decode(&body).collect::<Vec<_>>(), expected);
        }
    }

    fn text(data: &str) -> Packet<'_> {
        Packet::Message(Message::Text(Cow::Borrowed(data)))
    }
}
