//! The metrics of presence.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// By namespace. Cheap to clone.
#[derive(Clone)]
pub(super) struct Metrics {
    sockets: IntGaugeVec,
    fulls: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let sockets = Opts::new(
            "roomcast_presence_sockets",
            "Sockets of users in the whole cluster that this node keeps",
        );
        let fulls = Opts::new(
            "roomcast_presence_full_states_total",
            "Full states that this node has published because another one needed it",
        );
        let metrics = Self {
            sockets: IntGaugeVec::new(sockets, &["namespace"])?,
            fulls: IntCounterVec::new(fulls, &["namespace"])?,
        };
        registry.register(Box::new(metrics.sockets.clone()))?;
        registry.register(Box::new(metrics.fulls.clone()))?;
        Ok(metrics)
    }

    pub(super) fn set(&self, namespace: &str, (sockets, fulls): (usize, u64)) {
        let sockets = i64::try_from(sockets).unwrap_or(i64::MAX);
        self.sockets.with_label_values(&[namespace]).set(sockets);
        let counter = self.fulls.with_label_values(&[namespace]);
        counter.inc_by(fulls.saturating_sub(counter.get()));
    }
}
