//! The minimum of HTTP, WebSocket, Engine.IO and Socket.IO for a floor.
//!
//! It parses the requests of the load test by hand, without escapes in strings. Anything else ends the
//! connection.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::{Digest as _, Sha1};

/// Upper bound of a message. A longer one means that the frame boundary was lost.
pub const LONGEST_MESSAGE_BYTES: usize = 32 * 1024;

/// The frame at the start of a buffer.
#[derive(Debug, PartialEq)]
pub enum Scan {
    /// The frame is incomplete.
    Partial,
    /// A complete text frame with the bounds of its unmasked payload.
    Text {
        /// Start of the payload.
        start: usize,
        /// End of the frame.
        end: usize,
    },
    /// A close frame, or an unknown one.
    End,
}

/// Parses the frame at the start of `bytes` and unmasks it in place.
pub fn scan(bytes: &mut [u8]) -> Scan {
    let [first, second, rest @ ..] = &*bytes else {
        return Scan::Partial;
    };
    if *first != 0x81 || second & 0x80 == 0 {
        return Scan::End;
    }
    let (length, head) = match (second & 0x7f, rest) {
        (126, [high, low, ..]) => (usize::from(u16::from_be_bytes([*high, *low])), 4),
        (126, _) => return Scan::Partial,
        (127, _) => return Scan::End,
        (short, _) => (usize::from(short), 2),
    };
    if length > LONGEST_MESSAGE_BYTES {
        return Scan::End;
    }
    let (start, end) = (head + 4, head + 4 + length);
    if bytes.len() < end {
        return Scan::Partial;
    }
    let (head_and_mask, payload) = bytes[..end].split_at_mut(start);
    let mask = &head_and_mask[head..];
    if mask != [0; 4] {
        for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
    }
    Scan::Text { start, end }
}

/// Replaces the content of `frame` by a text frame of these parts.
pub fn frame(frame: &mut Vec<u8>, parts: &[&[u8]]) {
    frame.clear();
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    frame.push(0x81);
    match u8::try_from(length) {
        Ok(short) if short < 126 => frame.push(short),
        _ => {
            frame.push(126);
            let length = u16::try_from(length).expect("messages are short");
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    for part in parts {
        frame.extend_from_slice(part);
    }
}

/// Returns the end of the head of a request, or `None` while it is incomplete.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    find(bytes, b"\r\n\r\n").map(|start| start + 4)
}

/// Returns the position of `wanted` in `bytes`.
pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// Response to requests that are not a WebSocket handshake. The load test checks by polling whether this
/// is a Socket.IO server, and takes this response for one that offers only WebSocket.
pub const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\
    Content-Length: 40\r\n\r\n{\"code\":0,\"message\":\"Transport unknown\"}";

/// Returns the response to a handshake together with the open packet, or `None` for other requests.
///
/// The announced heartbeat interval is a day, because the floors have no timers.
pub fn opening(head: &[u8], connection: u64) -> Option<Vec<u8>> {
    let key = head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon]
            .eq_ignore_ascii_case(b"sec-websocket-key")
            .then(|| line[colon + 1..].trim_ascii())
    })?;
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = STANDARD.encode(hash.finalize());
    let mut answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes();
    let open = format!(
        r#"0{{"sid":"{connection:020}","upgrades":[],"pingInterval":86400000,"pingTimeout":20000,"maxPayload":1000000}}"#
    );
    let mut packet = Vec::new();
    frame(&mut packet, &[open.as_bytes()]);
    answer.extend_from_slice(&packet);
    Some(answer)
}

/// A request of a client. Events include the digits of their acknowledgement id.
#[derive(Debug, PartialEq)]
pub enum Request<'a> {
    /// Connects to the main namespace.
    Connect,
    /// Reply to a heartbeat.
    Pong,
    /// Joins a room.
    Join(&'a [u8], &'a [u8]),
    /// Leaves a room.
    Leave(&'a [u8], &'a [u8]),
    /// Sends a message to a room.
    Message(&'a [u8], &'a [u8], &'a [u8]),
    /// Requests the JSON back.
    Echo(&'a [u8], &'a [u8]),
}

