//! How long to wait before the next attempt: longer each time, and spread, so that the nodes of a
//! cluster do not come back to a server all at once.

use std::time::Duration;

use crate::entropy;

/// The delays between attempts. Each is drawn from the upper half of a span that doubles.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    span: Duration,
}

impl Backoff {
    /// Delays of up to `min` at first, and never more than `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max: max.max(min),
            span: min,
        }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let span = self.span;
        self.span = (span * 2).min(self.max);
        span.mul_f64(0.5 + entropy::fraction() / 2.0)
    }

    /// An attempt was a success: the next delay is a short one again.
    pub fn reset(&mut self) {
        self.span = self.min;
    }
}

impl Default for Backoff {
    /// From 50 ms to 2 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_most_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for span in [100, 200, 350, 350] {
            let delay = backoff.next_delay().as_millis();
            assert!((span / 2..=span).contains(&delay), "{delay} of {span}");
        }
        backoff.reset();
        assert!(backoff.next_delay().as_millis() <= 100);
    }
}
