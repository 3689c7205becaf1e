//! The payload of messages, from which a receiver sees whether anything was changed.
//!
//! A payload holds run, sender, sequence number, time and a checksum. The rest is filler that
//! depends on them, so a mixture of two messages is detected. It is ASCII that JSON does not
//! escape, so every server outputs the same bytes.

use crate::clock::Nanos;

/// The start of every payload.
pub(crate) const MAGIC: &[u8; 3] = b"rl1";

/// The shortest payload, in bytes: a label without filler.
pub(crate) const MIN_PAYLOAD_BYTES: usize = 40;

/// The longest payload, in bytes.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 512 * 1024;

/// Sender, number and time of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// Distinguishes this run from messages that another one has left behind.
    pub(crate) run: u16,
    /// Below 2²⁴.
    pub(crate) sender: u32,
    pub(crate) sequence: u32,
    /// When it was sent; in paced runs, when it was due.
    pub(crate) time: Nanos,
}

impl Label {
    /// Appends a payload of this many bytes, between the minimum and the maximum.
    pub(crate) fn write(self, out: &mut Vec<u8>, payload_bytes: usize) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        push_hex(out, u64::from(self.run), 4);
        push_hex(out, u64::from(self.sender), 6);
        push_hex(out, u64::from(self.sequence), 8);
        push_hex(out, self.time, 14);
        let sum = checksum(&out[start..]);
        push_hex(out, u64::from(sum), SUM_DIGITS);
        let end = start + payload_bytes.max(MIN_PAYLOAD_BYTES);
        let mut shift = self.shift();
        while out.len() < end {
            let piece = (end - out.len()).min(PERIOD);
            out.extend_from_slice(&FILLER[shift..][..piece]);
            // A repeated piece would hide a lost one.
            shift = (shift + 7) % PERIOD;
        }
    }

    /// Parses a payload of this many bytes. Returns `None` if any byte differs from what was
    /// written.
    pub(crate) fn read(payload: &[u8], payload_bytes: usize) -> Option<Self> {
        if payload.len() != payload_bytes || payload_bytes < MIN_PAYLOAD_BYTES {
            return None;
        }
        let (head, filler) = payload.split_at(MIN_PAYLOAD_BYTES);
        let (signed, sum) = head.split_at(MIN_PAYLOAD_BYTES - SUM_DIGITS);
        if parse_hex(sum)? != u64::from(checksum(signed)) {
            return None;
        }
        let fields = signed.strip_prefix(MAGIC)?;
        let label = Self {
            run: parse_hex(&fields[..4])? as u16,
            sender: parse_hex(&fields[4..10])? as u32,
            sequence: parse_hex(&fields[10..18])? as u32,
            time: parse_hex(&fields[18..])?,
        };
        label.fills(filler).then_some(label)
    }

    fn fills(self, filler: &[u8]) -> bool {
        let mut shift = self.shift();
        filler.chunks(PERIOD).all(|piece| {
            let expected = &FILLER[shift..][..piece.len()];
            shift = (shift + 7) % PERIOD;
            piece == expected
        })
    }

    fn shift(self) -> usize {
        self.sender.wrapping_mul(31).wrapping_add(self.sequence) as usize % PERIOD
    }
}

/// Twenty bits of a multiplicative hash, which is enough against accidents.
fn checksum(bytes: &[u8]) -> u32 {
    let mix =
        |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x51_7c_c1_b7_27_22_0a_95);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words
        .iter()
        .fold(0, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let hash = rest
        .iter()
        .fold(hash, |hash, byte| mix(hash, u64::from(*byte)));
    (hash >> 44) as u32
}

fn push_hex(out: &mut Vec<u8>, value: u64, digits: usize) {
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(value >> (4 * digit)) as usize & 15]);
    }
}

fn parse_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

const SUM_DIGITS: usize = 5;
const PERIOD: usize = 61;

/// A text with a period of 61 characters. Shifts of it differ in every character.
static FILLER: [u8; 2 * PERIOD] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345678";
    let mut text = [0; 2 * PERIOD];
    let mut at = 0;
    while at < text.len() {
        text[at] = alphabet[at % PERIOD];
        at += 1;
    }
    text
};

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label {
        run: 0xbeef,
        sender: 0x00_12_34,
        sequence: 77,
        time: 1 << 54,
    };

    fn written(bytes: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        LABEL.write(&mut payload, bytes);
        payload
    }

    #[test]
    fn a_payload_is_read_back_at_every_length() {
        for bytes in [40, 41, 100, 101, 128, 1000, 65_536] {
            let payload = written(bytes);
            assert_eq!(payload.len(), bytes);
            assert_eq!(Label::read(&payload, bytes), Some(LABEL));
        }
    }

    #[test]
    fn any_single_changed_byte_is_seen() {
        let payload = written(200);
        for at in 0..payload.len() {
            for flip in [1, 2, 32, 128] {
                let mut changed = payload.clone();
                changed[at] ^= flip;
                assert_eq!(Label::read(&changed, 200), None, "byte {at}");
            }
        }
    }

    #[test]
    fn a_payload_cut_short_or_mixed_from_two_is_seen() {
        let payload = written(128);
        assert_eq!(Label::read(&payload[..127], 128), None);
        assert_eq!(
            Label::read(&payload[..127], 127),
            Label::read(&written(127), 127)
        );
        let mut other = Vec::new();
        Label {
            sequence: 78,
            ..LABEL
        }
        .write(&mut other, 128);
        let mixed = [&payload[..64], &other[64..]].concat();
        assert_eq!(Label::read(&mixed, 128), None);
    }

    #[test]
    fn nothing_in_a_payload_needs_escaping_in_json() {
        let text = String::from_utf8(written(300)).unwrap();
        assert_eq!(serde_json::to_string(&text).unwrap(), format!("\"{text}\""));
    }
}