impl<'a> Request<'a> {
    /// Parses a packet, `None` if it is unknown.
    pub fn read(packet: &'a [u8]) -> Option<Self> {
        let event = match packet {
            [b'4', b'0', ..] => return Some(Self::Connect),
            b"3" => return Some(Self::Pong),
            [b'4', b'2', event @ ..] => event,
            _ => return None,
        };
        let digits = event
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let (ack, json) = event.split_at(digits);
        if let Some(args) = json.strip_prefix(b"[\"message\",\"") {
            let (room, rest) = split_string(args)?;
            let payload = rest.strip_prefix(b",\"")?.strip_suffix(b"\"]")?;
            Some(Self::Message(ack, room, payload))
        } else if let Some(args) = json.strip_prefix(b"[\"echo\",") {
            Some(Self::Echo(ack, args))
        } else if let Some(args) = json.strip_prefix(b"[\"join\",\"") {
            Some(Self::Join(ack, split_string(args)?.0))
        } else if let Some(args) = json.strip_prefix(b"[\"leave\",\"") {
            Some(Self::Leave(ack, split_string(args)?.0))
        } else {
            None
        }
    }
}

/// Frames a message to a room, with the same bytes as Roomcast.
pub fn message(out: &mut Vec<u8>, room: &[u8], from: u64, payload: &[u8]) {
    let from = format!("{from:020}");
    let parts: [&[u8]; 7] = [
        b"42[\"message\",{\"room\":\"",
        room,
        b"\",\"from\":\"",
        from.as_bytes(),
        b"\",\"data\":\"",
        payload,
        b"\"}]",
    ];
    frame(out, &parts);
}

/// Frames an acknowledgement; `rest` is its JSON after the opening bracket.
pub fn acknowledge(out: &mut Vec<u8>, ack: &[u8], rest: &[u8]) {
    frame(out, &[b"43", ack, b"[", rest]);
}

/// Frames the reply to [`Request::Connect`].
pub fn connected(out: &mut Vec<u8>, connection: u64) {
    frame(
        out,
        &[format!(r#"40{{"sid":"{connection:020}"}}"#).as_bytes()],
    );
}

fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let quote = bytes.iter().position(|byte| *byte == b'"')?;
    Some((&bytes[..quote], &bytes[quote + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_the_load_test_are_read() {
        for (packet, request) in [
            ("40", Request::Connect),
            ("3", Request::Pong),
            (
                r#"421["join","a",{"quiet":true}]"#,
                Request::Join(b"1", b"a"),
            ),
            (r#"4212["leave","a"]"#, Request::Leave(b"12", b"a")),
            (
                r#"42["message","a","text"]"#,
                Request::Message(b"", b"a", b"text"),
            ),
            (r#"427["echo","x"]"#, Request::Echo(b"7", b"\"x\"]")),
        ] {
            assert_eq!(Request::read(packet.as_bytes()), Some(request), "{packet}");
        }
        for packet in ["", "41", "2", r#"42["other"]"#, r#"42["join",1]"#] {
            assert_eq!(Request::read(packet.as_bytes()), None, "{packet}");
        }
    }

    #[test]
    fn who_does_not_ask_for_a_websocket_is_refused_in_full() {
        assert_eq!(
            opening(b"GET /socket.io/ HTTP/1.1\r\nHost: x\r\n\r\n", 1),
            None
        );
        let end = head_end(REFUSAL).unwrap();
        let (head, body) = REFUSAL.split_at(end);
        let length = format!("Content-Length: {}\r\n", body.len());
        assert!(String::from_utf8_lossy(head).contains(&length));
    }

    #[test]
    fn a_masked_frame_is_found_wherever_the_bytes_are_cut() {
        for text in [vec![b'x'; 3], vec![b'y'; 300]] {
            let mut bytes = Vec::new();
            frame(&mut bytes, &[&text]);
            let head = bytes.len() - text.len();
            let mask = [1, 2, 3, 4];
            bytes[1] |= 0x80;
            bytes.splice(head..head, mask);
            for (byte, key) in bytes[head + 4..].iter_mut().zip(mask.iter().cycle()) {
                *byte ^= key;
            }
            for cut in 0..bytes.len() {
                assert_eq!(scan(&mut bytes.clone()[..cut]), Scan::Partial, "{cut}");
            }
            let end = bytes.len();
            assert_eq!(
                scan(&mut bytes),
                Scan::Text {
                    start: head + 4,
                    end
                }
            );
            assert_eq!(bytes[head + 4..], text);
        }
    }
}
