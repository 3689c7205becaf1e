//! Limits the rate of log lines that clients can cause, so that a client cannot fill the log.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;

/// Lines per second and kind of line.
const LINES_PER_SECOND: u64 = 10;

/// Bits of the count of lines in the packed state. The second is in the bits above.
const COUNT_BITS: u32 = 24;

/// The lines of one kind. The state is the current second and the lines in it, packed, because a
/// line must not take a lock.
pub(crate) struct LineLimit(AtomicU64);

impl LineLimit {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns the number of lines that were left out in the last second with lines, or `None` if
    /// this line must be left out.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(clock::unix_millis() / 1000)
    }

    fn pass_at(&self, second: u64) -> Option<u64> {
        let mut left_out = 0;
        let mut passes = false;
        let count = |state: u64| state & ((1 << COUNT_BITS) - 1);
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                let lines = count(state);
                if state >> COUNT_BITS == second {
                    left_out = 0;
                    passes = lines < LINES_PER_SECOND;
                    Some(state.saturating_add(u64::from(lines < (1 << COUNT_BITS) - 1)))
                } else {
                    left_out = lines.saturating_sub(LINES_PER_SECOND);
                    passes = true;
                    Some((second << COUNT_BITS) + 1)
                }
            });
        passes.then_some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_some_lines_and_their_number_appears_later() {
        let limit = LineLimit::new();
        let passed = (0..1000).filter(|_| limit.pass_at(7).is_some()).count();
        assert_eq!(passed as u64, LINES_PER_SECOND);
        assert_eq!(limit.pass_at(9), Some(990));
        assert_eq!(limit.pass_at(9), Some(0));
    }
}
