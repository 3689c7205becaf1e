//! The series of the hooks.
//!
//! They are made before the server, because hooks are parts of its namespaces, and
//! registered when it is built. The name of a hook is the only label that grows, with
//! the settings.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

/// Bounds of the response time, in seconds.
/// From a backend on the same host to one that reaches its timeout.
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
                "requests of hooks, by outcome",
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
                "disconnects and changes of rooms that were discarded",
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
