//! The figures of a node that the admin page shows, read from its registry of metrics.
//!
//! Counters are sent as they are: the page makes rates of two of them, so a lost status
//! costs nothing.
//!
//! They are read from the registry, and not from the server's counters, so that the
//! page and the dashboards of Prometheus always show the same.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricFamily, MetricType};
use roomcast::Registry;
use serde::Serialize;

/// Values by label of one figure. Beyond, they are left out.
/// A status has to fit into a message between nodes.
const MAX_PARTS: usize = 100;

/// The sums over all labels that the page shows: the name there, and the metric.
const FIGURES: &[(&str, &str)] = &[
    ("connections", "roomcast_connections"),
    ("connection_limit", "roomcast_connection_limit"),
    ("opened", "roomcast_connections_opened_total"),
    ("closed", "roomcast_connections_closed_total"),
    ("received", "roomcast_events_received_total"),
    ("sent", "roomcast_events_sent_total"),
    ("deliveries", "roomcast_deliveries_total"),
    ("bytes_received", "roomcast_received_bytes_total"),
    ("bytes_sent", "roomcast_sent_bytes_total"),
    ("outbox_bytes", "roomcast_outbox_bytes"),
    ("volatile_dropped", "roomcast_volatile_dropped_total"),
    ("panics", "roomcast_handler_panics_total"),
    ("gaps", "roomcast_bus_gaps_total"),
    ("gap_seconds", "roomcast_bus_gap_seconds_total"),
    ("hook_store_failures", "roomcast_hook_store_failures_total"),
    ("reconnects", "roomcast_bus_reconnects_total"),
    ("disagreeing", "roomcast_bus_disagreeing_nodes"),
    ("cpu", "process_cpu_seconds_total"),
    ("memory", "process_resident_memory_bytes"),
    ("files", "process_open_fds"),
    ("file_limit", "process_max_fds"),
    ("started", "process_start_time_seconds"),
];

/// The same by label. Several labels are joined by a space.
const BY_LABEL: &[(&str, &str)] = &[
    ("sockets", "roomcast_sockets"),
    ("rooms", "roomcast_rooms"),
    ("limits", "roomcast_limit_reached_total"),
    ("reasons", "roomcast_connections_closed_total"),
    ("http_refused", "roomcast_http_refused_total"),
    ("connect_refused", "roomcast_connect_refused_total"),
    ("handler_errors", "roomcast_handler_errors_total"),
    ("hooks", "roomcast_hook_requests_total"),
    ("hook_circuits", "roomcast_hook_circuit_open"),
    (
        "hook_disconnects_lost",
        "roomcast_hook_disconnects_lost_total",
    ),
    (
        "hook_disconnects_unstored",
        "roomcast_hook_disconnects_unstored_total",
    ),
    ("cluster", "roomcast_bus_nodes"),
];

/// The status that a node publishes about itself.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    pub(super) revision: &'static str,
    /// How the node speaks to the others; `None` without Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dialect: Option<String>,
    /// Milliseconds since 1970.
    pub(super) time: u64,
    /// Why a balancer should send no clients to the node, if there is a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) obstacle: Option<String>,
    figures: BTreeMap<&'static str, f64>,
    parts: BTreeMap<&'static str, BTreeMap<String, f64>>,
}

impl Status {
    pub(super) fn read(registry: &Registry) -> Self {
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION"),
            revision: super::super::vitals::REVISION,
            dialect: None,
            time: 0,
            obstacle: None,
            figures: BTreeMap::new(),
            parts: BTreeMap::new(),
        };
        for family in registry.gather() {
            status.add(&family);
        }
        status
    }

    fn add(&mut self, family: &MetricFamily) {
        let values = family.get_metric().iter();
        let values = values.map(|metric| (metric, value(family.get_field_type(), metric)));
        if let Some((name, _)) = FIGURES.iter().find(|(_, name)| *name == family.name()) {
            self.figures
                .insert(name, values.clone().map(|(_, value)| value).sum());
        }
        if let Some((name, _)) = BY_LABEL.iter().find(|(_, name)| *name == family.name()) {
            let parts = values.filter(|(_, value)| *value != 0.0);
            let parts = parts.map(|(metric, value)| (labels(metric), value));
            let parts: BTreeMap<_, _> = parts.take(MAX_PARTS).collect();
            if !parts.is_empty() {
                self.parts.insert(name, parts);
            }
        }
    }
}

fn value(kind: MetricType, metric: &Metric) -> f64 {
    match kind {
        MetricType::COUNTER => metric.get_counter().get_value(),
        _ => metric.get_gauge().get_value(),
    }
}

fn labels(metric: &Metric) -> String {
    let values = metric.get_label().iter().map(|label| label.value());
    values.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, IntGauge, Opts};

    use super::*;

    #[test]
    fn figures_are_sums_and_parts_are_by_label() {
        let registry = Registry::new();
        let limits = Opts::new("roomcast_limit_reached_total", "-");
        let limits = IntCounterVec::new(limits, &["limit"]).unwrap();
        let files = IntGauge::new("process_open_fds", "-").unwrap();
        registry.register(Box::new(limits.clone())).unwrap();
        registry.register(Box::new(files.clone())).unwrap();
        limits.with_label_values(&["rooms"]).inc_by(3);
        limits.with_label_values(&["inbox"]);
        files.set(7);
        let status = serde_json::to_value(Status::read(&registry)).unwrap();
        assert_eq!(status["figures"], serde_json::json!({ "files": 7.0 }));
        let parts = serde_json::json!({ "limits": { "rooms": 3.0 } });
        assert_eq!(status["parts"], parts, "what never happened is left out");
    }

    #[test]
    fn the_metrics_exist() {
        let documented = include_str!("../../../../docs/src/metrics.md");
        for (_, metric) in FIGURES.iter().chain(BY_LABEL) {
            assert!(documented.contains(&format!("| `{metric}` |")), "{metric}");
        }
    }

    #[test]
    fn labels_that_clients_choose_cannot_make_a_status_grow() {
        let registry = Registry::new();
        let errors = Opts::new("roomcast_handler_errors_total", "-");
        let errors = IntCounterVec::new(errors, &["event"]).unwrap();
        registry.register(Box::new(errors.clone())).unwrap();
        for event in 0..2 * MAX_PARTS {
            errors.with_label_values(&[event.to_string()]).inc();
        }
        let status = Status::read(&registry);
        assert_eq!(status.parts["handler_errors"].len(), MAX_PARTS);
    }
}
