//! What a server counts. Every server has a registry of its own; nothing here is global, and no
//! scrape causes work beyond reading these numbers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::close::{CloseReason, Limit};

/// The most namespaces that have a label of their own at a time; any further one is counted under
/// `other`, so that dynamic namespaces cannot grow the number of time series.
const NAMESPACE_LABELS: usize = 64;
const OTHER: &str = "other";

/// From a broadcast to nobody to one that takes a second.
const FAN_OUT_BUCKETS: [f64; 11] = [
    1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1e-3, 4e-3, 16e-3, 64e-3, 256e-3, 1.0,
];

/// The series of one transport.
pub(crate) struct OfTransport {
    pub(crate) connections: IntGauge,
    pub(crate) opened_v3: IntCounter,
    pub(crate) opened_v4: IntCounter,
}

pub(crate) struct Metrics {
    registry: Registry,
    /// By transport. Each connection counts here several times, so the series are looked up once.
    pub(crate) polling: OfTransport,
    pub(crate) websocket: OfTransport,
    closed: IntCounterVec,
    pub(crate) upgrades: IntCounter,
    pub(crate) refused_handshakes: IntCounterVec,
    invalid_input: IntCounterVec,
    limits: Vec<IntCounter>,
    pub(crate) bytes_received: IntCounter,
    pub(crate) bytes_sent: IntCounter,
    pub(crate) events_received: IntCounter,
    pub(crate) events_unhandled: IntCounter,
    pub(crate) events_undecodable: IntCounter,
    pub(crate) handler_panics: IntCounter,
    pub(crate) broadcasts: IntCounter,
    pub(crate) deliveries: IntCounter,
    pub(crate) fan_out: Histogram,
    pub(crate) events_sent: IntCounter,
    pub(crate) outbox_bytes: IntGauge,
    pub(crate) volatile_dropped: IntCounter,
    pub(crate) connect_refused: IntCounterVec,
    pub(crate) namespaces: IntGauge,
    by_namespace: ByNamespace,
}

/// What has rooms to be counted: a namespace.
pub(crate) trait HasRooms: Send + Sync {
    fn room_count(&self) -> usize;
}

/// The series by namespace. Rooms are counted when somebody reads them, so that they cost nothing
/// when they come and go.
#[derive(Clone)]
struct ByNamespace {
    sockets: IntGaugeVec,
    rooms: IntGaugeVec,
    labels: Arc<Mutex<Labels>>,
}

type Namespaces = Vec<Arc<dyn HasRooms>>;

