//! The content of a batch: commands in pieces that Redis reads at once.
//!
//! Each piece is a pipeline of the `redis` crate behind an `Arc`. The link sends it unchanged, and
//! the batch keeps it until all replies have arrived: if some of its messages were not published,
//! they are selected and sent again. So the common case, in which nothing fails, copies nothing.

use std::{borrow::Cow, sync::Arc};

use redis::{Arg, Cmd, Pipeline};

use super::journals::Journal;
use crate::{error::EmitError, log::Once};

/// Bytes after which a further command begins a new piece. Redis reads as much at a time.
const PIECE_BYTES: usize = 16 << 10;

/// Commands in their order.
#[derive(Clone, Default)]
pub(super) struct Unsent {
    pieces: Vec<Piece>,
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

/// Commands that are sent together. Kept until all have their replies, for a retry.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) commands: Arc<Pipeline>,
    pub(super) bytes: usize,
}

impl Unsent {
    /// Adds a command, unless all of them would take more bytes than the limit.
    pub(super) fn push(&mut self, command: Cmd, mark: Mark, limit: usize) -> Result<(), EmitError> {
        let bytes = crate::redis::bytes_of(&command);
        if bytes > limit.saturating_sub(self.bytes) {
            return Err(EmitError::BatchFull { limit });
        }
        self.bytes += bytes;
        self.marks.push(mark);
        if let Some(piece) = self.pieces.last_mut()
            && piece.bytes < PIECE_BYTES
            && let Some(commands) = Arc::get_mut(&mut piece.commands)
        {
            commands.add_command(command);
            piece.bytes += bytes;
            return Ok(());
        }
        let mut commands = Pipeline::new();
        commands.add_command(command);
        self.pieces.push(Piece {
            commands: Arc::new(commands),
            bytes,
        });
        Ok(())
    }

    pub(super) fn pieces(&self) -> &[Piece] {
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
                    let (namespace, keyed) = (keyed.namespace, (&**keyed, words(command)));
                    match runs.last_mut() {
                        Some(Run::Keyed(of, run)) if *of == namespace => run.push(keyed),
                        _ => runs.push(Run::Keyed(namespace, vec![keyed])),
                    }
                    continue;
                }
            };
            let payload = match command.args_iter().nth(2) {
                Some(Arg::Simple(payload)) => Some(payload),
                _ => None,
            };
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
            .map(|(command, mark)| (words(command), mark))
    }

    fn commands(&self) -> impl Iterator<Item = (&Cmd, &Mark)> {
        let commands = self.pieces.iter();
        let commands = commands.flat_map(|piece| piece.commands.cmd_iter());
        commands.zip(&self.marks)
    }

    /// Adds a copy of a command.
    fn add(&mut self, command: &Cmd, mark: &Mark) {
        let added = self.push(command.clone(), mark.clone(), usize::MAX);
        added.expect("there is no limit");
    }

    /// Commands made of the channel and the message of each. `None` if one cannot be made.
    pub(super) fn map(&self, mut make: impl FnMut(&str, &[u8]) -> Option<Cmd>) -> Option<Self> {
        let mut made = Self::default();
        for (command, mark) in self.commands() {
            let mut words = command.args_iter().skip(1).map(|word| match word {
                Arg::Simple(word) => word,
                _ => &[],
            });
            let (channel, message) = (words.next()?, words.next()?);
            made.add(&make(str::from_utf8(channel).ok()?, message)?, mark);
        }
        Some(made)
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

fn words(command: &Cmd) -> Vec<Vec<u8>> {
    let words = command.args_iter().map(|arg| match arg {
        Arg::Simple(word) => word.to_vec(),
        _ => Vec::new(),
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(number: usize) -> Cmd {
        let mut command = redis::cmd("PUBLISH");
        command.arg("room").arg(number.to_string().repeat(1_000));
        command
    }

    #[test]
    fn pieces_keep_the_order_and_a_selection_has_what_was_selected() {
        let mut unsent = Unsent::default();
        for number in 0..100 {
            unsent
                .push(command(number), Mark::Plain, usize::MAX)
                .unwrap();
        }
        let words = |unsent: &Unsent| {
            let pieces = unsent.pieces().iter();
            let commands = pieces.flat_map(|piece| piece.commands.cmd_iter());
            commands.map(Cmd::get_packed_command).collect::<Vec<_>>()
        };
        let expected: Vec<_> = (0..100).map(|n| command(n).get_packed_command()).collect();
        assert_eq!(words(&unsent), expected);
        assert!(unsent.pieces().len() > 5);
        let selected = unsent.select(&[0, 17, 99]);
        let expected = [0, 17, 99].map(|number| expected[number].clone());
        assert_eq!((selected.len(), words(&selected)), (3, expected.into()));
    }

    #[test]
    fn a_command_beyond_the_limit_is_not_added() {
        let mut unsent = Unsent::default();
        unsent.push(command(1), Mark::Plain, 2_000).unwrap();
        let full = unsent.push(command(2), Mark::Plain, 2_000).unwrap_err();
        assert!(matches!(full, EmitError::BatchFull { limit: 2_000 }));
        assert_eq!(unsent.len(), 1);
        assert!((1_000..1_100).contains(&unsent.bytes()));
    }
}
