//! Limits the rate of log lines that clients or other machines cause.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

/// Lets one log line per second pass and counts those that it leaves out.
#[derive(Clone, Default)]
pub(crate) struct LineLimit(Arc<Lines>);

#[derive(Default)]
struct Lines {
    is_quiet: AtomicBool,
    left_out: AtomicU64,
}

impl LineLimit {
    /// Returns how many lines were left out since the last one, or `None` if this one is, too.
    pub(crate) fn pass(&self) -> Option<u64> {
        if self.0.is_quiet.swap(true, Ordering::Relaxed) {
            self.0.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let lines = Arc::clone(&self.0);
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            lines.is_quiet.store(false, Ordering::Relaxed);
        });
        Some(self.0.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_limited_and_those_left_out_are_counted() {
        let limit = LineLimit::default();
        assert_eq!(limit.pass(), Some(0));
        let mut tried = 0;
        let left_out = loop {
            match limit.pass() {
                Some(left_out) => break left_out,
                None => tried += 1,
            }
            sleep(Duration::from_millis(20)).await;
        };
        assert!(tried > 0);
        assert_eq!(left_out, tried);
    }
}
