//! Warnings about a repeating cause: the first at once, then one in each interval with the number of
//! those between. A peer that floods the node with broken messages must not flood the log.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The interval, unless a cause has another.
const INTERVAL: Duration = Duration::from_secs(10);

/// The warnings about one cause.
#[derive(Debug)]
pub(super) struct Warnings {
    interval: Duration,
    state: Mutex<State>,
}

impl Default for Warnings {
    fn default() -> Self {
        Self::every(INTERVAL)
    }
}

#[derive(Debug, Default)]
struct State {
    next: Option<Instant>,
    suppressed: u64,
}

impl Warnings {
    pub(super) fn every(interval: Duration) -> Self {
        Self {
            interval,
            state: Mutex::default(),
        }
    }

    /// Calls `log` with the number of suppressed warnings, unless there was one a moment ago.
    pub(super) fn warn(&self, log: impl FnOnce(u64)) {
        let due = self.state.lock().due(Instant::now(), self.interval);
        if let Some(suppressed) = due {
            log(suppressed);
        }
    }
}

impl State {
    fn due(&mut self, now: Instant, interval: Duration) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.suppressed += 1;
            return None;
        }
        self.next = Some(now + interval);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_warning_is_due_at_once_and_the_next_after_the_interval() {
        let (mut state, start) = (State::default(), Instant::now());
        let mut due = |after| state.due(start + after, INTERVAL);
        assert_eq!(due(Duration::ZERO), Some(0));
        assert_eq!(due(Duration::ZERO), None);
        assert_eq!(due(INTERVAL - Duration::from_millis(1)), None);
        assert_eq!(due(INTERVAL), Some(2));
        assert_eq!(due(INTERVAL), None);
    }
}