/// Whom a label stands for; it goes with the last of them.
type Labels = HashMap<Box<str>, Vec<Weak<dyn HasRooms>>>;

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("metric names are valid");
            registry
                .register(Box::new(counter.clone()))
                .expect("metric names are unique");
            counter
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters =
                IntCounterVec::new(Opts::new(name, help), labels).expect("metric names are valid");
            registry
                .register(Box::new(counters.clone()))
                .expect("metric names are unique");
            counters
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let gauges =
                IntGaugeVec::new(Opts::new(name, help), &[label]).expect("metric names are valid");
            registry
                .register(Box::new(gauges.clone()))
                .expect("metric names are unique");
            gauges
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("metric names are valid");
            registry
                .register(Box::new(gauge.clone()))
                .expect("metric names are unique");
            gauge
        };
        let namespaces = gauge("roomcast_namespaces", "Namespaces that exist now.");
        let fan_out = HistogramOpts::new(
            "roomcast_fan_out_seconds",
            "Time to queue a broadcast to the sockets of this node.",
        );
        let fan_out = Histogram::with_opts(fan_out.buckets(FAN_OUT_BUCKETS.to_vec()))
            .expect("metric names are valid");
        registry
            .register(Box::new(fan_out.clone()))
            .expect("metric names are unique");
        let connections = gauges(
            "roomcast_connections",
            "Open connections, by current transport.",
            "transport",
        );
        let opened = counters(
            "roomcast_connections_opened_total",
            "Connections opened, by first transport and Engine.IO revision.",
            &["transport", "revision"],
        );
        let of_transport = |transport: &str| OfTransport {
            connections: connections.with_label_values(&[transport]),
            opened_v3: opened.with_label_values(&[transport, "3"]),
            opened_v4: opened.with_label_values(&[transport, "4"]),
        };
        let limits = counters(
            "roomcast_limit_reached_total",
            "Times that a client or the application reached a limit, by limit.",
            &["limit"],
        );
        let gauges = |name: &str, help: &str| {
            IntGaugeVec::new(Opts::new(name, help), &["namespace"]).expect("metric names are valid")
        };
        let by_namespace = ByNamespace {
            sockets: gauges("roomcast_sockets", "Connected sockets, by namespace."),
            rooms: gauges(
                "roomcast_rooms",
                "Rooms with members on this node, by namespace; private rooms not counted.",
            ),
            labels: Arc::default(),
        };
        registry
            .register(Box::new(by_namespace.clone()))
            .expect("metric names are unique");
        Self {
            polling: of_transport("polling"),
            websocket: of_transport("websocket"),
            closed: counters(
                "roomcast_connections_closed_total",
                "Connections closed, by reason.",
                &["reason"],
            ),
            upgrades: counter(
                "roomcast_upgrades_total",
                "Connections that moved from polling to WebSocket.",
            ),
            refused_handshakes: counters(
                "roomcast_http_refused_total",
                "HTTP requests refused, by reason.",
                &["reason"],
            ),
            invalid_input: counters(
                "roomcast_invalid_input_total",
                "Connections closed for input that is not the protocol, by kind.",
                &["kind"],
            ),
            limits: Limit::ALL
                .iter()
                .map(|l| limits.with_label_values(&[l.label()]))
                .collect(),
            bytes_received: counter(
                "roomcast_received_bytes_total",
                "Bytes received in WebSocket frames and polling bodies.",
            ),
            bytes_sent: counter(
                "roomcast_sent_bytes_total",
                "Bytes sent over WebSockets and in polling bodies.",
            ),
            events_received: counter("roomcast_events_received_total", "Events from clients."),
            events_unhandled: counter(
                "roomcast_events_unhandled_total",
                "Events from clients for which the namespace has no handler.",
            ),
            events_undecodable: counter(
                "roomcast_events_undecodable_total",
                "Events whose arguments are not what the handler takes.",
            ),
            handler_panics: counter("roomcast_handler_panics_total", "Handlers that panicked."),
            broadcasts: counter("roomcast_broadcasts_total", "Broadcasts of this node."),
            deliveries: counter(
                "roomcast_deliveries_total",
                "Packets queued to sockets by broadcasts.",
            ),
            fan_out,
            events_sent: counter(
                "roomcast_events_sent_total",
                "Events queued to single clients, outside of broadcasts.",
            ),
            outbox_bytes: gauge(
                "roomcast_outbox_bytes",
                "Bytes that wait for clients that do not read, as last looked at.",
            ),
            volatile_dropped: counter(
                "roomcast_volatile_dropped_total",
                "Volatile packets dropped since the transport could not be written.",
            ),
            connect_refused: counters(
                "roomcast_connect_refused_total",
                "Connects to a namespace that were refused, by reason.",
                &["reason"],
            ),
            by_namespace,
            namespaces,
            registry,
        }
    }

    /// The text format that Prometheus scrapes.
    pub(crate) fn encode(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        debug_assert!(encoded.is_ok(), "writing to memory does not fail");
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        self.closed.with_label_values(&[reason.label()]).inc();
        match reason {
            CloseReason::ParseError { kind, .. } => {
                self.invalid_input.with_label_values(&[kind]).inc();
            }
            CloseReason::LimitReached(limit) => self.limit_reached(limit),
            _ => {}
        }
    }

    pub(crate) fn limit_reached(&self, limit: Limit) {
        let index = Limit::ALL.iter().position(|&known| known == limit);
        self.limits[index.expect("ALL names every limit")].inc();
    }

    /// The label under which a namespace is counted: its name, while there are not too many.
    pub(crate) fn label_of(&self, namespace: &str, counted: Weak<dyn HasRooms>) -> Box<str> {
        let mut labels = self.by_namespace.labels();
        let is_free = labels.contains_key(namespace)
            || labels.keys().filter(|label| &***label != OTHER).count() < NAMESPACE_LABELS;
        let label: Box<str> = if is_free { namespace } else { OTHER }.into();
        labels.entry(label.clone()).or_default().push(counted);
        label
    }

    /// The gauge of the sockets under a label; to be looked up once and kept.
    pub(crate) fn sockets_of(&self, label: &str) -> IntGauge {
        self.by_namespace.sockets.with_label_values(&[label])
    }

    /// A namespace that was counted under this label is gone.
    pub(crate) fn gone(&self, label: &str, namespace: &Weak<dyn HasRooms>) {
        let mut labels = self.by_namespace.labels();
        let Some(counted) = labels.get_mut(label) else {
            return;
        };
        counted.retain(|other| !other.ptr_eq(namespace));
        if counted.is_empty() {
            labels.remove(label);
            // What was never read is not there to be removed.
            for gauges in [&self.by_namespace.sockets, &self.by_namespace.rooms] {
                drop(gauges.remove_label_values(&[label]));
            }
        }
    }
}

impl ByNamespace {
    fn labels(&self) -> MutexGuard<'_, Labels> {
        self.labels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for ByNamespace {
    fn desc(&self) -> Vec<&Desc> {
        [self.sockets.desc(), self.rooms.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Counted without the lock: whoever is the last to hold a namespace takes it.
        let upgrade = |counted: &[Weak<_>]| counted.iter().filter_map(Weak::upgrade).collect();
        let counted: Vec<(Box<str>, Namespaces)> = self
            .labels()
            .iter()
            .map(|(label, counted)| (label.clone(), upgrade(counted)))
            .collect();
        for (label, namespaces) in counted {
            let rooms: usize = namespaces.iter().map(|live| live.room_count()).sum();
            let labels = self.labels();
            if labels.contains_key(&label) {
                let rooms = i64::try_from(rooms).unwrap_or(i64::MAX);
                self.rooms.with_label_values(&[&label]).set(rooms);
            }
        }
        let mut families = self.sockets.collect();
        families.append(&mut self.rooms.collect());
        families
    }
}
