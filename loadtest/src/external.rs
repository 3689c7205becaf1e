//! Sources of messages that are not clients: our own publisher, or an emitter program.

use crate::{clock::Nanos, program::Program, redis::Publisher};

pub(crate) enum External {
    /// Publishes to Redis itself. Accepts everything at once.
    Redis(Publisher),
    /// A program, in its own format. Bytes that its pipe does not take count as not sent.
    Program(Program),
}

impl External {
    pub(crate) fn send(&mut self, namespace: &str, room: &str, payload: &[u8]) {
        match self {
            Self::Redis(publisher) => publisher.publish(namespace, room, payload),
            Self::Program(program) => program.emit(room, payload),
        }
    }

    pub(crate) fn pump(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Redis(publisher) => publisher.pump(),
            Self::Program(program) => program.pump(),
        }
    }

    /// Declares that no messages follow.
    pub(crate) fn close(&mut self) {
        if let Self::Program(program) = self {
            program.close();
        }
    }

    /// Whether it has work in progress.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Self::Redis(publisher) => publisher.is_busy(),
            Self::Program(program) => program.unsent_bytes() > 0 || program.is_ending(),
        }
    }

    /// Bytes that the program has not accepted; 0 for our own publisher.
    pub(crate) fn unsent_bytes(&self) -> usize {
        match self {
            Self::Redis(_) => 0,
            Self::Program(program) => program.unsent_bytes(),
        }
    }

    /// Whether everything has been emitted. A program proves it by exiting.
    pub(crate) fn has_emitted_all(&self) -> bool {
        match self {
            Self::Redis(publisher) => !publisher.is_busy(),
            Self::Program(program) => program.ended_at().is_some(),
        }
    }

    /// CPU time of the program so far, and the time of its exit.
    pub(crate) fn usage(&mut self) -> Option<(Nanos, Option<Nanos>)> {
        match self {
            Self::Redis(_) => None,
            Self::Program(program) => Some((program.cpu(), program.ended_at())),
        }
    }
}
