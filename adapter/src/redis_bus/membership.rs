//! The nodes of the cluster: this node's lease, the leases of the others, and counts of
//! subscribers.
//!
//! A lease is an entry of one sorted set in Redis: the node's name, and the end of the lease by
//! Redis's clock. Because only that clock counts, the nodes' own clocks do not matter. Questions do
//! not wait for a node whose lease has expired.
//!
//! ```text
//! every second, one write:  ZADD end-of-lease · ZREMRANGEBYSCORE expired
//!                           PUBSUB NUMSUB (for the metric) · ZREVRANGE leases · TIME
//! on leaving:               ZADD left:NODE now · ZREM NODE
//! ```

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use futures_util::future::{OptionFuture, join, join3, try_join};
use parking_lot::Mutex;
use redis::Value;
use roomcast_emitter::{
    membership::{self, Counted, LEASE_SECONDS, Leases, Members, SETTINGS, TRACE},
    redis::{PublishError, Reply, Route},
    signing::{RedisClock, millis},
};
use roomcast_protocol::{
    channel::{Channels, Dialect, Mode},
    id::NodeId,
    wire::Parser,
};

use super::{
    metrics::{MembershipMetrics, gauge},
    outgoing::Outgoing,
    peers::{self, Missing, Peers},
    warnings::Warnings,
};

/// How long the lease of a node that vanished is kept. When a host loses its power or its
/// network, Redis keeps the node's subscriptions until the connection times out, which
/// takes minutes to an hour. Without a lease, such a node would count as a Node server,
/// and every question would wait for it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// How long the trace of a node that has left is kept. Its score is that much lower than the time
/// of leaving that it is removed together with leases.
const TRACE_KEPT: Duration = Duration::from_secs(60);

/// How long a node may stay subscribed after it has given up its lease.
const LEAVING: Duration = Duration::from_secs(5);

/// The minimum time between two log lines about nodes without a lease, or about the loss of the own
/// one.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// This node's view of the cluster.
pub(super) struct Membership {
    outgoing: Arc<Outgoing>,
    /// The settings on which all nodes have to agree: dialect, parser, and whether they sign.
    settings: Box<str>,
    /// Where this node is reached.
    address: Option<Box<str>>,
    state: Mutex<State>,
    pub(super) peers: Peers,
    metrics: MembershipMetrics,
    /// About the loss of the own lease.
    lost: Warnings,
    /// About a refusal to renew it.
    refused: Warnings,
    /// About nodes without a lease.
    without_lease: Warnings,
}

#[derive(Default)]
struct State {
    /// The leases at the last reading.
    leases: Arc<Leases>,
    clock: Option<RedisClock>,
    /// The lease was given back and is not renewed.
    has_left: bool,
    /// How many nodes have left a moment ago.
    leaving: usize,
    /// Redis has the lease, as far as this node knows.
    is_held: bool,
    /// Which settings others have, and whether this node is not ready for it.
    disagreement: Option<(Arc<str>, bool)>,
}

/// The leases as they were read.
pub(super) struct Reading {
    /// When that was, in milliseconds of Redis's clock.
    pub(super) now: u64,
    pub(super) held: Value,
}

impl Membership {
    pub(super) fn new(
        outgoing: Arc<Outgoing>,
        settings: Box<str>,
        address: Option<&str>,
        metrics: MembershipMetrics,
    ) -> Self {
        Self {
            outgoing,
            settings,
            address: address.map(Into::into),
            state: Mutex::default(),
            peers: Peers::default(),
            metrics,
            lost: Warnings::every(WARNING_INTERVAL),
            refused: Warnings::every(WARNING_INTERVAL),
            without_lease: Warnings::every(WARNING_INTERVAL),
        }
    }

