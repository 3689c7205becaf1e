//! The metrics of a server. Every server has its own registry; nothing here is global, and a scrape
//! causes no work beyond reading these numbers.
//!
//! **Why labels are bounded.** Each combination of labels is a time series that
//! Prometheus keeps for weeks. Names of namespaces and events may come from clients, so
//! only the first ones get a label, and the sums stay right because the others are
//! counted together.
//!
//! **Why series exist from the start.** `increase()` of a series that appears with its
//! first error is zero, so an alert would miss it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::close::{CloseReason, Limit};

/// The number of namespaces that have their own label at a time. Further ones are counted under
/// `other`, so that dynamic namespaces cannot grow the number of time series.
const NAMESPACE_LABELS: usize = 64;
const OTHER: &str = "other";

/// The number of events that have their own label among the errors of handlers. A catch-all
/// handler runs on names that clients choose.
const EVENT_LABELS: usize = 64;

/// From a broadcast without recipients to one that takes a second.
const FAN_OUT_BUCKETS: [f64; 11] = [
    1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1e-3, 4e-3, 16e-3, 64e-3, 256e-3, 1.0,
];

/// The series of one transport.
pub(crate) struct OfTransport {
    pub(crate) connections: IntGauge,
    pub(crate) opened_v3: IntCounter,
    pub(crate) opened_v4: IntCounter,
}

/// The series of both transports. They are looked up once, at start-up, because each connection increments several.
pub(crate) struct Transports {
    pub(crate) polling: OfTransport,
    pub(crate) websocket: OfTransport,
    /// Plain connections, by transport.
    pub(crate) streams: IntGauge,
    pub(crate) opened_streams: IntCounter,
    pub(crate) opened_plain: IntCounter,
}

/// Declares the series once: the field, its type, its label and the values that it has from the
/// start, its name and its help text.
macro_rules! metrics {
    ($(
        $vis:vis $field:ident: $series:ty [$($label:literal $(: $values:expr)?)?] =
            $name:literal, $help:literal;
    )+) => {
        pub(crate) struct Metrics {
            registry: Registry,
            pub(crate) transports: Transports,
            /// By `Limit as usize`.
            limits: [IntCounter; Limit::ALL.len()],
            pub(crate) fan_out: Histogram,
            by_namespace: ByNamespace,
            handler_errors: HandlerErrors,
            $($vis $field: $series,)+
        }

        impl Metrics {
            pub(crate) fn new() -> Self {
                let to = Registrar(Registry::new());
                let metrics = Self {
                    transports: to.transports(),
                    limits: to.limits(),
                    fan_out: to.fan_out(),
                    by_namespace: to.by_namespace(),
                    handler_errors: to.handler_errors(),
                    $($field: to.add($name, $help, &[$($label)?]),)+
                    registry: to.0,
                };
                // From the start, so that an alert sees the first increase.
                $($($(for value in $values {
                    metrics.$field.with_label_values(&[value]).reset();
                })?)?)+
                metrics
            }
        }
    };
}

