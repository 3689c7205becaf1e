//! When a failed emit is retried.
//!
//! | error | published | retried |
//! |---|---|---|
//! | `Unreachable`, `Overloaded` | certainly not | yes |
//! | `Unconfirmed` | possibly | with [`Retry::at_least_once`] or an idempotency key |
//! | all others | certainly not | no, because they would fail again |

use std::time::Duration;

use crate::{error::EmitError, redis::ConnectError};

/// Maximum pause between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// How often a failed emit is retried.
///
/// Only messages that were certainly not published are retried, so no client receives one twice. A
/// retried emit may be overtaken by another one that did not wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    tries: u32,
    backoff: Duration,
    may_duplicate: bool,
}

impl Default for Retry {
    /// Five tries, with pauses of 100, 200, 400 and 800 ms between them.
    fn default() -> Self {
        Self {
            tries: 5,
            backoff: Duration::from_millis(100),
            may_duplicate: false,
        }
    }
}

impl Retry {
    /// One try.
    pub fn never() -> Self {
        Self::default().tries(1)
    }

    /// Sets the total number of tries; zero counts as one. Default 5.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries.max(1);
        self
    }

    /// Sets the pause before the second try. It doubles with each further try, up to 5 s. Default
    /// 100 ms.
    #[must_use]
    pub fn backoff(mut self, backoff: Duration) -> Self {
        self.backoff = backoff;
        self
    }

    /// Also retries messages that may have been published: while Redis can be reached,
    /// each arrives at least once, and possibly twice.
    #[must_use]
    pub fn at_least_once(mut self) -> Self {
        self.may_duplicate = true;
        self
    }

    /// The pause before the next try, or `None` if there is no next try. `tried` counts
    /// the tries so far. With an idempotency key, a message that may have been published is tried
    /// again, too, because it is not published twice.
    pub(crate) fn pause(&self, tried: u32, error: &EmitError, has_key: bool) -> Option<Duration> {
        let is_unconfirmed = matches!(error, EmitError::Unconfirmed(_));
        let again = error.is_safe_to_retry() || is_unconfirmed && (self.may_duplicate || has_key);
        self.pause_if(again, tried)
    }

    /// The same for the first connection.
    pub(crate) fn pause_to_connect(&self, tried: u32, error: &ConnectError) -> Option<Duration> {
        self.pause_if(!error.is_permanent(), tried)
    }

    fn pause_if(&self, again: bool, tried: u32) -> Option<Duration> {
        if !again || tried >= self.tries {
            return None;
        }
        let factor = 1_u32.checked_shl(tried - 1).unwrap_or(u32::MAX);
        Some(self.backoff.saturating_mul(factor).min(MAX_BACKOFF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(retry: Retry, error: &EmitError) -> Vec<u64> {
        let pauses = (1..).map_while(|tried| retry.pause(tried, error, false));
        pauses.map(|pause| pause.as_millis() as u64).collect()
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let unreachable = EmitError::Unreachable("down".into());
        assert_eq!(pauses(Retry::default(), &unreachable), [100, 200, 400, 800]);
        let long = Retry::default().tries(40).backoff(Duration::from_secs(2));
        assert_eq!(pauses(long, &unreachable)[..3], [2_000, 4_000, 5_000]);
        assert_eq!(pauses(long, &unreachable).len(), 39);
        assert_eq!(pauses(Retry::never(), &unreachable), [0; 0]);
        assert_eq!(pauses(Retry::default().tries(0), &unreachable), [0; 0]);
    }

    #[test]
    fn only_what_surely_was_not_published_is_tried_again_unless_asked_for() {
        let unconfirmed = EmitError::Unconfirmed("timeout".into());
        assert_eq!(pauses(Retry::default(), &unconfirmed), [0; 0]);
        assert_eq!(
            pauses(Retry::default().at_least_once(), &unconfirmed).len(),
            4
        );
        let with_key = Retry::default().pause(1, &unconfirmed, true);
        assert_eq!(with_key, Some(Duration::from_millis(100)));
        let overloaded = EmitError::Overloaded { queued_bytes: 1 };
        assert_eq!(pauses(Retry::default(), &overloaded).len(), 4);
        for error in [
            EmitError::Refused("NOPERM".into()),
            EmitError::ReservedEvent("connect".into()),
        ] {
            assert_eq!(pauses(Retry::default().at_least_once(), &error), [0; 0]);
        }
    }
}
