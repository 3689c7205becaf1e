//! The metrics of a Redis bus, in groups that belong to its parts.
//!
//! Nothing here is global: each bus has its own series, which the server registers. Reading them
//! causes no traffic.
//!
//! Handles are made with the parts that use them, and collected for the server, because
//! a bus may exist before its server and several servers may be in one process.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, core::Collector,
};
use roomcast_emitter::redis::{PublishError, Publisher};
use roomcast_protocol::question::Question;

use super::warnings::Warnings;
use crate::subscriber::{Subscriber, SubscriberState};

/// Upper bounds in seconds, from the round trip to a local Redis to the publish timeout.
const BUCKETS: [f64; 12] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0,
];

/// All series of a bus. The parts of the bus register theirs here and keep the handles.
#[derive(Default)]
pub(super) struct Series {
    handles: Vec<Box<dyn Fn() -> Box<dyn Collector> + Send + Sync>>,
    /// Families whose series belong to several fields, by name.
    counters: HashMap<&'static str, IntCounterVec>,
    gauges: HashMap<&'static str, IntGaugeVec>,
}

/// A name, a help text and a label.
type Family = (&'static str, &'static str, &'static str);

impl Series {
    /// Returns all series, to be registered by the server.
    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.handles.iter().map(|handle| handle()).collect()
    }

    fn add<C: Collector + Clone + 'static>(&mut self, series: prometheus::Result<C>) -> C {
        let series = series.expect("metric names are valid");
        let handle = series.clone();
        self.handles
            .push(Box::new(move || Box::new(handle.clone())));
        series
    }

    fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A field is one series of a family, so a message costs one addition and no
    /// look-up by label.
    fn counter_of(&mut self, (name, help, label): Family, value: &str) -> IntCounter {
        let family = match self.counters.get(name) {
            Some(family) => family.clone(),
            None => self.counters(name, help, &[label]),
        };
        let series = family.with_label_values(&[value]);
        self.counters.insert(name, family);
        series
    }

    fn reason(&mut self, reason: &str) -> Reason {
        Reason {
            count: self.counter_of(DROPPED, reason),
            warnings: Warnings::default(),
        }
    }

    fn seconds(&mut self, name: &str, help: &str) -> Counter {
        self.add(Counter::new(name, help))
    }

    fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    /// The same for gauges.
    fn gauge_of(&mut self, (name, help, label): Family, value: &str) -> IntGauge {
        let family = match self.gauges.get(name) {
            Some(family) => family.clone(),
            None => self.add(IntGaugeVec::new(Opts::new(name, help), &[label])),
        };
        let series = family.with_label_values(&[value]);
        self.gauges.insert(name, family);
        series
    }

    fn last_seconds(&mut self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn histogram(&mut self, name: &str, help: &str) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        self.add(Histogram::with_opts(options))
    }
}

