//! What a benchmark message carries, and how its receiver knows that nothing was changed.
//!
//! A payload names its sender and its number; the rest is filler that both determine, so that a
//! frame mixed from two messages is seen as corrupted. It is plain ASCII without anything that
//! JSON escapes, hence the same bytes in every server's output.

/// Length of every payload, in bytes.
pub(crate) const PAYLOAD_BYTES: usize = 128;

/// Who sent a payload, and as which of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) sender: u32,
    pub(crate) sequence: u32,
}

impl Label {
    /// Appends the payload with this label.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        push_hex(out, self.sender, SENDER_DIGITS);
        push_hex(out, self.sequence, SEQUENCE_DIGITS);
        out.extend_from_slice(self.filler());
    }

    /// Reads a payload back; `None` if any of its bytes is not as it was written.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        if payload.len() != PAYLOAD_BYTES {
            return None;
        }
        let (sender, rest) = payload.split_at(SENDER_DIGITS);
        let (sequence, filler) = rest.split_at(SEQUENCE_DIGITS);
        let label = Self {
            sender: parse_hex(sender)?,
            sequence: parse_hex(sequence)?,
        };
        (label.filler() == filler).then_some(label)
    }

    fn filler(self) -> &'static [u8] {
        let shift = self.sender.wrapping_mul(31).wrapping_add(self.sequence) as usize;
        &FILLER[shift % SHIFTS..][..FILLER_BYTES]
    }
}

fn push_hex(out: &mut Vec<u8>, value: u32, digits: usize) {
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(value >> (4 * digit)) as usize & 15]);
    }
}

fn parse_hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u32::from(digit))
    })
}

const SENDER_DIGITS: usize = 6;
const SEQUENCE_DIGITS: usize = 8;
const FILLER_BYTES: usize = PAYLOAD_BYTES - SENDER_DIGITS - SEQUENCE_DIGITS;
const SHIFTS: usize = 61;

/// A text with a period of 61 characters: neighbouring shifts of it differ everywhere.
static FILLER: [u8; FILLER_BYTES + SHIFTS] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345678";
    let mut text = [0; FILLER_BYTES + SHIFTS];
    let mut at = 0;
    while at < text.len() {
        text[at] = alphabet[at % SHIFTS];
        at += 1;
    }
    text
};
