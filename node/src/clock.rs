//! The one clock of a server. Protocol code receives times as arguments and never asks for them.

use std::time::Duration;

use tokio::time::Instant;

/// A point in time, in milliseconds since the clock was started. Eight bytes, as every connection
/// keeps some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(u64);

impl Time {
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    pub(crate) fn as_millis(self) -> u64 {
        self.0
    }

    pub(crate) fn from_millis(millis: u64) -> Self {
        Self(millis)
    }
}

/// Measures how long something takes, finer than [`Time`] tells.
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
        Time(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