    /// Renews the lease and reads those of the others, Redis's clock and the members of
    /// `namespace`. Returns the estimated number of Node servers among these. All commands
    /// leave in one write, because each command that is sent alone wakes Redis by itself.
    pub(super) async fn renew(&self, namespace: Option<&str>) -> Result<usize, PublishError> {
        let renewed = self.try_renew(namespace).await;
        if let Err(error) = &renewed {
            self.metrics.nodes.set(0);
            self.metrics.foreign.set(0);
            if let PublishError::Refused(reason) = error {
                // The leases of the others lapse for the same reason.
                self.peers.keep();
                self.refused.warn(|_| {
                    tracing::warn!(%reason, "Redis refuses the lease of this node, so others may take it for dead");
                });
            }
        }
        renewed
    }

    async fn try_renew(&self, namespace: Option<&str>) -> Result<usize, PublishError> {
        let counting = namespace.map(|namespace| self.count(namespace, self.leases()));
        let counting = OptionFuture::from(counting);
        let (held, counted, read) = join3(self.hold(), counting, self.read_leases()).await;
        held?;
        read?;
        let (Some(namespace), Some(counted)) = (namespace, counted) else {
            return Ok(0);
        };
        let mut counted = counted?;
        let leases = self.leases();
        if !counted.leases.has_nodes_of(&leases) {
            // Nodes have joined or left in between, and were counted as foreign.
            counted = self.count(namespace, leases).await?;
        }
        let foreign = counted.roster().foreign;
        self.metrics.foreign.set(gauge(foreign));
        // A node of ours that leaves gives up its lease first, and is subscribed a while longer.
        Ok(foreign.saturating_sub(self.state.lock().leaving))
    }

    /// Extends the lease, and removes those that expired long ago.
    async fn hold(&self) -> Result<(), PublishError> {
        let clock = {
            let state = self.state.lock();
            state.clock.filter(|_| !state.has_left)
        };
        let Some(clock) = clock else {
            return Ok(());
        };
        let key = self.channels().leases();
        let now = clock.now();
        let end = (now + LEASE_SECONDS * 1000).to_string();
        let forgotten = now.saturating_sub(millis(FORGOTTEN_AFTER)).to_string();
        let stated = self.stated();
        let renew = ["ZADD", &key, &end, self.node().as_str(), &end, &stated];
        let clean = ["ZREMRANGEBYSCORE", &key, "-inf", &forgotten];
        let route = Route::Key(&key);
        let renewed = self.outgoing.command(&renew, route);
        let cleaned = self.outgoing.command(&clean, route);
        let (renewed, _) = try_join(renewed, cleaned).await?;
        self.held(&renewed);
        Ok(())
    }

    /// The lease is renewed, with this reply: how many of its entries Redis did not have.
    fn held(&self, renewed: &[Value]) {
        let added = renewed.first().and_then(Value::integer).unwrap_or(0);
        let was_held = std::mem::replace(&mut self.state.lock().is_held, true);
        if !was_held || added == 0 {
            return;
        }
        self.metrics.lost.inc();
        self.peers.keep();
        self.lost.warn(|_| {
            tracing::warn!(
                "Redis has lost this node's lease, which is written again: does Redis evict keys, or has it \
                 lost its data?"
            );
        });
    }

    /// Reads the leases of all nodes and Redis's clock.
    pub(super) async fn read_leases(&self) -> Result<Option<Reading>, PublishError> {
        let key = &self.channels().leases();
        let command = membership::leases(self.channels());
        let held = self.outgoing.command(&command, Route::Key(key));
        let time = self.outgoing.command(&membership::TIME, Route::Key(key));
        let (held, time) = (held.await?, time.await?);
        let (Some(held), Some(time)) = (held.into_iter().next(), time.first()) else {
            return Ok(None);
        };
        let now = membership::read_time(time);
        let Some(leases) = membership::read_leases(&held, time) else {
            return Ok(None);
        };
        self.metrics.nodes.set(gauge(leases.alive()));
        if let Some(now) = now {
            self.compare_settings(&held, now);
        }
        let reading = now.map(|now| Reading { now, held });
        if let (Some(signer), Some(now)) = (&self.outgoing.signer, now) {
            signer.set_time(now);
        }
        let mut state = self.state.lock();
        state.leases = Arc::new(leases);
        state.clock = now.map(RedisClock::read).or(state.clock);
        state.leaving = reading.as_ref().map_or(0, Reading::leaving);
        let is_held = state.is_held && !state.has_left;
        drop(state);
        if let Some(Reading { now, held }) = reading.as_ref().filter(|_| self.address.is_some()) {
            // After the leases, so that a node that is found is among the nodes that are alive,
            // except for those that are kept.
            let stated = stated(held, *now).map(|(_, rest)| rest);
            let left: Vec<_> = entries(held)
                .filter_map(|(name, _)| name.strip_prefix(TRACE))
                .collect();
            let is_lost = is_held && !entries(held).any(|(name, _)| name == self.node().as_str());
            let missing = Missing {
                is_lost,
                left: &left,
            };
            self.peers.replace(self.node(), stated, missing);
        }
        Ok(reading)
    }