metrics! {
    closed: IntCounterVec["reason"] = "roomcast_connections_closed_total",
        "Connections closed, by reason.";
    pub(crate) upgrades: IntCounter[] = "roomcast_upgrades_total",
        "Connections that moved from polling to WebSocket.";
    refused_handshakes: IntCounterVec["reason"] = "roomcast_http_refused_total",
        "HTTP requests refused, by reason.";
    invalid_input: IntCounterVec["kind"] = "roomcast_invalid_input_total",
        "Connections closed for input that is not the protocol, by kind.";
    pub(crate) bytes_received: IntCounter[] = "roomcast_received_bytes_total",
        "Bytes received in WebSocket frames and polling bodies.";
    pub(crate) bytes_sent: IntCounter[] = "roomcast_sent_bytes_total",
        "Bytes sent over WebSockets and in polling bodies.";
    pub(crate) events_received: IntCounter[] = "roomcast_events_received_total",
        "Events from clients.";
    pub(crate) events_unhandled: IntCounter[] = "roomcast_events_unhandled_total",
        "Events from clients for which the namespace has no handler.";
    pub(crate) events_undecodable: IntCounter[] = "roomcast_events_undecodable_total",
        "Events whose arguments the handler does not accept.";
    pub(crate) handler_panics: IntCounter[] = "roomcast_handler_panics_total",
        "Handlers that panicked.";
    pub(crate) broadcasts: IntCounter[] = "roomcast_broadcasts_total",
        "Broadcasts of this node.";
    pub(crate) deliveries: IntCounter[] = "roomcast_deliveries_total",
        "Packets queued to sockets by broadcasts.";
    pub(crate) events_sent: IntCounter[] = "roomcast_events_sent_total",
        "Events queued to single clients, outside of broadcasts.";
    pub(crate) outbox_bytes: IntGauge[] = "roomcast_outbox_bytes",
        "Bytes that wait for clients that do not read; a broadcast counts once.";
    pub(crate) volatile_dropped: IntCounter[] = "roomcast_volatile_dropped_total",
        "Volatile packets dropped because the transport could not be written.";
    pub(crate) connect_refused: IntCounterVec["reason"] = "roomcast_connect_refused_total",
        "Connects to a namespace that were refused, by reason.";
    proxy_header_errors: IntCounterVec["reason":
        ["untrusted", "malformed", "too_large", "closed"]] =
        "roomcast_proxy_header_errors_total",
        "Connections closed because their PROXY header is missing or wrong, by reason.";
    tls_handshake_errors: IntCounterVec["reason":
        ["not_tls", "rejected", "incompatible", "closed", "other"]] =
        "roomcast_tls_handshake_errors_total",
        "TLS handshakes that failed, by reason.";
    pub(crate) forwarded_ignored: IntCounter[] = "roomcast_forwarded_ignored_total",
        "First requests with a client's address in a header whose sender is no trusted proxy.";
    pub(crate) http_connections: IntGauge[] = "roomcast_http_connections",
        "HTTP connections that are open, without those that have become WebSockets.";
    pub(crate) connection_limit: IntGauge[] = "roomcast_connection_limit",
        "Connections that may be open.";
    pub(crate) socket_limit: IntGauge[] = "roomcast_socket_limit",
        "Sockets that may be open: HTTP connections and WebSockets.";
    pub(crate) draining: IntGauge[] = "roomcast_draining_connections",
        "Connections that a drain has still to close.";
    pub(crate) drained: IntCounter[] = "roomcast_drained_connections_total",
        "Connections closed to have their clients reconnect to another node.";
    pub(crate) journal_gaps: IntCounterVec["outcome":
        ["repaired", "lost", "unreadable"]] =
        "roomcast_journal_gaps_total",
        "Gaps in the journals of namespaces, by outcome.";
    pub(crate) recoveries: IntCounterVec["outcome":
        ["recovered", "unknown", "incomplete", "refused", "unavailable"]] =
        "roomcast_recoveries_total",
        "Clients that wanted to come back to their session, by outcome.";
    pub(crate) session_writes: IntCounterVec["outcome":
        ["written", "failed"]] =
        "roomcast_session_writes_total",
        "Sessions that were stored or removed, by outcome.";
    acknowledgements: IntCounterVec["outcome":
        ["acknowledged", "resent", "limit", "ended", "expired", "unrecovered"]] =
        "roomcast_at_least_once_total",
        "Broadcasts at least once to single clients, by outcome.";
    pub(crate) namespaces: IntGauge[] = "roomcast_namespaces",
        "Namespaces that exist now.";
}

/// An owner of rooms that are counted: a namespace.
pub(crate) trait HasRooms: Send + Sync {
    fn room_count(&self) -> usize;
}

/// The series by namespace. Rooms are counted when the series are read, so that rooms cost nothing
/// when they come and go.
#[derive(Clone)]
struct ByNamespace {
    sockets: IntGaugeVec,
    rooms: IntGaugeVec,
    labels: Arc<Mutex<Labels>>,
}

type Namespaces = Vec<Arc<dyn HasRooms>>;

/// The namespaces that each label counts. A label goes with its last namespace.
type Labels = HashMap<Box<str>, Vec<Weak<dyn HasRooms>>>;

/// The errors of handlers by event.
struct HandlerErrors {
    series: IntCounterVec,
    labels: Mutex<HashSet<Box<str>>>,
}

/// A series, or a family of them by labels.
/// One constructor for all kinds, so that the table above can declare them alike.
trait Series: Collector + Clone + 'static {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

