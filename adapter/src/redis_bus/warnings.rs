//! Warnings about a repeating cause: the first at once, then one every ten seconds with the number
//! of those between. A peer that floods the node with broken messages must not flood the log.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(10);

/// The warnings about one cause.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: Option<Instant>,
    suppressed: u64,
}

impl Warnings {
    /// Calls `log` with the number of suppressed warnings, unless there was one a moment ago.
    pub(super) fn warn(&self, log: impl FnOnce(u64)) {
        let due = self.0.lock().due(Instant::now());
        if let Some(suppressed) = due {
            log(suppressed);
        }
    }
}

impl State {
    fn due(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.suppressed += 1;
            return None;
        }
        self.next = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_warning_is_due_at_once_and_the_next_after_the_interval() {
        let (mut state, start) = (State::default(), Instant::now());
        assert_eq!(state.due(start), Some(0));
        assert_eq!(state.due(start), None);
        assert_eq!(state.due(start + INTERVAL - Duration::from_millis(1)), None);
        assert_eq!(state.due(start + INTERVAL), Some(2));
        assert_eq!(state.due(start + INTERVAL), None);
    }
}
