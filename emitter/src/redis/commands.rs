//! Commands as Redis reads them: many of them, one after the other, in one piece of memory.

/// Commands in their order, each a list of words with their lengths in front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Commands {
    bytes: Vec<u8>,
    /// Where each command ends.
    ends: Vec<usize>,
}

impl Commands {
    /// A single command.
    pub(crate) fn one<W: AsRef<[u8]>>(words: &[W]) -> Self {
        let mut commands = Self::default();
        commands.push(words);
        commands
    }

    /// Appends a command.
    pub(crate) fn push<W: AsRef<[u8]>>(&mut self, words: &[W]) {
        self.length(b'*', words.len());
        for word in words {
            self.word(&[word]);
        }
        self.ends.push(self.bytes.len());
    }

    /// Appends a command that publishes. The parts of the channel's name follow each other.
    pub(crate) fn push_publish(&mut self, is_sharded: bool, channel: &[&str], payload: &[u8]) {
        self.length(b'*', 3);
        self.word(&[if is_sharded { "SPUBLISH" } else { "PUBLISH" }]);
        self.word(channel);
        self.word(&[payload]);
        self.ends.push(self.bytes.len());
    }

    /// Appends copies of all these commands.
    pub(crate) fn append(&mut self, other: &Self) {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.ends.extend(other.ends.iter().map(|end| before + end));
    }

    /// Removes all commands but the first `count`.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.bytes.truncate(self.ends.last().map_or(0, |end| *end));
    }

    fn word<P: AsRef<[u8]>>(&mut self, parts: &[P]) {
        self.length(b'$', parts.iter().map(|part| part.as_ref().len()).sum());
        for part in parts {
            self.bytes.extend_from_slice(part.as_ref());
        }
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn length(&mut self, kind: u8, length: usize) {
        self.bytes.push(kind);
        let mut digits = itoa::Buffer::new();
        self.bytes
            .extend_from_slice(digits.format(length).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// The number of commands.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// All commands, as they are sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The words of each command.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Words<'_>> {
        let begins = std::iter::once(&0).chain(&self.ends);
        let commands = begins.zip(&self.ends);
        commands.map(|(&begin, &end)| Words::of(&self.bytes[begin..end]))
    }
}

/// The words of one command.
#[derive(Clone)]
pub(crate) struct Words<'a> {
    /// Begins with the length of the next word.
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    fn of(command: &'a [u8]) -> Self {
        let (_, rest) = length(command);
        Self { rest }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let (length, rest) = length(self.rest);
        let (word, rest) = rest.split_at(length);
        self.rest = &rest[2..];
        Some(word)
    }
}

/// Reads a length that [`Commands`] has written.
fn length(bytes: &[u8]) -> (usize, &[u8]) {
    let digits = bytes[1..].iter().take_while(|byte| **byte != b'\r');
    let (count, length) = digits.fold((0, 0), |(count, length), digit| {
        (count + 1, length * 10 + usize::from(digit - b'0'))
    });
    (length, &bytes[1 + count + 2..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn commands_are_those_of_the_crate_and_keep_their_words(
            commands in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 1..5),
                0..5,
            ),
        ) {
            let mut written = Commands::default();
            let mut theirs = Vec::new();
            for words in &commands {
                written.push(words);
                theirs.extend(redis::pack_command(words));
            }
            prop_assert_eq!(written.bytes(), theirs);
            let read: Vec<Vec<_>> = written.iter().map(Iterator::collect).collect();
            prop_assert_eq!(&read, &commands);
            let mut twice = written.clone();
            twice.append(&written);
            prop_assert_eq!(twice.len(), 2 * commands.len());
            let last = twice.iter().skip(commands.len()).map(Iterator::collect);
            prop_assert_eq!(&last.collect::<Vec<Vec<_>>>(), &commands);
            twice.truncate(commands.len());
            prop_assert_eq!(twice, written);
        }
    }

    #[test]
    fn the_parts_of_a_channel_are_one_word() {
        let mut commands = Commands::default();
        commands.push_publish(false, &["ro", "", "om"], b"message");
        commands.push_publish(true, &["room"], b"message");
        assert_eq!(
            commands.bytes(),
            [
                &Commands::one(&["PUBLISH", "room", "message"]).bytes[..],
                &Commands::one(&["SPUBLISH", "room", "message"]).bytes,
            ]
            .concat()
        );
    }
}
