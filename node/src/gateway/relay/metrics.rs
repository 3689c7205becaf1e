//! The metrics of the relay.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Metrics {
    sent: IntCounterVec,
    received: IntCounterVec,
    pub(super) open: IntGauge,
}

/// The outcome of a request for another node's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The owner has responded.
    Relayed,
    /// The owner cannot be reached, or its lease has ended.
    Gone,
    /// The owner did not respond in time.
    Timeout,
    /// The owner refuses this node's requests.
    Refused,
    /// The client did not send its body in time.
    Body,
    /// Too much is relayed already.
    Limit,
    /// This node is closing.
    Closing,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Gone => "gone",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Body => "body",
            Self::Limit => "limit",
            Self::Closing => "closing",
        }
    }
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let sent = Opts::new(
            "roomcast_relay_requests_total",
            "Requests of other nodes' sessions that clients have sent to this node",
        );
        let received = Opts::new(
            "roomcast_relay_received_total",
            "Requests of this node's sessions that other nodes have received",
        );
        let open = Opts::new(
            "roomcast_relay_open",
            "Requests and WebSockets that this node relays to other nodes now",
        );
        let metrics = Self {
            sent: IntCounterVec::new(sent, &["kind", "outcome"])?,
            received: IntCounterVec::new(received, &["outcome"])?,
            open: IntGauge::with_opts(open)?,
        };
        registry.register(Box::new(metrics.sent.clone()))?;
        registry.register(Box::new(metrics.received.clone()))?;
        registry.register(Box::new(metrics.open.clone()))?;
        Ok(metrics)
    }

    /// Counts a request of the kind `poll`, `post` or `upgrade`.
    pub(super) fn sent(&self, kind: &str, outcome: Outcome) {
        self.sent.with_label_values(&[kind, outcome.label()]).inc();
    }

    /// The count of accepted requests of other nodes.
    pub(super) fn accepted(&self) -> IntCounter {
        self.received.with_label_values(&["accepted"])
    }

    /// Counts a request of another node: `accepted`, or why it was refused.
    pub(super) fn received(&self, outcome: &str) {
        self.received.with_label_values(&[outcome]).inc();
    }
}
