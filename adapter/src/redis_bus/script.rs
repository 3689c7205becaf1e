//! Scripts that Redis runs in one step.

use std::sync::Arc;

use redis::Value;
use roomcast_emitter::redis::{PublishError, Route};

use super::outgoing::Outgoing;

/// A script, which Redis knows by the digest of its text once it has run.
pub(super) struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    pub(super) fn new(text: &'static str) -> Self {
        let sha = redis::Script::new(text).get_hash().to_owned();
        Self { text, sha }
    }

    /// Runs the script at the owner of the keys, which must be in one slot. The first attempt is
    /// enqueued when this returns. If Redis has forgotten the script, nothing was executed, so it is
    /// sent once more with its text.
    pub(super) fn run(
        &'static self,
        outgoing: &Arc<Outgoing>,
        keys: &[&str],
        args: &[&[u8]],
    ) -> impl Future<Output = Result<Value, PublishError>> + Send + use<> {
        let mut command = vec![
            b"EVALSHA".to_vec(),
            self.sha.as_bytes().to_vec(),
            keys.len().to_string().into_bytes(),
        ];
        command.extend(keys.iter().map(|key| key.as_bytes().to_vec()));
        command.extend(args.iter().map(|arg| arg.to_vec()));
        let key = Box::<str>::from(keys.first().copied().unwrap_or_default());
        let sent = outgoing.command(&command, Route::Key(&key));
        let outgoing = Arc::clone(outgoing);
        async move {
            let mut replies = match sent.await {
                Err(PublishError::Refused(reason)) if reason.starts_with("NOSCRIPT") => {
                    command[0] = b"EVAL".to_vec();
                    command[1] = self.text.into();
                    outgoing.command(&command, Route::Key(&key)).await?
                }
                replies => replies?,
            };
            replies.pop().ok_or_else(unexpected)
        }
    }
}

/// Redis has executed a command and returned something else than was expected.
pub(super) fn unexpected() -> PublishError {
    PublishError::Unconfirmed("an unexpected reply".into())
}