    /// Returns the leases at the last reading.
    pub(super) fn leases(&self) -> Arc<Leases> {
        Arc::clone(&self.state.lock().leases)
    }

    /// Counts the subscribers of a namespace, among these leases and in total. Except in a Redis
    /// Cluster, the command is enqueued when this returns.
    pub(super) fn count(
        &self,
        namespace: &str,
        leases: Arc<Leases>,
    ) -> impl Future<Output = Result<Counted, PublishError>> + Send + use<> {
        let channels = self.channels().clone();
        let command = membership::subscribers(&channels, namespace, &leases);
        let counting = self.outgoing.command(&command, Route::AllServers);
        async move {
            let replies = counting.await?;
            let counted = membership::count(&channels, &leases, &replies);
            counted.ok_or_else(|| PublishError::Unconfirmed("an unexpected reply to PUBSUB".into()))
        }
    }

    /// Gives the lease back, for good. A trace of it stays, because a Node server may just have
    /// counted this node.
    pub(super) async fn leave(&self) -> Result<(), PublishError> {
        let clock = {
            let mut state = self.state.lock();
            state.has_left = true;
            state.clock
        };
        let key = self.channels().leases();
        let trace = clock.map(|clock| {
            let score = clock.now().saturating_sub(trace_offset());
            let name = format!("{TRACE}{}", self.node());
            let trace = ["ZADD", &key, &score.to_string(), &name];
            self.outgoing.command(&trace, Route::Key(&key))
        });
        let stated = self.stated();
        let remove = ["ZREM", &key, self.node().as_str(), &stated];
        let removed = self.outgoing.command(&remove, Route::Key(&key));
        let (_, removed) = join(OptionFuture::from(trace), removed).await;
        removed.map(drop)
    }

    /// The entry that this node writes next to its lease.
    fn stated(&self) -> String {
        let node = peers::stated(self.node(), self.address.as_deref());
        format!("{SETTINGS}{}:{node}", self.settings)
    }

    /// Returns why this node is not ready, if others have other settings. Nodes of
    /// different settings do not understand each other. Those whose settings most nodes
    /// have are ready, because one wrong node must not stop a cluster.
    pub(super) fn disagreement(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        let disagreement = state.disagreement.as_ref();
        disagreement.and_then(|(reason, is_serious)| is_serious.then(|| Arc::clone(reason)))
    }

    fn compare_settings(&self, held: &Value, now: u64) {
        let mut others = HashMap::<&str, usize>::new();
        let (mut own, mut disagreeing) = (0, 0);
        for (settings, _) in stated(held, now) {
            if settings == &*self.settings {
                own += 1;
            } else {
                *others.entry(settings).or_default() += 1;
                disagreeing += 1;
            }
        }
        self.metrics.disagreeing.set(gauge(disagreeing));
        let most = others.into_iter().max_by_key(|(_, nodes)| *nodes);
        let found = most.map(|(settings, nodes)| {
            let reason = format!(
                "{nodes} nodes with this prefix use {settings}, and {own} use {} like this one",
                self.settings
            );
            (Arc::<str>::from(reason), nodes >= own)
        });
        let mut state = self.state.lock();
        let is_news = state.disagreement != found;
        state.disagreement.clone_from(&found);
        drop(state);
        if let Some((reason, _)) = found
            && is_news
        {
            tracing::error!(%reason, "nodes of this cluster do not understand each other");
        }
    }

