//! The bytes that a link has read and not handled.
//!
//! Sixty-four kibibytes, which is what one read takes at most. A message that is longer makes the
//! buffer grow, as its bytes come and not as it announces; afterwards it shrinks again.

/// Size of an ordinary buffer, in bytes.
pub(super) const SIZE: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// What the value at the front takes at least, as far as is known.
    needed: usize,
}

impl ReadBuffer {
    /// A buffer that begins with these bytes.
    pub(super) fn new(initial: &[u8]) -> Self {
        let mut bytes = vec![0; SIZE.max(initial.len())];
        bytes[..initial.len()].copy_from_slice(initial);
        Self {
            bytes,
            start: 0,
            end: initial.len(),
            needed: 0,
        }
    }

    /// What has not been handled.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first bytes have been handled.
    pub(super) fn consume(&mut self, length: usize) {
        self.start += length;
        self.needed = 0;
        debug_assert!(self.start <= self.end);
    }

    /// The value at the front takes at least that many bytes.
    pub(super) fn need(&mut self, needed: usize) {
        self.needed = needed;
    }

    /// Room for more bytes, never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let length = self.end - self.start;
        let is_oversized = self.bytes.len() > SIZE && self.needed.max(length) <= SIZE / 2;
        if is_oversized {
            let mut bytes = vec![0; SIZE];
            bytes[..length].copy_from_slice(self.unread());
            self.bytes = bytes;
        } else if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, length);
        if length == self.bytes.len() {
            let size = self.needed.clamp(length + 1, length * 2);
            self.bytes.resize(size, 0);
        }
        &mut self.bytes[length..]
    }

    /// That many bytes of `space` have been filled.
    pub(super) fn filled(&mut self, length: usize) {
        self.end += length;
        debug_assert!(self.end <= self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffer: &mut ReadBuffer, mut length: usize) {
        while length > 0 {
            let read = buffer.space().len().min(length);
            buffer.space()[..read].fill(b'x');
            buffer.filled(read);
            length -= read;
        }
    }

    #[test]
    fn a_long_message_makes_it_grow_as_its_bytes_come_and_then_shrink() {
        let mut buffer = ReadBuffer::new(b"");
        fill(&mut buffer, 100);
        buffer.need(64 << 20);
        assert_eq!(buffer.space().len(), SIZE - 100);
        fill(&mut buffer, SIZE - 100 + 1);
        assert!(buffer.bytes.len() <= SIZE * 2);
        fill(&mut buffer, 10 * SIZE);
        buffer.consume(10 * SIZE);
        assert_eq!(buffer.unread().len(), SIZE + 1);
        buffer.consume(SIZE - 4);
        assert_eq!(buffer.unread(), b"xxxxx");
        buffer.space();
        assert_eq!((buffer.unread(), buffer.bytes.len()), (&b"xxxxx"[..], SIZE));
    }

    #[test]
    fn the_rest_moves_to_the_front() {
        let mut buffer = ReadBuffer::new(b"abcdef");
        buffer.consume(4);
        assert_eq!(buffer.space().len(), SIZE - 2);
        assert_eq!(buffer.unread(), b"ef");
    }
}
