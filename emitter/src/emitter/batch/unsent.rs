//! What a batch holds: commands, and behind them broadcasts that are not encoded yet.
//!
//! Redis works longer on a message than it takes to encode one. So of a large batch only the
//! beginning is encoded when it is filled, and the rest while it is being sent, when Redis has
//! something to do already. What could fail is encoded at once, behind all that came before it, and
//! its error is the answer to whoever adds it.

use super::{
    super::{
        core::{Core, check_namespace},
        error::EmitError,
    },
    kept::Kept,
};
use crate::{args::Args, link::Commands, message::Message, target::Target};

/// So much is encoded at once, in bytes: Redis has nothing to do before all of it is written.
const FIRST_BYTES: usize = 16 << 10;

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
        let is_beginning = self.commands.bytes() < FIRST_BYTES && self.kept.len() == 0;
        if is_beginning || !Kept::takes(broadcast.2) {
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
