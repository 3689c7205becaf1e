//! The clocks that the gateway reads.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the place that reads the clocks"
)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The time by which timers run.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The host's time since 1970.
pub(crate) fn unix_time() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// The same in milliseconds.
pub(crate) fn unix_millis() -> u64 {
    millis(unix_time())
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