impl Series for IntCounter {
    fn create(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Series for IntGauge {
    fn create(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Series for IntCounterVec {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

impl Series for IntGaugeVec {
    fn create(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

/// Creates series and registers them. Names are literals of this file, so an error is a bug.
struct Registrar(Registry);

impl Registrar {
    fn create<S: Series>(name: &str, help: &str, labels: &[&str]) -> S {
        S::create(Opts::new(name, help), labels).expect("metric names are valid")
    }

    fn register<C: Collector + Clone + 'static>(&self, series: C) -> C {
        let registered = self.0.register(Box::new(series.clone()));
        registered.expect("metric names are unique");
        series
    }

    fn add<S: Series>(&self, name: &str, help: &str, labels: &[&str]) -> S {
        self.register(Self::create(name, help, labels))
    }

    fn transports(&self) -> Transports {
        let connections: IntGaugeVec = self.add(
            "roomcast_connections",
            "Open connections, by current transport.",
            &["transport"],
        );
        let opened: IntCounterVec = self.add(
            "roomcast_connections_opened_total",
            "Connections opened, by first transport and Engine.IO revision.",
            &["transport", "revision"],
        );
        let of = |transport: &str| OfTransport {
            connections: connections.with_label_values(&[transport]),
            opened_v3: opened.with_label_values(&[transport, "3"]),
            opened_v4: opened.with_label_values(&[transport, "4"]),
        };
        Transports {
            polling: of("polling"),
            websocket: of("websocket"),
            streams: connections.with_label_values(&["stream"]),
            opened_streams: opened.with_label_values(&["stream", "plain"]),
            opened_plain: opened.with_label_values(&["websocket", "plain"]),
        }
    }

    /// All counters are made at once, so that reaching a limit needs no look-up.
    fn limits(&self) -> [IntCounter; Limit::ALL.len()] {
        let limits: IntCounterVec = self.add(
            "roomcast_limit_reached_total",
            "Times that a client or the application reached a limit, by limit.",
            &["limit"],
        );
        Limit::ALL.map(|limit| limits.with_label_values(&[limit.label()]))
    }

    fn fan_out(&self) -> Histogram {
        let opts = HistogramOpts::new(
            "roomcast_fan_out_seconds",
            "Time to queue a broadcast to the sockets of this node.",
        );
        let histogram = Histogram::with_opts(opts.buckets(FAN_OUT_BUCKETS.to_vec()));
        self.register(histogram.expect("metric names are valid"))
    }

    fn handler_errors(&self) -> HandlerErrors {
        let series: IntCounterVec = self.add(
            "roomcast_handler_errors_total",
            "Handlers that returned an error that clients do not see, by event.",
            &["event"],
        );
        // Exists from the start, so that the first error is an increase.
        series.with_label_values(&[OTHER]);
        HandlerErrors {
            series,
            labels: Mutex::default(),
        }
    }

    fn by_namespace(&self) -> ByNamespace {
        let labels = &["namespace"];
        self.register(ByNamespace {
            sockets: Self::create(
                "roomcast_sockets",
                "Connected sockets, by namespace.",
                labels,
            ),
            rooms: Self::create(
                "roomcast_rooms",
                "Rooms with members on this node, by namespace; private rooms not counted.",
                labels,
            ),
            labels: Arc::default(),
        })
    }
}

impl Metrics {
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

    /// Counts an HTTP request that was refused.
    pub(crate) fn refused(&self, reason: &str) {
        self.refused_handshakes.with_label_values(&[reason]).inc();
    }

    /// Counts a connection without a valid PROXY header.
    pub(crate) fn proxy_header_error(&self, reason: &str) {
        self.proxy_header_errors.with_label_values(&[reason]).inc();
    }

    /// Counts a TLS handshake that failed.
    pub(crate) fn tls_handshake_error(&self, reason: &str) {
        self.tls_handshake_errors.with_label_values(&[reason]).inc();
    }

    pub(crate) fn limit_reached(&self, limit: Limit) {
        self.limits[limit as usize].inc();
    }

    /// Counts events that single clients have to acknowledge.
    pub(crate) fn count_acknowledgements(&self, outcome: &'static str, events: usize) {
        let series = self.acknowledgements.with_label_values(&[outcome]);
        series.inc_by(events as u64);
    }

    /// Counts an error of a handler under its event, or under `other` if too many events
    /// have failed.
    pub(crate) fn handler_failed(&self, event: &str) {
        let HandlerErrors { series, labels } = &self.handler_errors;
        let mut labels = labels.lock().unwrap_or_else(PoisonError::into_inner);
        let is_labelled =
            labels.contains(event) || labels.len() < EVENT_LABELS && labels.insert(event.into());
        // Counting takes a lock of the family, which this one need not wait for.
        drop(labels);
        let label = if is_labelled { event } else { OTHER };
        series.with_label_values(&[label]).inc();
    }

    /// Returns the label under which a namespace is counted: its name, or `other` if too many
    /// namespaces have their own label.
    pub(crate) fn label_of(&self, namespace: &str, counted: Weak<dyn HasRooms>) -> Box<str> {
        let mut labels = self.by_namespace.labels();
        let is_free = labels.contains_key(namespace)
            || labels.keys().filter(|label| &***label != OTHER).count() < NAMESPACE_LABELS;
        let label: Box<str> = if is_free { namespace } else { OTHER }.into();
        labels.entry(label.clone()).or_default().push(counted);
        label
    }

    /// The gauge of the sockets under a label. Look it up once and keep it.
    /// Looking it up takes a lock, and sockets come and go all the time.
    pub(crate) fn sockets_of(&self, label: &str) -> IntGauge {
        self.by_namespace.sockets.with_label_values(&[label])
    }

    /// Stops counting a namespace under its label.
    pub(crate) fn gone(&self, label: &str, namespace: &Weak<dyn HasRooms>) {
        let mut labels = self.by_namespace.labels();
        let Some(counted) = labels.get_mut(label) else {
            return;
        };
        counted.retain(|other| !other.ptr_eq(namespace));
        if counted.is_empty() {
            labels.remove(label);
            // A series that was never read does not exist; removing it fails harmlessly.
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
        // Rooms are counted without the lock, because dropping the last handle of a namespace
        // takes it.
        let upgrade = |counted: &[Weak<_>]| counted.iter().filter_map(Weak::upgrade).collect();
        let counted: Vec<(Box<str>, Namespaces)> = self
            .labels()
            .iter()
            .map(|(label, counted)| (label.clone(), upgrade(counted)))
            .collect();
        for (label, namespaces) in counted {
            let rooms: usize = namespaces.iter().map(|live| live.room_count()).sum();
            // The namespace may have ended since then, and must not get a series again.
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