/// Declares the series of one part of the bus: field, type, and the method of [`Series`] that
/// registers it.
macro_rules! series {
    ($(#[$about:meta])* $group:ident {
        $($field:ident: $type:ident = $register:ident($($argument:expr),+);)*
    }) => {
        $(#[$about])*
        pub(super) struct $group {
            $(pub(super) $field: $type,)*
        }

        impl $group {
            pub(super) fn new(series: &mut Series) -> Self {
                Self {
                    $($field: series.$register($($argument),+),)*
                }
            }
        }
    };
}

const DROPPED: Family = (
    "roomcast_bus_messages_dropped_total",
    "Messages of the bus that were not carried out, by reason.",
    "reason",
);

/// A reason to drop messages that is logged. Each has its own warnings: a flood of one kind must not
/// hide another.
pub(super) struct Reason {
    pub(super) count: IntCounter,
    pub(super) warnings: Warnings,
}

series! {
    /// Received messages.
    IncomingMetrics {
        messages: IntCounter = counter(
            "roomcast_bus_messages_received_total", "Messages that came over the bus.");
        bytes: IntCounter = counter(
            "roomcast_bus_received_bytes_total", "Bytes of payload that came over the bus.");
        own: IntCounter = counter_of(DROPPED, "own");
        no_member: IntCounter = counter_of(DROPPED, "no_member");
        unknown_namespace: Reason = reason("unknown_namespace");
        too_large: Reason = reason("too_large");
        undecodable: Reason = reason("undecodable");
        unexpected: Reason = reason("unexpected");
        unsigned: Reason = reason("unsigned");
        forged: Reason = reason("forged");
        stale: Reason = reason("stale");
        replayed: Reason = reason("replayed");
    }
}

const PUBLISHED: Family = (
    "roomcast_bus_messages_published_total",
    "Messages that this node published, by outcome.",
    "outcome",
);

series! {
    /// Published messages.
    OutgoingMetrics {
        ok: IntCounter = counter_of(PUBLISHED, "ok");
        unavailable: IntCounter = counter_of(PUBLISHED, "unavailable");
        unconfirmed: IntCounter = counter_of(PUBLISHED, "unconfirmed");
        overloaded: IntCounter = counter_of(PUBLISHED, "overloaded");
        invalid: IntCounter = counter_of(PUBLISHED, "invalid");
        bytes: IntCounter = counter(
            "roomcast_bus_published_bytes_total", "Bytes of payload that this node published.");
        seconds: Histogram = histogram(
            "roomcast_bus_publish_seconds", "Time from a publish to Redis's answer, in seconds.");
    }
}

impl OutgoingMetrics {
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

const UP: Family = (
    "roomcast_bus_link_up",
    "Whether a link to Redis is up (1) or down (0).",
    "link",
);

const RECONNECTS: Family = (
    "roomcast_bus_reconnects_total",
    "Connections that were reopened, by link.",
    "link",
);

series! {
    /// The connections to Redis.
    LinkMetrics {
        publisher_up: IntGauge = gauge_of(UP, "publisher");
        subscriber_up: IntGauge = gauge_of(UP, "subscriber");
        publisher_reconnects: IntCounter = counter_of(RECONNECTS, "publisher");
        subscriber_reconnects: IntCounter = counter_of(RECONNECTS, "subscriber");
        queued_bytes: IntGauge = gauge(
            "roomcast_bus_queued_bytes",
            "Bytes that wait to be published or to be answered by Redis.");
        probe_seconds: Histogram = histogram(
            "roomcast_bus_probe_seconds",
            "Time that a probe takes to come back to the node that published it, in seconds.");
        resubscribe_seconds: Gauge = last_seconds(
            "roomcast_bus_resubscribe_seconds",
            "Time that the last resubscription took, in seconds.");
        subscriptions: IntGauge = gauge(
            "roomcast_bus_subscriptions", "Channels and patterns to which this node subscribes.");
        refused_subscriptions: IntGauge = gauge(
            "roomcast_bus_refused_subscriptions",
            "Channels and patterns that Redis refuses to this node.");
    }
}

series! {
    /// The connection that reads the stream, in the streams dialect.
    StreamMetrics {
        up: IntGauge = gauge_of(UP, "stream");
        reconnects: IntCounter = counter_of(RECONNECTS, "stream");
    }
}

impl LinkMetrics {
    /// Copies the counters of the links.
    /// `last_probe` is the round trip that was observed last.
    pub(super) fn refresh(
        &self,
        subscriber: &Subscriber,
        publisher: &Publisher,
        last_probe: &mut Duration,
    ) {
        let state = subscriber.state();
        if let SubscriberState::Up {
            probe_round_trip: round_trip,
            ..
        } = state
        {
            // The last probe is read again until there is a newer one. No two take the same time
            // to the nanosecond.
            if *last_probe != round_trip {
                *last_probe = round_trip;
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

series! {
    /// Periods in which messages may have been missed.
    GapMetrics {
        count: IntCounter = counter(
            "roomcast_bus_gaps_total", "Times that messages of others may have been missed.");
        seconds: Counter = seconds(
            "roomcast_bus_gap_seconds_total",
            "Length of the times in which messages may have been missed, in seconds.");
    }
}

const NODES: Family = (
    "roomcast_bus_nodes",
    "Members of the cluster that this node sees, itself included; none while it cannot ask Redis.",
    "kind",
);

series! {
    /// The members of the cluster.
    MembershipMetrics {
        nodes: IntGauge = gauge_of(NODES, "roomcast");
        foreign: IntGauge = gauge_of(NODES, "foreign");
        disagreeing: IntGauge = gauge(
            "roomcast_bus_disagreeing_nodes",
            "Nodes with the same prefix and another dialect or parser, or that sign while others do not.");
        lost: IntCounter = counter(
            "roomcast_bus_leases_lost_total",
            "Times that Redis had lost this node's lease, which was written again.");
        without_lease: IntCounter = counter(
            "roomcast_bus_leaseless_answers_total",
            "Answers of nodes without a lease: their URLs may name another database of Redis.");
    }
}

series! {
    /// Questions and their answers.
    QuestionMetrics {
        requests: IntCounterVec = counters(
            "roomcast_bus_requests_total",
            "Questions of this node to the others, by type and outcome.",
            &["type", "outcome"]);
        answers: IntCounterVec = counters(
            "roomcast_bus_answers_total",
            "Questions of others that this node answered, by type.",
            &["type"]);
        silent_nodes: IntCounter = counter(
            "roomcast_bus_silent_nodes_total",
            "Nodes that did not answer a question of this node in time.");
        unexpected: IntCounter = counter_of(DROPPED, "unexpected");
    }
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
