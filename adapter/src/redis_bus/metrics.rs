//! What a bus over Redis counts. Nothing here is global: each bus has its own series, which the
//! server registers, and reading them causes no traffic.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, core::Collector,
};
use roomcast_protocol::question::Question;

/// Seconds: from what a local Redis takes to what one gives up waiting for.
const BUCKETS: [f64; 12] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0,
];

pub(crate) struct Metrics {
    series: Series,
    pub(crate) messages_received: IntCounter,
    pub(crate) received_bytes: IntCounter,
    pub(crate) dropped: Dropped,
    pub(crate) published: Published,
    pub(crate) published_bytes: IntCounter,
    pub(crate) publish_seconds: Histogram,
    pub(crate) queued_bytes: IntGauge,
    pub(crate) publisher_up: IntGauge,
    pub(crate) subscriber_up: IntGauge,
    pub(crate) publisher_reconnects: IntCounter,
    pub(crate) subscriber_reconnects: IntCounter,
    probe_seconds: Histogram,
    last_probe: Mutex<Duration>,
    pub(crate) gaps: IntCounter,
    pub(crate) gap_seconds: Counter,
    pub(crate) resubscribe_seconds: Gauge,
    pub(crate) subscriptions: IntGauge,
    pub(crate) nodes: IntGauge,
    pub(crate) foreign: IntGauge,
    requests: IntCounterVec,
    answers: IntCounterVec,
    pub(crate) silent_nodes: IntCounter,
}

/// Messages that came over the bus and were not carried out, by reason.
pub(crate) struct Dropped {
    /// This node's own.
    pub(crate) own: IntCounter,
    /// To a room without a member here.
    pub(crate) no_member: IntCounter,
    /// Of a namespace that this node does not have.
    pub(crate) unknown_namespace: IntCounter,
    /// What cannot be decoded.
    pub(crate) undecodable: IntCounter,
    /// What can, and was not expected: answers to nobody's question, too many questions.
    pub(crate) unexpected: IntCounter,
}

/// Messages of this node, by outcome.
pub(crate) struct Published {
    pub(crate) ok: IntCounter,
    pub(crate) unavailable: IntCounter,
    pub(crate) unconfirmed: IntCounter,
    pub(crate) overloaded: IntCounter,
    pub(crate) invalid: IntCounter,
}

/// How a question of this node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    Partial,
    Failed,
}

