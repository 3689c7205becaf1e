//! The one clock of a server. Protocol code receives times as arguments and never reads a clock.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the place that reads the clock"
)]

use std::time::SystemTime;

use tokio::time::Instant;

pub(crate) use roomcast_protocol::time::Time;

/// Milliseconds since 1970, for dates that are shown to people.
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Measures a duration, with a finer resolution than [`Time`].
#[derive(Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Runs on tokio's time, which tests can pause.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time::from_millis(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
