//! The few WebSocket frames and Socket.IO packets that this benchmark speaks.
//!
//! Shared by the floor server and the load generator. It knows text frames of known senders and
//! nothing else of the protocols, and shares no code with the library: a client built from the
//! library's codecs would agree with the library's mistakes.

/// What the first bytes of a buffer hold.
pub(crate) enum Scan {
    /// The frame goes on after the end of the buffer.
    Partial,
    /// One whole frame: the opcode, and where its payload and the frame itself end.
    Frame {
        opcode: u8,
        mask: Option<[u8; 4]>,
        payload_start: usize,
        end: usize,
    },
    /// Not a frame that either side of this benchmark sends.
    Invalid,
}

pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;

/// No message of the benchmark is longer; a longer one is a sign of a lost frame boundary.
const LONGEST_PAYLOAD_BYTES: usize = 32 * 1024;

/// Looks at the frame at the start of `bytes`.
pub(crate) fn scan(bytes: &[u8]) -> Scan {
    let [first, second, rest @ ..] = bytes else {
        return Scan::Partial;
    };
    if first & 0xf0 != 0x80 {
        return Scan::Invalid;
    }
    let (length, head) = match second & 0x7f {
        126 => match rest {
            [high, low, ..] => (usize::from(u16::from_be_bytes([*high, *low])), 4),
            _ => return Scan::Partial,
        },
        127 => return Scan::Invalid,
        short => (usize::from(short), 2),
    };
    if length > LONGEST_PAYLOAD_BYTES {
        return Scan::Invalid;
    }
    let masked = second & 0x80 != 0;
    let payload_start = head + if masked { 4 } else { 0 };
    let end = payload_start + length;
    if bytes.len() < end {
        return Scan::Partial;
    }
    let mask = masked.then(|| {
        [
            bytes[head],
            bytes[head + 1],
            bytes[head + 2],
            bytes[head + 3],
        ]
    });
    Scan::Frame {
        opcode: first & 0x0f,
        mask,
        payload_start,
        end,
    }
}

/// Appends the head of a text frame as a server sends it. `length` is below 64 KiB.
pub(crate) fn server_frame_head(out: &mut Vec<u8>, length: usize) {
    frame_head(out, length, 0);
}

/// Appends a whole text frame as a client sends it. The masking key is zero, which is a legal key
/// and makes masking the identity.
pub(crate) fn client_frame(out: &mut Vec<u8>, payload: &[u8]) {
    frame_head(out, payload.len(), 0x80);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// Undoes masking in place. A zero key, as this benchmark's client sends, costs nothing.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask != [0; 4] {
        for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
    }
}

/// Where the head of an HTTP message ends, if all of it has arrived.
pub(crate) fn http_head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|start| start + 4)
}

/// The decimal digits at the start of `bytes`, and what follows them.
pub(crate) fn split_digits(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(
        bytes
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count(),
    )
}

fn frame_head(out: &mut Vec<u8>, length: usize, mask_bit: u8) {
    let length = u16::try_from(length).expect("messages of the benchmark are short");
    out.push(0x80 | TEXT);
    if length < 126 {
        out.push(mask_bit | u8::try_from(length).expect("below 126"));
    } else {
        out.push(mask_bit | 126);
        out.extend_from_slice(&length.to_be_bytes());
    }
}
