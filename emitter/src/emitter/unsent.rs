//! The content of a batch: commands in pieces that Redis reads at once.
//!
//! Each piece is in one part of memory behind an `Arc`. The link sends it unchanged, and
//! the batch keeps it until all replies have arrived: if some of its messages were not published,
//! they are selected and sent again. So the common case, in which nothing fails, copies nothing.

use std::{borrow::Cow, sync::Arc};

use super::journals::Journal;
use crate::{
    error::EmitError,
    log::Once,
    redis::{Commands, Words},
};

/// Bytes after which a further command begins a new piece. Redis reads as much at a time.
const PIECE_BYTES: usize = 16 << 10;

/// Commands in their order.
#[derive(Clone, Default)]
pub(super) struct Unsent {
    /// Kept until all have their replies, for a retry.
    pieces: Vec<Arc<Commands>>,
    /// One for each command.
    marks: Vec<Mark>,
    bytes: usize,
}

/// The part of a command that is not sent.
#[derive(Clone)]
pub(super) enum Mark {
    /// It is published as it is.
    Plain,
    /// It belongs in the journal of the namespace of this number, if there is one.
    Journaled(usize),
    /// It has an idempotency key.
    Keyed(Arc<Keyed>),
}

/// The idempotency key of a message.
pub(super) struct Keyed {
    pub(super) once: Once,
    /// The number of its namespace.
    pub(super) namespace: usize,
    /// Whether it belongs in the journal of its namespace.
    pub(super) is_stored: bool,
}

