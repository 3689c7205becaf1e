//! The clock of the tool: nanoseconds of the system's monotonic clock.
//!
//! All processes of one machine read the same clock, so one process may send a message and another
//! may time it.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// A point in time, in nanoseconds since an arbitrary origin before the machine started.
pub(crate) type Nanos = u64;

pub(crate) const SECOND: Nanos = 1_000_000_000;
pub(crate) const MILLISECOND: Nanos = 1_000_000;

pub(crate) fn now() -> Nanos {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// Milliseconds since 1970, for the head of a result. Latencies are never computed from it.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

pub(crate) fn span(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

/// When the message of this number is due that follows `start` at a rate per second.
pub(crate) fn due(start: Nanos, number: u64, rate: f64) -> Nanos {
    start + (number as f64 / rate * SECOND as f64) as Nanos
}

/// A random time between 0.5 and 1.5 of `span`.
pub(crate) fn around(span: Nanos, random: &mut fastrand::Rng) -> Nanos {
    span / 2 + random.u64(..=span)
}

/// The pause of the official client before it connects again: 1 s, doubled with each failure up to
/// 5 s, and half of it at random.
pub(crate) fn backoff(failures: u32, random: &mut fastrand::Rng) -> Nanos {
    around((SECOND << failures.min(3)).min(5 * SECOND), random)
}

fn nanos(time: Timespec) -> Nanos {
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

/// The most of these times, which ascend, that lie within one second.
pub(crate) fn peak(times: &[Nanos]) -> u64 {
    let mut first = 0;
    let mut most = 0;
    for (index, at) in times.iter().enumerate() {
        while at - times[first] >= SECOND {
            first += 1;
        }
        most = most.max(index - first + 1);
    }
    most as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_that_of_any_second() {
        assert_eq!(peak(&[]), 0);
        let times = [0, 9, 10, 12, 18, 20, 40].map(|tenths| tenths * SECOND / 10);
        // From 0.9 s to 1.8 s. A second that begins at 1.0 s ends before 2.0 s.
        assert_eq!(peak(&times), 4);
    }
}
