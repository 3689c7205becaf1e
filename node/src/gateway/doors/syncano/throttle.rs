//! Counts requests per second and caller.
//!
//! A poll that is refused counts against the caller, because the JavaScript SDK repeats
//! it at once and for ever; the status 429 with `Retry-After` makes it pause.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::gateway::clock::now;

/// The most callers that are counted in a second. Further ones are throttled.
/// It bounds the table. Throttled clients retry after a second.
const MAX_CALLERS: usize = 10_000;

const SECOND: Duration = Duration::from_secs(1);

/// Limits the requests per second and caller.
pub(super) struct Throttle {
    /// Zero means no limit.
    limit: u32,
    current: Mutex<Current>,
}

/// The counts of the current second. The next one begins with an empty table, so that it does
/// not grow.
struct Current {
    since: Instant,
    counts: HashMap<String, u32>,
}

impl Throttle {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            current: Mutex::new(Current {
                since: now(),
                counts: HashMap::new(),
            }),
        }
    }

    /// Counts a request. Returns `false` if it is one too many.
    pub(super) fn allows(&self, caller: &str) -> bool {
        self.limit == 0 || self.allows_at(caller, now())
    }

    fn allows_at(&self, caller: &str, now: Instant) -> bool {
        let mut current = self.current.lock();
        if now.duration_since(current.since) >= SECOND {
            current.since = now;
            current.counts.clear();
        }
        if current.counts.len() >= MAX_CALLERS && !current.counts.contains_key(caller) {
            return false;
        }
        let count = current.counts.entry(caller.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_so_many_requests_per_second() {
        let throttle = Throttle::new(2);
        let start = now();
        let calls = |caller, time| [(); 3].map(|()| throttle.allows_at(caller, time));
        assert_eq!(calls("a", start), [true, true, false]);
        assert_eq!(calls("b", start), [true, true, false]);
        assert_eq!(calls("a", start + SECOND), [true, true, false]);
        assert_eq!(throttle.current.lock().counts.len(), 1);
    }

    #[test]
    fn the_table_does_not_grow_beyond_its_limit() {
        let throttle = Throttle::new(1);
        let start = now();
        for caller in 0..MAX_CALLERS {
            assert!(throttle.allows_at(&caller.to_string(), start));
        }
        assert!(!throttle.allows_at("one more", start));
        assert_eq!(throttle.current.lock().counts.len(), MAX_CALLERS);
        assert!(Throttle::new(0).allows("one more"));
    }
}