/// Commands that follow each other and go the same way.
pub(super) enum Run<'a> {
    /// They have idempotency keys in the namespace of this number. With the words of each.
    Keyed(usize, Vec<(&'a Keyed, Vec<Vec<u8>>)>),
    /// They are published as they are.
    Published(Cow<'a, Unsent>),
    /// Their payloads are stored in a journal.
    Appended(&'a Journal, Vec<&'a [u8]>),
}

impl Unsent {
    /// Adds a command, which `write` appends, unless all of them would take more bytes than the limit.
    pub(super) fn push(
        &mut self,
        mark: Mark,
        limit: usize,
        write: impl FnOnce(&mut Commands) -> Result<(), EmitError>,
    ) -> Result<(), EmitError> {
        let last = self.pieces.last();
        if last.is_none_or(|last| last.bytes().len() >= PIECE_BYTES) {
            self.pieces.push(Arc::default());
        }
        let piece = self.pieces.last_mut().expect("there is one");
        let piece = Arc::make_mut(piece);
        let (count, before) = (piece.len(), piece.bytes().len());
        write(piece)?;
        let bytes = piece.bytes().len() - before;
        if bytes > limit.saturating_sub(self.bytes) {
            piece.truncate(count);
            return Err(EmitError::BatchFull { limit });
        }
        self.bytes += bytes;
        self.marks.push(mark);
        Ok(())
    }

    pub(super) fn pieces(&self) -> &[Arc<Commands>] {
        &self.pieces
    }

    /// Whether a message has an idempotency key.
    pub(super) fn has_key(&self, number: usize) -> bool {
        matches!(self.marks.get(number), Some(Mark::Keyed(_)))
    }

    /// Copies of some of them, by their numbers.
    pub(super) fn select(&self, numbers: &[usize]) -> Self {
        let mut selected = Self::default();
        let mut numbers = numbers.iter().peekable();
        for (number, (command, mark)) in self.commands().enumerate() {
            if numbers.next_if(|next| **next == number).is_some() {
                selected.add(command, mark);
            }
        }
        selected
    }

    /// All of them, in their order, by the way they go. `journals` are those of the namespaces.
    pub(super) fn runs<'a>(&'a self, journals: &'a [Option<Journal>]) -> Vec<Run<'a>> {
        let has_keys = self.marks.iter().any(|mark| matches!(mark, Mark::Keyed(_)));
        if !has_keys && journals.iter().all(Option::is_none) {
            return vec![Run::Published(Cow::Borrowed(self))];
        }
        let mut runs: Vec<Run<'a>> = Vec::new();
        for (command, mark) in self.commands() {
            let journal = match mark {
                Mark::Plain => None,
                Mark::Journaled(namespace) => journals.get(*namespace).and_then(Option::as_ref),
                Mark::Keyed(keyed) => {
                    let words = command.map(<[u8]>::to_vec).collect();
                    let (namespace, keyed) = (keyed.namespace, (&**keyed, words));
                    match runs.last_mut() {
                        Some(Run::Keyed(of, run)) if *of == namespace => run.push(keyed),
                        _ => runs.push(Run::Keyed(namespace, vec![keyed])),
                    }
                    continue;
                }
            };
            let payload = command.clone().nth(2);
            match (runs.last_mut(), journal.zip(payload)) {
                (Some(Run::Appended(of, payloads)), Some((journal, payload)))
                    if std::ptr::eq(*of, journal) =>
                {
                    payloads.push(payload);
                }
                (_, Some((journal, payload))) => runs.push(Run::Appended(journal, vec![payload])),
                (Some(Run::Published(unsent)), None) => unsent.to_mut().add(command, mark),
                (_, None) => {
                    let mut unsent = Self::default();
                    unsent.add(command, mark);
                    runs.push(Run::Published(Cow::Owned(unsent)));
                }
            }
        }
        runs
    }

    /// The words of all commands, and their marks.
    pub(super) fn words(&self) -> impl Iterator<Item = (Vec<Vec<u8>>, &Mark)> {
        self.commands()
            .map(|(command, mark)| (command.map(<[u8]>::to_vec).collect(), mark))
    }

    fn commands(&self) -> impl Iterator<Item = (Words<'_>, &Mark)> {
        let commands = self.pieces.iter().flat_map(|piece| piece.iter());
        commands.zip(&self.marks)
    }

    /// Adds a copy of a command.
    fn add(&mut self, command: Words<'_>, mark: &Mark) {
        let words: Vec<_> = command.collect();
        let added = self.push(mark.clone(), usize::MAX, |commands| {
            commands.push(&words);
            Ok(())
        });
        added.expect("there is no limit");
    }

    /// Commands that `write` makes of the channel and the message of each.
    pub(super) fn map(
        &self,
        mut write: impl FnMut(&mut Commands, &str, &[u8]) -> Result<(), EmitError>,
    ) -> Result<Self, EmitError> {
        let mut made = Self::default();
        for (mut command, mark) in self.commands() {
            let channel = command
                .nth(1)
                .and_then(|channel| str::from_utf8(channel).ok());
            let (channel, message) = (channel.unwrap_or_default(), command.next());
            made.push(mark.clone(), usize::MAX, |commands| {
                write(commands, channel, message.unwrap_or_default())
            })?;
        }
        Ok(made)
    }

    /// The number of commands.
    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    /// Their size, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a command of more than 1,000 bytes.
    fn push(unsent: &mut Unsent, number: usize, limit: usize) -> Result<(), EmitError> {
        unsent.push(Mark::Plain, limit, |commands| {
            commands.push(&["PUBLISH", "room", &message(number)]);
            Ok(())
        })
    }

    fn message(number: usize) -> String {
        format!("{number:01000}")
    }

    #[test]
    fn pieces_keep_the_order_and_a_selection_has_what_was_selected() {
        let mut unsent = Unsent::default();
        for number in 0..100 {
            push(&mut unsent, number, usize::MAX).unwrap();
        }
        let messages = |unsent: &Unsent| {
            let messages = unsent.words().map(|(words, _)| words[2].clone());
            messages.collect::<Vec<_>>()
        };
        let expected = |numbers: &mut dyn Iterator<Item = usize>| {
            let messages = numbers.map(|number| message(number).into_bytes());
            messages.collect::<Vec<_>>()
        };
        assert_eq!(messages(&unsent), expected(&mut (0..100)));
        assert!(unsent.pieces().len() > 5);
        let selected = unsent.select(&[0, 17, 99]);
        assert_eq!(messages(&selected), expected(&mut [0, 17, 99].into_iter()));
    }

    #[test]
    fn a_command_beyond_the_limit_is_not_added() {
        let mut unsent = Unsent::default();
        push(&mut unsent, 1, 2_000).unwrap();
        let full = push(&mut unsent, 2, 2_000).unwrap_err();
        assert!(matches!(full, EmitError::BatchFull { limit: 2_000 }));
        assert_eq!((unsent.len(), unsent.words().count()), (1, 1));
        assert!((1_000..1_100).contains(&unsent.bytes()));
    }
}
