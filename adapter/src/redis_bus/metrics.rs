//! The metrics of a Redis bus, in groups that belong to its parts.
//!
//! Nothing here is global: each bus has its own series, which the server registers. Reading them
//! causes no traffic.

use std::{sync::atomic::Ordering, time::Duration};

use parking_lot::Mutex;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, core::Collector,
};
use roomcast_emitter::redis::{PublishError, Publisher};
use roomcast_protocol::question::Question;

use crate::subscriber::{Subscriber, SubscriberState};

/// Upper bounds in seconds, from the round trip to a local Redis to the publish timeout.
const BUCKETS: [f64; 12] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0,
];

/// All series of a bus. The parts of the bus register theirs here and keep the handles.
#[derive(Default)]
pub(super) struct Series(Vec<Box<dyn Fn() -> Box<dyn Collector> + Send + Sync>>);

impl Series {
    /// Returns all series, to be registered by the server.
    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.0.iter().map(|handle| handle()).collect()
    }

    fn add<C: Collector + Clone + 'static>(&mut self, series: prometheus::Result<C>) -> C {
        let series = series.expect("metric names are valid");
        let handle = series.clone();
        self.0.push(Box::new(move || Box::new(handle.clone())));
        series
    }

    fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&mut self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn histogram(&mut self, name: &str, help: &str) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        self.add(Histogram::with_opts(options))
    }
}

/// What arrives over the bus.
pub(super) struct IncomingMetrics {
    pub(super) messages: IntCounter,
    pub(super) bytes: IntCounter,
    /// Messages of this node itself.
    pub(super) own: IntCounter,
    /// Messages to a room without a member on this node.
    pub(super) no_member: IntCounter,
    /// Messages of namespaces that this node does not have.
    pub(super) unknown_namespace: IntCounter,
    pub(super) undecodable: IntCounter,
    /// Answers to unknown questions, and questions beyond the limit.
    pub(super) unexpected: IntCounter,
}

impl IncomingMetrics {
    pub(super) fn new(series: &mut Series) -> Self {
        let dropped = series.counters(
            "roomcast_bus_messages_dropped_total",
            "Messages of the bus that were not carried out, by reason.",
            &["reason"],
        );
        let dropped = |reason| dropped.with_label_values(&[reason]);
        Self {
            messages: series.counter(
                "roomcast_bus_messages_received_total",
                "Messages that came over the bus.",
            ),
            bytes: series.counter(
                "roomcast_bus_received_bytes_total",
                "Bytes of payload that came over the bus.",
            ),
            own: dropped("own"),
            no_member: dropped("no_member"),
            unknown_namespace: dropped("unknown_namespace"),
            undecodable: dropped("undecodable"),
            unexpected: dropped("unexpected"),
        }
    }
}

/// What the node publishes, by outcome.
pub(super) struct OutgoingMetrics {
    ok: IntCounter,
    unavailable: IntCounter,
    unconfirmed: IntCounter,
    overloaded: IntCounter,
    pub(super) invalid: IntCounter,
    bytes: IntCounter,
    seconds: Histogram,
}

impl OutgoingMetrics {
    pub(super) fn new(series: &mut Series) -> Self {
        let published = series.counters(
            "roomcast_bus_messages_published_total",
            "Messages that this node published, by outcome.",
            &["outcome"],
        );
        let published = |outcome| published.with_label_values(&[outcome]);
        Self {
            ok: published("ok"),
            unavailable: published("unavailable"),
            unconfirmed: published("unconfirmed"),
            overloaded: published("overloaded"),
            invalid: published("invalid"),
            bytes: series.counter(
                "roomcast_bus_published_bytes_total",
                "Bytes of payload that this node published.",
            ),
            seconds: series.histogram(
                "roomcast_bus_publish_seconds",
                "Time from a publish to Redis's answer, in seconds.",
            ),
        }
    }

    /// A publish of `bytes` has ended after this time.
    pub(super) fn published(
        &self,
        bytes: u64,
        took: Duration,
        outcome: Result<u64, &PublishError>,
    ) {
        self.seconds.observe(took.as_secs_f64());
        match outcome {
            Ok(_) => {
                self.ok.inc();
                self.bytes.inc_by(bytes);
            }
            Err(PublishError::Unconfirmed(_)) => self.unconfirmed.inc(),
            Err(PublishError::Overloaded { .. }) => self.overloaded.inc(),
            Err(PublishError::Refused(_)) => self.invalid.inc(),
            Err(PublishError::Unavailable(_)) => self.unavailable.inc(),
        }
    }
}

/// The connections to Redis.
pub(super) struct LinkMetrics {
    publisher_up: IntGauge,
    pub(super) subscriber_up: IntGauge,
    publisher_reconnects: IntCounter,
    pub(super) subscriber_reconnects: IntCounter,
    queued_bytes: IntGauge,
    probe_seconds: Histogram,
    last_probe: Mutex<Duration>,
    pub(super) gaps: IntCounter,
    pub(super) gap_seconds: Counter,
    pub(super) resubscribe_seconds: Gauge,
    subscriptions: IntGauge,
    refused_subscriptions: IntGauge,
}

