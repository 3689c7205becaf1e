//! The series of the hooks, and log lines that cannot flood the log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};
use tokio::time::sleep;

/// Bounds of the response time, in seconds.
const BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The series of all hooks, by the name of the hook.
#[derive(Clone)]
pub(super) struct Metrics {
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) queued: IntGaugeVec,
    pub(super) batch_waiting: IntGaugeVec,
    pub(super) batch_events: IntCounterVec,
    pub(super) circuit_open: IntGaugeVec,
    pub(super) disconnects_pending: IntGaugeVec,
    pub(super) disconnects_lost: IntCounterVec,
    pub(super) stored: IntGauge,
    pub(super) unstored: IntCounterVec,
    pub(super) adopted: IntCounterVec,
    pub(super) store_failures: IntCounter,
}

impl Metrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
        };
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["hook"]);
        let duration = HistogramOpts::new(
            "roomcast_hook_duration_seconds",
            "time from a request to the end of its response, without the wait before it",
        );
        Ok(Self {
            requests: counter(
                "roomcast_hook_requests_total",
                "requests of hooks, by what became of them",
                &["hook", "outcome"],
            )?,
            duration: HistogramVec::new(duration.buckets(BUCKETS.to_vec()), &["hook"])?,
            in_flight: gauge(
                "roomcast_hook_requests_in_flight",
                "requests without a response",
            )?,
            queued: gauge(
                "roomcast_hook_requests_queued",
                "requests that wait until another is done",
            )?,
            batch_waiting: gauge(
                "roomcast_hook_batch_events_waiting",
                "events that wait for a batch",
            )?,
            batch_events: counter(
                "roomcast_hook_batch_events_total",
                "events that were sent in batches",
                &["hook"],
            )?,
            circuit_open: gauge(
                "roomcast_hook_circuit_open",
                "1 from many failures in a row until a request succeeds",
            )?,
            disconnects_pending: gauge(
                "roomcast_hook_disconnects_pending",
                "disconnects and changes of rooms that the backend has not confirmed",
            )?,
            disconnects_lost: counter(
                "roomcast_hook_disconnects_lost_total",
                "disconnects and changes of rooms that were given up",
                &["hook"],
            )?,
            stored: IntGauge::new(
                "roomcast_hook_disconnects_stored",
                "sockets, disconnects and changes of rooms that Redis keeps for this node",
            )?,
            unstored: counter(
                "roomcast_hook_disconnects_unstored_total",
                "disconnects that are not kept in Redis, by reason",
                &["reason"],
            )?,
            adopted: counter(
                "roomcast_hook_disconnects_adopted_total",
                "disconnects of dead nodes that this node delivers",
                &["hook"],
            )?,
            store_failures: IntCounter::new(
                "roomcast_hook_store_failures_total",
                "attempts to keep disconnects in Redis that failed",
            )?,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let all: [Box<dyn Collector>; 13] = [
            Box::new(self.requests.clone()),
            Box::new(self.duration.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.queued.clone()),
            Box::new(self.batch_waiting.clone()),
            Box::new(self.batch_events.clone()),
            Box::new(self.circuit_open.clone()),
            Box::new(self.disconnects_pending.clone()),
            Box::new(self.disconnects_lost.clone()),
            Box::new(self.stored.clone()),
            Box::new(self.unstored.clone()),
            Box::new(self.adopted.clone()),
            Box::new(self.store_failures.clone()),
        ];
        all.into_iter().try_for_each(|one| registry.register(one))
    }
}

/// Lets one log line per second pass and counts those that it leaves out.
#[derive(Clone, Default)]
pub(super) struct LineLimit(Arc<Lines>);

#[derive(Default)]
struct Lines {
    is_quiet: AtomicBool,
    left_out: AtomicU64,
}

impl LineLimit {
    /// Returns how many lines were left out since the last one, or `None` if this one is, too.
    pub(super) fn pass(&self) -> Option<u64> {
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
