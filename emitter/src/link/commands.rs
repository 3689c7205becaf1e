//! Commands in the form in which they are written: encoded, one behind the other.
//!
//! Whoever says many commands encodes all of them into one buffer, which a link copies piece by
//! piece, instead of a few small allocations for each of them.

use std::ops::Range;

use crate::resp::{self, Limits, Parsed, Reply};

/// The first buffer, in bytes.
const FIRST_BYTES: usize = 4 << 10;

/// Encoded commands, in order.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    bytes: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Commands {
    /// Adds the command that the function appends. If it fails, nothing is added.
    pub(crate) fn push<E>(
        &mut self,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(FIRST_BYTES);
            self.ends.reserve(FIRST_BYTES / 128);
        }
        let appended = append(&mut self.bytes);
        match appended {
            Ok(()) => self.ends.push(self.bytes.len()),
            Err(_) => self.bytes.truncate(self.start(self.ends.len())),
        }
        appended
    }

    /// Takes the last one away.
    pub(crate) fn pop(&mut self) {
        self.ends.pop();
        self.bytes.truncate(self.start(self.ends.len()));
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// What all of them take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What some of them take, in bytes.
    pub(crate) fn bytes_of(&self, range: &Range<usize>) -> usize {
        self.start(range.end) - self.start(range.start)
    }

    /// One of them.
    pub(crate) fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.start(index)..self.ends[index]]
    }

    /// Some of them.
    pub(crate) fn select(&self, indices: &[usize]) -> Self {
        let mut selected = Self::default();
        for index in indices {
            selected.bytes.extend_from_slice(self.get(*index));
            selected.ends.push(selected.bytes.len());
        }
        selected
    }

    /// The words of one of them.
    pub(crate) fn words(&self, index: usize) -> Vec<&[u8]> {
        let limits = Limits {
            max_bulk: usize::MAX,
            ..Limits::default()
        };
        let parsed = resp::parse(self.get(index), &limits);
        let Ok(Parsed::Whole(Reply::Array(words), _)) = parsed else {
            unreachable!("a command has the form of a list");
        };
        words.iter().filter_map(Reply::bytes).collect()
    }

    /// The next ones from `first` on that take this many bytes together, and at least one.
    pub(crate) fn piece(&self, first: usize, bytes: usize) -> Range<usize> {
        let most = self.start(first) + bytes;
        let whole = self.ends[first..].iter().take_while(|end| **end <= most);
        let count = whole.count().max(1);
        first..self.len().min(first + count)
    }

    fn start(&self, index: usize) -> usize {
        match index {
            0 => 0,
            _ => self.ends[index - 1],
        }
    }
}

/// Appends a word of a command that consists of parts.
pub(crate) fn push_joined_arg(out: &mut Vec<u8>, parts: &[&str]) {
    let length = parts.iter().map(|part| part.len()).sum();
    resp::push_header(out, b'$', length);
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a word of a command whose length is known only once it is written. If that fails, half
/// a word is left behind.
pub(crate) fn push_written_arg<E>(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let head = out.len();
    // Most messages have hundreds of bytes; the others are moved into place.
    out.extend_from_slice(USUAL_HEAD);
    let start = out.len();
    write(out)?;
    let length = out.len() - start;
    if (100..1_000).contains(&length) {
        let digit = |divisor: usize| b'0' + (length / divisor % 10) as u8;
        out[head + 1..head + 4].copy_from_slice(&[digit(100), digit(10), digit(1)]);
    } else {
        let right = format!("${length}\r\n");
        out.splice(head..start, right.into_bytes());
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

const USUAL_HEAD: &[u8] = b"$000\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn append(bytes: &[u8]) -> impl FnOnce(&mut Vec<u8>) -> Result<(), ()> {
        |out: &mut Vec<u8>| {
            out.extend_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn what_fails_leaves_nothing_behind() {
        let mut commands = Commands::default();
        commands.push(append(b"one")).unwrap();
        let failed = commands.push(|out| {
            out.extend_from_slice(b"half");
            Err("no")
        });
        assert_eq!(failed, Err("no"));
        commands.push(append(b"three")).unwrap();
        commands.push(append(b"four")).unwrap();
        commands.pop();
        let all: Vec<_> = (0..commands.len())
            .map(|index| commands.get(index))
            .collect();
        assert_eq!(all, [&b"one"[..], b"three"]);
        let again = commands.select(&[1]);
        assert_eq!((again.len(), again.get(0)), (1, &b"three"[..]));
        assert_eq!((commands.bytes(), commands.bytes_of(&(1..2))), (8, 5));
    }

    #[test]
    fn a_word_of_any_length_has_it_in_front() {
        for length in [0, 1, 9, 10, 99, 100, 101, 999, 1_000, 123_456] {
            let word = "x".repeat(length);
            let mut written = Vec::new();
            resp::begin_command(&mut written, 2);
            resp::push_arg(&mut written, b"PUBLISH");
            let result = push_written_arg(&mut written, append(word.as_bytes()));
            assert_eq!(result, Ok(()));
            let mut joined = Vec::new();
            resp::begin_command(&mut joined, 2);
            push_joined_arg(&mut joined, &["PUB", "", "LISH"]);
            let (start, end) = word.split_at(length / 2);
            push_joined_arg(&mut joined, &[start, end]);
            assert!(written == joined, "{length}");
            let mut expected = Vec::new();
            resp::encode_command(&mut expected, &["PUBLISH", &word]);
            assert!(written == expected, "{length}");
            let mut commands = Commands::default();
            commands.push(append(&written)).unwrap();
            assert!(
                commands.words(0) == [b"PUBLISH", word.as_bytes()],
                "{length}"
            );
        }
    }

    #[test]
    fn pieces_have_whole_commands_and_at_least_one() {
        let mut commands = Commands::default();
        for bytes in [&b"12"[..], b"34", b"56", b"7890", b"1"] {
            commands.push(append(bytes)).unwrap();
        }
        let mut pieces = Vec::new();
        let mut next = 0;
        while next < commands.len() {
            let piece = commands.piece(next, 5);
            next = piece.end;
            pieces.push(piece);
        }
        assert_eq!(pieces, [0..2, 2..3, 3..5]);
        assert_eq!(commands.piece(3, 1), 3..4);
        assert_eq!(commands.piece(5, 1), 5..5);
    }
}
