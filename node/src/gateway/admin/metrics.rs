//! The metrics of the admin page.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Why a request of a page was refused.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    Key,
    Attempts,
    Streams,
}

pub(super) struct Metrics {
    streams: IntGauge,
    refused: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            streams: IntGauge::new(
                "roomcast_admin_streams",
                "admin pages that are open on this node",
            )?,
            refused: IntCounterVec::new(
                Opts::new(
                    "roomcast_admin_refused_total",
                    "requests of admin pages that were refused, by reason",
                ),
                &["reason"],
            )?,
        };
        registry.register(Box::new(metrics.streams.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        Ok(metrics)
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Key => "wrong_key",
            Refusal::Attempts => "too_many_attempts",
            Refusal::Streams => "too_many_streams",
        };
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Counts a stream until the result is dropped.
    pub(super) fn opened(&self) -> Opened {
        self.streams.inc();
        Opened(self.streams.clone())
    }
}

/// A stream that is counted.
pub(super) struct Opened(IntGauge);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.dec();
    }
}
