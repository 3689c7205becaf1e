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
    let mut command = script.command(keys, args);
    let key = keys.first().copied().unwrap_or_default();
    let sent = outgoing.command(&command, Route::Key(key));
    let (outgoing, key) = (Arc::clone(outgoing), Box::<str>::from(key));
    async move {
        let mut replies = sent.await;
        if Script::is_forgotten(&replies) {
            script.spell_out(&mut command);
            replies = outgoing.command(&command, Route::Key(&key)).await;
        }
        replies?.pop().ok_or_else(unexpected)
    }
}