impl LinkMetrics {
    pub(super) fn new(series: &mut Series) -> Self {
        let up = series.gauges(
            "roomcast_bus_link_up",
            "Whether a link to Redis is up (1) or down (0).",
            "link",
        );
        let reconnects = series.counters(
            "roomcast_bus_reconnects_total",
            "Connections that were made anew, by link.",
            &["link"],
        );
        Self {
            publisher_up: up.with_label_values(&["publisher"]),
            subscriber_up: up.with_label_values(&["subscriber"]),
            publisher_reconnects: reconnects.with_label_values(&["publisher"]),
            subscriber_reconnects: reconnects.with_label_values(&["subscriber"]),
            queued_bytes: series.gauge(
                "roomcast_bus_queued_bytes",
                "Bytes that wait to be published or to be answered by Redis.",
            ),
            probe_seconds: series.histogram(
                "roomcast_bus_probe_seconds",
                "Time that a probe takes to come back to the node that published it, in seconds.",
            ),
            last_probe: Mutex::default(),
            gaps: series.counter(
                "roomcast_bus_gaps_total",
                "Times that messages of others may have been missed.",
            ),
            gap_seconds: series.add(Counter::new(
                "roomcast_bus_gap_seconds_total",
                "Length of the times in which messages may have been missed, in seconds.",
            )),
            resubscribe_seconds: series.add(Gauge::new(
                "roomcast_bus_resubscribe_seconds",
                "Time that the last resubscription took, in seconds.",
            )),
            subscriptions: series.gauge(
                "roomcast_bus_subscriptions",
                "Channels and patterns that this node wants to hear.",
            ),
            refused_subscriptions: series.gauge(
                "roomcast_bus_refused_subscriptions",
                "Channels and patterns that Redis refuses to this node.",
            ),
        }
    }

    /// Copies what the links count themselves.
    pub(super) fn refresh(&self, subscriber: &Subscriber, publisher: &Publisher) {
        let state = subscriber.state();
        if let SubscriberState::Up {
            last_probe_round_trip: round_trip,
            ..
        } = state
        {
            let last = std::mem::replace(&mut *self.last_probe.lock(), round_trip);
            // The last probe is read again until there is a newer one. No two take the same time
            // to the nanosecond.
            if last != round_trip {
                self.probe_seconds.observe(round_trip.as_secs_f64());
            }
        }
        let is_up = matches!(state, SubscriberState::Up { .. });
        self.subscriber_up.set(is_up.into());
        let counts = subscriber.counts();
        self.subscriptions.set(gauge(counts.desired));
        self.refused_subscriptions.set(gauge(counts.refused));
        self.publisher_up.set(publisher.is_up().into());
        let stats = publisher.stats();
        let queued = stats.queued_bytes.load(Ordering::Relaxed);
        self.queued_bytes
            .set(i64::try_from(queued).unwrap_or(i64::MAX));
        let total = stats.reconnects.load(Ordering::Relaxed);
        let reconnects = &self.publisher_reconnects;
        reconnects.inc_by(total.saturating_sub(reconnects.get()));
    }
}

/// The members of the cluster.
pub(super) struct MembershipMetrics {
    pub(super) nodes: IntGauge,
    pub(super) foreign: IntGauge,
}

impl MembershipMetrics {
    pub(super) fn new(series: &mut Series) -> Self {
        let nodes = series.gauges(
            "roomcast_bus_nodes",
            "Members of the cluster that this node sees, itself included; none while it cannot ask Redis.",
            "kind",
        );
        Self {
            nodes: nodes.with_label_values(&["roomcast"]),
            foreign: nodes.with_label_values(&["foreign"]),
        }
    }
}

/// Questions and their answers.
pub(super) struct QuestionMetrics {
    requests: IntCounterVec,
    answers: IntCounterVec,
    pub(super) silent_nodes: IntCounter,
    /// Questions of others beyond the limit.
    pub(super) unexpected: IntCounter,
}

/// How a question of this node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Everybody answered.
    Complete,
    /// Some did not, in time.
    Partial,
    /// The question may not have been asked, or the caller did not wait for its end.
    Failed,
}

impl QuestionMetrics {
    pub(super) fn new(series: &mut Series, incoming: &IncomingMetrics) -> Self {
        Self {
            requests: series.counters(
                "roomcast_bus_requests_total",
                "Questions of this node to the others, by type and outcome.",
                &["type", "outcome"],
            ),
            answers: series.counters(
                "roomcast_bus_answers_total",
                "Questions of others that this node answered, by type.",
                &["type"],
            ),
            silent_nodes: series.counter(
                "roomcast_bus_silent_nodes_total",
                "Nodes that did not answer a question of this node in time.",
            ),
            unexpected: incoming.unexpected.clone(),
        }
    }

    /// A question of this node has ended.
    pub(super) fn asked(&self, kind: &str, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Complete => "complete",
            Outcome::Partial => "partial",
            Outcome::Failed => "failed",
        };
        self.requests.with_label_values(&[kind, outcome]).inc();
    }

    /// A question of another node is answered.
    pub(super) fn answered(&self, question: &Question) {
        self.answers.with_label_values(&[type_of(question)]).inc();
    }
}

/// Returns the name of the question's type.
pub(super) fn type_of(question: &Question) -> &'static str {
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

/// A count as the value of a gauge.
pub(super) fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
