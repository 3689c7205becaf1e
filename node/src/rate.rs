//! Rates: how much may come in a second, and a bucket that measures it.
//!
//! A bucket is one number, the time until which past events have used up the rate (GCRA, the
//! virtual scheduling of ATM). It lies in the past while the client is slow. It may be ahead of the
//! clock by as long as the rate takes for its burst:
//!
//! ```text
//!  clock ───────●─────────────────────────────────────▶
//!               ├──── burst ÷ per second ────┤
//!                     ▲ used up until here: what comes passes, and moves it to the right
//!                                            ▲ here: what comes is too much
//! ```
//!
//! So a bucket needs no timer, and does not change without events.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Time;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// The allowed amount per second, and the allowed burst. Both are at least 1.
///
/// ```
/// # use roomcast::{Limits, Rate, Server};
/// // On average 20 events per second, and 100 at once after a pause.
/// let limits = Limits { event_rate: Some(Rate::per_second(20).burst(100)), ..Limits::default() };
/// let builder = Server::builder().limits(limits);
/// # drop(builder);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The amount per second, on average.
    pub per_second: u32,
    /// The amount that may come at once after a pause.
    pub burst: u32,
}

impl Rate {
    /// A rate whose burst is the amount of one second.
    pub const fn per_second(amount: u32) -> Self {
        Self {
            per_second: amount,
            burst: amount,
        }
    }

    /// The same rate with another burst.
    #[must_use]
    pub const fn burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }

    /// The time that the rate takes for an amount, in nanoseconds.
    fn nanos(self, amount: u64) -> u64 {
        amount.saturating_mul(NANOS_PER_SECOND) / u64::from(self.per_second.max(1))
    }

    /// Returns the level of the bucket after `amount` has been taken, or `None` if less
    /// than 1 is left. An amount that arrives while 1 is left passes, even if it is
    /// larger, so that the burst need not be as large as the largest message.
    fn after(self, used_until: u64, now: u64, amount: u64) -> Option<u64> {
        let used_until = used_until.max(now);
        let has_left =
            (used_until - now).saturating_add(self.nanos(1)) <= self.nanos(self.burst.into());
        has_left.then(|| used_until.saturating_add(self.nanos(amount)))
    }
}

/// The bucket of one client. Its rate is given with each use, because all clients share it.
#[derive(Debug, Default)]
pub(crate) struct Bucket(u64);

impl Bucket {
    /// Takes an amount. Returns `false` if it is too much, and takes nothing.
    pub(crate) fn take(&mut self, rate: Rate, now: Time, amount: u64) -> bool {
        let after = rate.after(self.0, nanos(now), amount);
        self.0 = after.unwrap_or(self.0);
        after.is_some()
    }
}

/// A bucket that several threads use.
#[derive(Debug, Default)]
pub(crate) struct SharedBucket(AtomicU64);

impl SharedBucket {
    /// Takes 1. Returns `false` if that is too much.
    pub(crate) fn take(&self, rate: Rate, now: Time) -> bool {
        let order = Ordering::Relaxed;
        let after = |used_until| rate.after(used_until, nanos(now), 1);
        self.0.fetch_update(order, order, after).is_ok()
    }

    /// Takes 1 even if it is too much. Returns the seconds until the rate has caught up,
    /// at least 1.
    pub(crate) fn queue(&self, rate: Rate, now: Time) -> u64 {
        let (order, now) = (Ordering::Relaxed, nanos(now));
        let after = |used_until: u64| used_until.max(now).saturating_add(rate.nanos(1));
        let before = self.0.fetch_update(order, order, |used| Some(after(used)));
        let waits = after(before.unwrap_or(now)) - now;
        waits.div_ceil(NANOS_PER_SECOND)
    }
}

/// A rate that can be replaced while it is used; zero for none. It is packed, because it
/// is read with each event.
#[derive(Debug)]
pub(crate) struct SharedRate(AtomicU64);

impl SharedRate {
    pub(crate) fn new(rate: Option<Rate>) -> Self {
        Self(AtomicU64::new(pack(rate)))
    }

    pub(crate) fn set(&self, rate: Option<Rate>) {
        self.0.store(pack(rate), Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn get(&self) -> Option<Rate> {
        let packed = self.0.load(Ordering::Relaxed);
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        (packed != 0).then(|| Rate {
            per_second: half(packed >> 32),
            burst: half(packed),
        })
    }
}

fn pack(rate: Option<Rate>) -> u64 {
    rate.map_or(0, |rate| {
        u64::from(rate.per_second) << 32 | u64::from(rate.burst)
    })
}

fn nanos(time: Time) -> u64 {
    time.as_millis().saturating_mul(NANOS_PER_MILLI)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate::per_second(10).burst(3);
        let mut bucket = Bucket::default();
        let passed = |bucket: &mut Bucket, millis| {
            (0..20).filter(|_| bucket.take(rate, at(millis), 1)).count()
        };
        assert_eq!(passed(&mut bucket, 5_000), 3);
        assert_eq!(passed(&mut bucket, 5_099), 0);
        assert_eq!(passed(&mut bucket, 5_100), 1);
        assert_eq!(passed(&mut bucket, 5_300), 2);
        assert_eq!(
            passed(&mut bucket, 60_000),
            3,
            "a pause saves no more than the burst"
        );
    }

    #[test]
    fn over_a_long_time_the_average_is_the_rate() {
        let rate = Rate::per_second(7);
        let mut bucket = Bucket::default();
        let passed = (0..100_000).filter(|millis| bucket.take(rate, at(*millis), 1));
        let passed = passed.count();
        assert!((706..=708).contains(&passed), "{passed}");
    }

    #[test]
    fn a_message_larger_than_the_burst_passes_and_is_paid_for() {
        let rate = Rate::per_second(1_000).burst(100);
        let mut bucket = Bucket::default();
        assert!(bucket.take(rate, at(0), 5_000));
        assert!(!bucket.take(rate, at(4_900), 1));
        assert!(bucket.take(rate, at(4_901), 1));
    }

    #[test]
    fn the_largest_rates_do_not_overflow() {
        let rate = Rate::per_second(u32::MAX);
        let mut bucket = Bucket::default();
        assert!(bucket.take(rate, at(u64::MAX / NANOS_PER_MILLI), u64::MAX));
        let slow = Rate::per_second(1).burst(u32::MAX);
        assert!(bucket.take(slow, at(u64::MAX), u64::MAX));
        let shared = SharedRate::new(Some(slow));
        assert_eq!(shared.get(), Some(slow));
        shared.set(None);
        assert_eq!(shared.get(), None);
    }

    #[test]
    fn those_who_queue_wait_for_as_long_as_the_rate_takes_for_all() {
        let (rate, bucket) = (Rate::per_second(10), SharedBucket::default());
        let waits: Vec<_> = (0..25).map(|_| bucket.queue(rate, at(1_000))).collect();
        assert_eq!((waits[0], waits[9], waits[10], waits[24]), (1, 1, 2, 3));
        assert_eq!(bucket.queue(rate, at(60_000)), 1);
    }
}
