//! Scripts that Redis runs in one step.

use std::sync::Arc;

use redis::Value;
pub(super) use roomcast_emitter::log::{Script, unexpected};
use roomcast_emitter::redis::{PublishError, Route};

use super::outgoing::Outgoing;

/// Runs a script at the owner of the keys, which must be in one slot. The first attempt
/// is enqueued when this returns.
pub(super) fn run(
    script: &'static Script,
    outgoing: &Arc<Outgoing>,
    keys: &[&str],
    args: &[&[u8]],
) -> impl Future<Output = Result<Value, PublishError>> + Send + use<> {
    let key = keys.first().copied().unwrap_or_default();
    let command = script.command(keys, args);
    run_command(outgoing, key, command, |command| script.spell_out(command))
}

/// Runs a script by a command, which `spell_out` makes one by the script's text. The first
/// attempt is enqueued when this returns.
pub(super) fn run_command<F: FnOnce(&mut [Vec<u8>]) + Send>(
    outgoing: &Arc<Outgoing>,
    key: &str,
    mut command: Vec<Vec<u8>>,
    spell_out: F,
) -> impl Future<Output = Result<Value, PublishError>> + Send + use<F> {
    let sent = outgoing.command(&command, Route::Key(key));
    let (outgoing, key) = (Arc::clone(outgoing), Box::<str>::from(key));
    async move {
        let mut replies = sent.await;
        if Script::is_forgotten(&replies) {
            spell_out(&mut command);
            replies = outgoing.command(&command, Route::Key(&key)).await;
        }
        replies?.pop().ok_or_else(unexpected)
    }
}
