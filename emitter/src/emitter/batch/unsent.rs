//! What a batch holds: commands, and behind them broadcasts that are not encoded yet.
//!
//! Redis works longer on a message than it takes to encode one. So of a batch of hundreds only the
//! beginning is encoded when it is filled, and the rest while it is being sent, when Redis has
//! something to do already. What could fail is encoded at once, behind all that came before it, and
//! its error is the answer to whoever adds it.

use std::ops::Range;

use super::{
    super::{
        core::{Core, check_namespace},
        error::EmitError,
    },
    kept::Kept,
};
use crate::link::Commands;
use roomcast_protocol::{args::Args, message::Message, target::Target};

/// What is kept lies between these, in bytes from the beginning of the batch. Redis has nothing to do
/// before the first piece is written, so that is encoded at once. A batch of thousands is sent for
/// so long that the wait before does not count, and to keep all of it costs more than it saves.
const KEPT_BYTES: Range<usize> = 16 << 10..256 << 10;

/// Messages in their order.
#[derive(Default)]
pub(in crate::emitter) struct Unsent {
    commands: Commands,
    kept: Kept,
    /// What all of them take, roughly.
    bytes: usize,
}

impl Unsent {
    /// Adds a broadcast, unless all of them take more bytes than the limit then.
    pub(super) fn push_broadcast(
        &mut self,
        core: &Core,
        namespace: &str,
        broadcast: (&Target, &str, &Args),
        limit: usize,
    ) -> Result<(), EmitError> {
        let is_kept = KEPT_BYTES.contains(&self.bytes) && Kept::takes(broadcast.2);
        if !is_kept {
            return self.push_encoded(core, limit, |commands| {
                core.append_broadcast(commands, namespace, broadcast)
            });
        }
        check_namespace(namespace)?;
        self.admit(Kept::bytes_of(namespace, broadcast), limit)?;
        self.kept.push(namespace, broadcast);
        Ok(())
    }

    /// The same for any other message.
    pub(super) fn push(
        &mut self,
        core: &Core,
        namespace: &str,
        message: &Message,
        limit: usize,
    ) -> Result<(), EmitError> {
        self.push_encoded(core, limit, |commands| {
            core.append(commands, namespace, message)
        })
    }

    fn push_encoded(
        &mut self,
        core: &Core,
        limit: usize,
        append: impl FnOnce(&mut Commands) -> Result<(), EmitError>,
    ) -> Result<(), EmitError> {
        self.encode_all(core);
        let before = self.commands.bytes();
        append(&mut self.commands)?;
        let admitted = self.admit(self.commands.bytes() - before, limit);
        if admitted.is_err() {
            self.commands.pop();
        }
        admitted
    }

    fn admit(&mut self, bytes: usize, limit: usize) -> Result<(), EmitError> {
        if bytes > limit.saturating_sub(self.bytes) {
            return Err(EmitError::BatchFull { limit });
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Encodes the next broadcast behind the commands. False if there is none.
    pub(in crate::emitter) fn encode_next(&mut self, core: &Core) -> bool {
        let commands = &mut self.commands;
        self.kept.take(|namespace, broadcast| {
            core.append_broadcast(commands, namespace, broadcast)
                .expect("what is kept can be encoded");
        })
    }

    /// Encodes all of them.
    pub(in crate::emitter) fn encode_all(&mut self, core: &Core) {
        while self.kept.len() > 0 {
            self.encode_next(core);
        }
    }

    /// What is encoded.
    pub(in crate::emitter) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// How many messages there are, encoded or not.
    pub(in crate::emitter) fn len(&self) -> usize {
        self.commands.len() + self.kept.len()
    }

    /// What they take, in bytes, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Commands of which all are encoded.
impl From<Commands> for Unsent {
    fn from(commands: Commands) -> Self {
        Self {
            bytes: commands.bytes(),
            commands,
            kept: Kept::default(),
        }
    }
}
