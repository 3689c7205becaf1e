//! WebSocket frames (RFC 6455), client side.

/// The frame at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The frame is incomplete.
    Partial,
    /// A complete frame and the bounds of its payload.
    Frame {
        opcode: u8,
        is_final: bool,
        payload_start: usize,
        end: usize,
    },
    /// Not a valid frame of a server: masked, with reserved bits, or too long.
    Invalid,
}

pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// Upper bound of a message. A longer one means that the frame boundary was lost.
pub(crate) const LONGEST_MESSAGE_BYTES: usize = 32 * 1024 * 1024;

/// Parses the frame at the start of `bytes`.
pub(crate) fn scan(bytes: &[u8]) -> Scan {
    let [first, second, rest @ ..] = bytes else {
        return Scan::Partial;
    };
    if first & 0x70 != 0 || second & 0x80 != 0 {
        return Scan::Invalid;
    }
    let (length, payload_start) = match second & 0x7f {
        126 => match rest.first_chunk() {
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
            None => return Scan::Partial,
        },
        127 => match rest.first_chunk() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Scan::Partial,
        },
        short => (u64::from(short), 2),
    };
    if length > LONGEST_MESSAGE_BYTES as u64 {
        return Scan::Invalid;
    }
    let end = payload_start + length as usize;
    if bytes.len() < end {
        return Scan::Partial;
    }
    Scan::Frame {
        opcode: first & 0x0f,
        is_final: first & 0x80 != 0,
        payload_start,
        end,
    }
}

/// Appends a complete frame. The masking key is zero, which is legal and makes masking the
/// identity, because the tool has to cost less than the server.
pub(crate) fn write(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// Appends the upgrade request. All clients send the same key.
pub(crate) fn request(host: &str, path_and_query: &str, cookie: &str) -> String {
    let cookie = if cookie.is_empty() {
        String::new()
    } else {
        format!("Cookie: {cookie}\r\n")
    };
    format!(
        "GET {path_and_query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{cookie}\r\n"
    )
}

/// The `Sec-WebSocket-Accept` that belongs to the key of all clients.
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as a server sends it: without a mask.
    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write(&mut frame, first & 0x0f, payload);
        frame[0] = first;
        frame[1] &= 0x7f;
        let mask_at = frame.len() - payload.len() - 4;
        frame.drain(mask_at..mask_at + 4);
        frame
    }

    #[test]
    fn a_frame_is_found_at_every_length_and_waits_for_its_end() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
            let payload = vec![b'x'; length];
            let frame = server_frame(0x81, &payload);
            let Scan::Frame {
                opcode: TEXT,
                is_final: true,
                payload_start,
                end,
            } = scan(&frame)
            else {
                panic!("{length}");
            };
            assert_eq!(&frame[payload_start..end], payload);
            for cut in [0, 1, frame.len() - 1] {
                assert_eq!(scan(&frame[..cut]), Scan::Partial);
            }
        }
    }

    #[test]
    fn a_fragment_says_so() {
        let Scan::Frame {
            opcode: TEXT,
            is_final: false,
            ..
        } = scan(&server_frame(0x01, b"4"))
        else {
            panic!();
        };
    }

    #[test]
    fn frames_that_no_server_sends_are_invalid() {
        let mut masked = Vec::new();
        write(&mut masked, TEXT, b"2");
        let endless = [0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255];
        for bytes in [&masked[..], &[0xc1, 0], &[0x91, 0], &endless] {
            assert_eq!(scan(bytes), Scan::Invalid);
        }
    }

    #[test]
    fn what_is_written_is_what_another_implementation_reads() {
        use tungstenite::protocol::{Role, WebSocket};
        for length in [0, 5, 125, 126, 70_000] {
            let text = "y".repeat(length);
            let mut frame = Vec::new();
            write(&mut frame, TEXT, text.as_bytes());
            let stream = std::io::Cursor::new(frame);
            let mut server = WebSocket::from_raw_socket(stream, Role::Server, None);
            assert_eq!(server.read().unwrap().into_text().unwrap().as_str(), text);
        }
    }
}
