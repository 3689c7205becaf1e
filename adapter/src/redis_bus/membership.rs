//! The nodes of the cluster: this node's lease, the leases of the others, and who is subscribed.
//!
//! A lease is an entry of one sorted set in Redis: the node's name, and when the lease ends by
//! Redis's clock. Because only that clock counts, the nodes' own clocks do not matter. A node that
//! stops renewing its lease is not waited for once it has expired.
//!
//! ```text
//! every second, one write:  ZADD end-of-lease · ZREMRANGEBYSCORE expired
//!                           PUBSUB NUMSUB (for the metric) · ZREVRANGE leases · TIME
//! on leaving:               ZADD left:NODE now · ZREM NODE
//! ```

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::{OptionFuture, join, join3, try_join};
use parking_lot::Mutex;
use redis::Value;
use roomcast_emitter::{
    membership::{self, Counted, LEASE_SECONDS, Leases, Members},
    redis::{PublishError, Reply, Route},
};
use roomcast_protocol::{channel::Channels, id::NodeId};
use tokio::time::Instant;

use super::{
    metrics::{MembershipMetrics, gauge},
    outgoing::Outgoing,
};

/// How long the lease of a node that vanished is kept, so that questions can list it as silent.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Prefix of the entries that nodes leave among the leases when they go, with the time of leaving.
/// No node has such a name, so nobody waits for them.
pub(super) const TRACE: &str = "left:";

/// This node's view of the cluster.
pub(super) struct Membership {
    outgoing: Arc<Outgoing>,
    state: Mutex<State>,
    metrics: MembershipMetrics,
}

#[derive(Default)]
struct State {
    /// The leases as of the last reading.
    leases: Arc<Leases>,
    clock: Option<RedisClock>,
    /// The lease was given back and is not renewed.
    has_left: bool,
}

/// The leases as they were read.
pub(super) struct Reading {
    /// When that was, in milliseconds of Redis's clock.
    pub(super) now: u64,
    pub(super) held: Value,
}

/// Redis's clock, extrapolated from the last reading.
#[derive(Debug, Clone, Copy)]
struct RedisClock {
    read: Instant,
    millis: u64,
}

impl RedisClock {
    /// Reads the reply to TIME.
    fn read(reply: &Value, now: Instant) -> Option<Self> {
        Some(Self {
            read: now,
            millis: membership::read_time(reply)?,
        })
    }

    fn now(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.read);
        self.millis.saturating_add(millis(since))
    }
}

impl Membership {
    pub(super) fn new(outgoing: Arc<Outgoing>, metrics: MembershipMetrics) -> Self {
        Self {
            outgoing,
            state: Mutex::default(),
            metrics,
        }
    }

    /// Renews the lease and reads those of the others, Redis's clock and the members of
    /// `namespace`. All commands leave in one write, because each command that is sent alone wakes
    /// Redis by itself.
    pub(super) async fn renew(&self, namespace: Option<&str>) -> Result<(), PublishError> {
        let renewed = self.try_renew(namespace).await;
        if renewed.is_err() {
            self.metrics.nodes.set(0);
            self.metrics.foreign.set(0);
        }
        renewed
    }

    async fn try_renew(&self, namespace: Option<&str>) -> Result<(), PublishError> {
        let counting = namespace.map(|namespace| self.count(namespace, self.leases()));
        let counting = OptionFuture::from(counting);
        let (held, counted, read) = join3(self.hold(), counting, self.read_leases()).await;
        held?;
        read?;
        let (Some(namespace), Some(counted)) = (namespace, counted) else {
            return Ok(());
        };
        // For the metric: the servers without a lease in one namespace.
        let mut counted = counted?;
        let leases = self.leases();
        if !counted.leases.has_nodes_of(&leases) {
            // Nodes have come or gone in between, and were counted as foreign.
            counted = self.count(namespace, leases).await?;
        }
        self.metrics.foreign.set(gauge(counted.roster().foreign));
        Ok(())
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
        let now = clock.now(Instant::now());
        let end = (now + LEASE_SECONDS * 1000).to_string();
        let forgotten = now.saturating_sub(millis(FORGOTTEN_AFTER)).to_string();
        let renew = ["ZADD", &key, &end, self.node().as_str()];
        let clean = ["ZREMRANGEBYSCORE", &key, "-inf", &forgotten];
        let route = Route::Key(&key);
        let renewed = self.outgoing.command(&renew, route);
        let cleaned = self.outgoing.command(&clean, route);
        try_join(renewed, cleaned).await.map(drop)
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
        let clock = RedisClock::read(time, Instant::now());
        let Some(leases) = membership::read_leases(&held, time) else {
            return Ok(None);
        };
        self.metrics.nodes.set(gauge(leases.alive()));
        let mut state = self.state.lock();
        state.leases = Arc::new(leases);
        state.clock = clock.or(state.clock);
        Ok(clock.map(|clock| Reading {
            now: clock.millis,
            held,
        }))
    }

    /// Returns the leases as of the last reading.
    pub(super) fn leases(&self) -> Arc<Leases> {
        Arc::clone(&self.state.lock().leases)
    }

    /// Counts who is subscribed in a namespace, among these leases and in total. Except in a Redis
    /// Cluster, the command is enqueued when this returns.
    pub(super) fn count(
        &self,
        namespace: &str,
        leases: Arc<Leases>,
    ) -> impl Future<Output = Result<Counted, PublishError>> + Send + use<> {
        let channels = self.channels().clone();
        let command = membership::subscribers(&channels, namespace, &leases);
        let counting = self.outgoing.command(&command, Route::AllPrimaries);
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
            let now = clock.now(Instant::now()).to_string();
            let name = format!("{TRACE}{}", self.node());
            let trace = ["ZADD", &key, &now, &name];
            self.outgoing.command(&trace, Route::Key(&key))
        });
        let remove = ["ZREM", &key, self.node().as_str()];
        let removed = self.outgoing.command(&remove, Route::Key(&key));
        let (_, removed) = join(OptionFuture::from(trace), removed).await;
        removed.map(drop)
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
    /// Returns the names with the ends of their leases. For names that begin with [`TRACE`] it is
    /// the time of leaving.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        let pairs = self.held.pairs().unwrap_or_default().into_iter();
        pairs.filter_map(|(name, time)| Some((name.text()?, time.number()? as u64)))
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_redis_goes_on_between_two_readings() {
        let text = |text: &str| Value::BulkString(text.into());
        let start = Instant::now();
        let reply = Value::Array(vec![text("1700000000"), text("250000")]);
        let clock = RedisClock::read(&reply, start).unwrap();
        assert_eq!(clock.now(start), 1_700_000_000_250);
        let later = start + Duration::from_millis(1500);
        assert_eq!(clock.now(later), 1_700_000_001_750);
        assert!(RedisClock::read(&Value::Nil, start).is_none());
    }
}
