//! Where messages come from that no client sends: our own connection to Redis, or an emitter that is
//! a program.

use crate::{clock::Nanos, program::Program, redis::Publisher};

pub(crate) enum External {
    /// In the classic format. What is sent at once is queued at once.
    Redis(Publisher),
    /// In whichever format it emits. What it does not take is not sent yet.
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

    /// There will be no more messages.
    pub(crate) fn close(&mut self) {
        if let Self::Program(program) = self {
            program.close();
        }
    }

    /// Whether it has something to do that does not wait for us.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Self::Redis(publisher) => publisher.is_busy(),
            Self::Program(program) => program.unsent_bytes() > 0 || program.is_ending(),
        }
    }

    /// Bytes that an emitter has not taken. Our own takes everything.
    pub(crate) fn unsent_bytes(&self) -> usize {
        match self {
            Self::Redis(_) => 0,
            Self::Program(program) => program.unsent_bytes(),
        }
    }

    /// Whether all that was sent has been emitted, and its end is the proof of it.
    pub(crate) fn has_emitted_all(&self) -> bool {
        match self {
            Self::Redis(publisher) => !publisher.is_busy(),
            Self::Program(program) => program.ended_at().is_some(),
        }
    }

    /// CPU time of an emitter so far, and when it ended.
    pub(crate) fn usage(&mut self) -> Option<(Nanos, Option<Nanos>)> {
        match self {
            Self::Redis(_) => None,
            Self::Program(program) => Some((program.cpu(), program.ended_at())),
        }
    }
}