    /// Nodes have answered a question and have no lease, as far as this node sees.
    pub(super) fn found_without_lease(&self, nodes: &[NodeId]) {
        let Some(node) = nodes.first() else {
            return;
        };
        self.metrics.without_lease.inc_by(nodes.len() as u64);
        self.without_lease.warn(|_| {
            tracing::warn!(
                %node,
                "a node answers and has no lease here: does its Redis URL name another database?"
            );
        });
    }

    /// Returns the time of Redis's clock.
    pub(super) fn time(&self) -> Option<Duration> {
        let clock = self.state.lock().clock?;
        Some(Duration::from_millis(clock.now()))
    }

    /// Returns the name of this node.
    pub(super) fn node(&self) -> &NodeId {
        &self.outgoing.node
    }

    fn channels(&self) -> &Channels {
        self.outgoing.wire.channels()
    }
}

/// The members of one namespace.
pub(super) struct MembersOf<'a> {
    pub(super) membership: &'a Membership,
    pub(super) namespace: &'a str,
}

impl Members for MembersOf<'_> {
    type Error = PublishError;

    async fn leases(&self) -> Result<Arc<Leases>, PublishError> {
        self.membership.read_leases().await?;
        Ok(self.membership.leases())
    }

    fn count(
        &self,
        leases: Arc<Leases>,
    ) -> impl Future<Output = Result<Counted, PublishError>> + Send {
        self.membership.count(self.namespace, leases)
    }
}

impl Reading {
    /// Returns how many nodes have left a moment ago.
    fn leaving(&self) -> usize {
        let recent = self.now.saturating_sub(millis(LEAVING));
        let entries = self.entries();
        let left = entries.filter(|(name, time)| name.starts_with(TRACE) && *time >= recent);
        left.count()
    }

    /// Returns the names with the ends of their leases. For names that begin with [`TRACE`] it is
    /// the time of leaving.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        let entries = entries(&self.held).filter(|(name, _)| !name.starts_with(SETTINGS));
        entries.map(|(name, time)| {
            let is_trace = name.starts_with(TRACE);
            let offset = if is_trace { trace_offset() } else { 0 };
            (name, time.saturating_add(offset))
        })
    }
}

/// The names and scores of a reply.
fn entries(held: &Value) -> impl Iterator<Item = (&str, u64)> {
    let pairs = held.pairs().unwrap_or_default().into_iter();
    pairs.filter_map(|(name, time)| Some((name.text()?, time.number()? as u64)))
}

/// The statements of nodes with a valid lease: their settings, and the text after these.
fn stated(held: &Value, now: u64) -> impl Iterator<Item = (&str, &str)> {
    entries(held).filter_map(move |(name, end)| {
        let stated = name.strip_prefix(SETTINGS).filter(|_| end > now);
        stated?.split_once(':')
    })
}

/// The settings that nodes must have in common, in one word.
pub(super) fn settings(dialect: Dialect, parser: Parser, is_signed: bool) -> Box<str> {
    let format = match (dialect, parser) {
        (Dialect::Classic, Parser::Msgpack) => "classic-msgpack",
        (Dialect::Classic, Parser::Json) => "classic-json",
        (Dialect::Sharded(Mode::Static), _) => "sharded-static",
        (Dialect::Sharded(Mode::Dynamic), _) => "sharded-dynamic",
        (Dialect::Sharded(Mode::DynamicPrivate), _) => "sharded-dynamic-private",
        (Dialect::Streams, _) => "streams",
    };
    let signed = if is_signed { "-signed" } else { "" };
    [format, signed].concat().into()
}

/// How much lower than the time of leaving the score of a trace is.
pub(super) fn trace_offset() -> u64 {
    millis(FORGOTTEN_AFTER - TRACE_KEPT)
}
