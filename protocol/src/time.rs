//! Points in time. Nothing in this crate reads a clock: times come in as arguments.

use std::time::Duration;

/// A point in time, in milliseconds since an arbitrary start. It has eight bytes, because every
/// connection keeps several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// The point `duration` later, rounded down to milliseconds. It saturates at the maximum.
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds since the start.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// The point `millis` milliseconds after the start.
    pub fn from_millis(millis: u64) -> Self {
        Self(millis)
    }
}