impl Metrics {
    #[expect(clippy::too_many_lines, reason = "one entry per series, nothing else")]
    pub(crate) fn new() -> Self {
        let mut all = Series::default();
        let dropped = all.counters(
            "roomcast_bus_messages_dropped_total",
            "Messages of the bus that were not carried out, by reason.",
            &["reason"],
        );
        let published = all.counters(
            "roomcast_bus_messages_published_total",
            "Messages that this node published, by outcome.",
            &["outcome"],
        );
        let up = all.gauges(
            "roomcast_bus_link_up",
            "Whether a link to Redis is up (1) or down (0).",
            "link",
        );
        let reconnects = all.counters(
            "roomcast_bus_reconnects_total",
            "Connections that were made anew, by link.",
            &["link"],
        );
        let nodes = all.gauges(
            "roomcast_bus_nodes",
            "Members of the cluster that this node sees, itself included; none while it cannot ask Redis.",
            "kind",
        );
        Self {
            messages_received: all.counter(
                "roomcast_bus_messages_received_total",
                "Messages that came over the bus.",
            ),
            received_bytes: all.counter(
                "roomcast_bus_received_bytes_total",
                "Bytes of payload that came over the bus.",
            ),
            dropped: Dropped {
                own: dropped.with_label_values(&["own"]),
                no_member: dropped.with_label_values(&["no_member"]),
                unknown_namespace: dropped.with_label_values(&["unknown_namespace"]),
                undecodable: dropped.with_label_values(&["undecodable"]),
                unexpected: dropped.with_label_values(&["unexpected"]),
            },
            published: Published {
                ok: published.with_label_values(&["ok"]),
                unavailable: published.with_label_values(&["unavailable"]),
                unconfirmed: published.with_label_values(&["unconfirmed"]),
                overloaded: published.with_label_values(&["overloaded"]),
                invalid: published.with_label_values(&["invalid"]),
            },
            published_bytes: all.counter(
                "roomcast_bus_published_bytes_total",
                "Bytes of payload that this node published.",
            ),
            publish_seconds: all.histogram(
                "roomcast_bus_publish_seconds",
                "Time from a publish to Redis's answer, in seconds.",
            ),
            queued_bytes: all.gauge(
                "roomcast_bus_queued_bytes",
                "Bytes that wait to be published or to be answered by Redis.",
            ),
            publisher_up: up.with_label_values(&["publisher"]),
            subscriber_up: up.with_label_values(&["subscriber"]),
            publisher_reconnects: reconnects.with_label_values(&["publisher"]),
            subscriber_reconnects: reconnects.with_label_values(&["subscriber"]),
            probe_seconds: all.histogram(
                "roomcast_bus_probe_seconds",
                "Time that a probe takes to come back to the node that published it, in seconds.",
            ),
            gaps: all.counter(
                "roomcast_bus_gaps_total",
                "Times that messages of others may have been missed.",
            ),
            gap_seconds: all.add(
                Counter::new(
                    "roomcast_bus_gap_seconds_total",
                    "Length of the times in which messages may have been missed, in seconds.",
                )
                .expect("metric names are valid"),
            ),
            resubscribe_seconds: all.add(
                Gauge::new(
                    "roomcast_bus_resubscribe_seconds",
                    "Time that the last resubscription took, in seconds.",
                )
                .expect("metric names are valid"),
            ),
            subscriptions: all.gauge(
                "roomcast_bus_subscriptions",
                "Channels and patterns that this node wants to hear.",
            ),
            nodes: nodes.with_label_values(&["roomcast"]),
            foreign: nodes.with_label_values(&["foreign"]),
            requests: all.counters(
                "roomcast_bus_requests_total",
                "Questions of this node to the others, by type and outcome.",
                &["type", "outcome"],
            ),
            answers: all.counters(
                "roomcast_bus_answers_total",
                "Questions of others that this node answered, by type.",
                &["type"],
            ),
            silent_nodes: all.counter(
                "roomcast_bus_silent_nodes_total",
                "Nodes that did not answer a question of this node in time.",
            ),
            last_probe: Mutex::default(),
            series: all,
        }
    }

    /// All series, to be registered.
    pub(crate) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.series.0.iter().map(|handle| handle()).collect()
    }

    /// The last probe that came back, again and again until there is another.
    pub(crate) fn note_probe(&self, round_trip: Duration) {
        let last = std::mem::replace(&mut *self.last_probe.lock(), round_trip);
        // No two take the same time to the nanosecond.
        if last != round_trip {
            self.probe_seconds.observe(round_trip.as_secs_f64());
        }
    }

    /// A question of this node has ended.
    pub(crate) fn asked(&self, kind: &str, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Complete => "complete",
            Outcome::Partial => "partial",
            Outcome::Failed => "failed",
        };
        self.requests.with_label_values(&[kind, outcome]).inc();
    }

    /// A question of another node has been answered.
    pub(crate) fn answered(&self, question: &Question) {
        self.answers.with_label_values(&[type_of(question)]).inc();
    }
}

/// Handles of all series, each with the others' data.
#[derive(Default)]
struct Series(Vec<Box<dyn Fn() -> Box<dyn Collector> + Send + Sync>>);

impl Series {
    fn add<C: Collector + Clone + 'static>(&mut self, series: C) -> C {
        let handle = series.clone();
        self.0.push(Box::new(move || Box::new(handle.clone())));
        series
    }

    fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help).expect("metric names are valid"))
    }

    fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let options = Opts::new(name, help);
        self.add(IntCounterVec::new(options, labels).expect("metric names are valid"))
    }

    fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help).expect("metric names are valid"))
    }

    fn gauges(&mut self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        let options = Opts::new(name, help);
        self.add(IntGaugeVec::new(options, &[label]).expect("metric names are valid"))
    }

    fn histogram(&mut self, name: &str, help: &str) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        self.add(Histogram::with_opts(options).expect("metric names are valid"))
    }
}

/// The name of the question's type.
pub(crate) fn type_of(question: &Question) -> &'static str {
    match question {
        Question::Sockets(_) => "sockets",
        Question::SocketIds(_) => "socket_ids",
        Question::Rooms => "rooms",
        Question::Acks { .. } => "acks",
        Question::ServerSideEmit { .. } => "server_side_emit",
        Question::Reached(_) => "reached",
        Question::Command(_) => "command",
    }
}
