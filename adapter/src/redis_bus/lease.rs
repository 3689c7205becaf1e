//! The lease of this node, and the leases of the others as of a moment ago.
//!
//! Times are those of Redis, so that the clocks of the nodes do not matter. A node that stops to
//! renew its lease is not waited for any more once it is over.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::{OptionFuture, join, join3, try_join};
use roomcast_emitter::{
    members::{LEASE_SECONDS, RENEWAL_SECONDS},
    publisher::{PublishError, Route},
    roll_call,
    value::Value,
};
use tokio::time::{self, Instant};

use super::Shared;

/// How long the lease of a node that has gone without a word is kept, for others to name it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// What the names begin with under which nodes that have left stand among the leases, with the time at
/// which they did. Nobody has such a name, so nobody waits for them.
pub(super) const TRACE: &str = "left:";

/// What a look at the leases has shown.
pub(super) struct Look {
    /// When it was, in milliseconds of Redis's clock.
    pub(super) now: u64,
    pub(super) held: Value,
}

/// What Redis's clock shows, reckoned from an earlier look at it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RedisClock {
    looked: Instant,
    millis: u64,
}

impl RedisClock {
    /// From the answer to TIME.
    pub(super) fn read(answer: &Value, now: Instant) -> Option<Self> {
        Some(Self {
            looked: now,
            millis: roll_call::read_time(answer)?,
        })
    }

    pub(super) fn now(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.looked).as_millis();
        self.millis
            .saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// Renews the lease every second until the bus is closed.
pub(super) async fn keep(shared: Weak<Shared>) {
    let mut ticks = time::interval(Duration::from_secs(RENEWAL_SECONDS));
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        // The link reports its own troubles; the lease is renewed when it is back.
        if let Err(error) = shared.renew().await {
            tracing::debug!(%error, "the lease was not renewed");
            shared.metrics.nodes.set(0);
            shared.metrics.foreign.set(0);
        }
    }
}

impl Shared {
    /// Renews the lease, and looks at those of the others, at Redis's clock and at who is a member. All of
    /// it is said at once: the first command may wake Redis by itself, the others do together.
    pub(super) async fn renew(&self) -> Result<(), PublishError> {
        let mut namespaces = self.namespaces.all();
        namespaces.sort_unstable_by(|a, b| a.namespace.cmp(&b.namespace));
        let first = namespaces.first().map(|first| &*first.namespace);
        let counting = first.map(|first| self.count(first, self.recent_leases()));
        let counting = OptionFuture::from(counting);
        let said = join3(self.hold(), counting, self.look_at_leases()).await;
        let (held, counted, looked) = said;
        held?;
        looked?;
        let (Some(first), Some(counted)) = (first, counted) else {
            return Ok(());
        };
        // For the metric: servers of other make in one namespace.
        let mut counted = counted?;
        let leases = self.recent_leases();
        if !counted.leases.has_nodes_of(&leases) {
            // Nodes have come or gone in between, and were counted among the others.
            counted = self.count(first, leases).await?;
        }
        let roster = counted.roster();
        let foreign = i64::try_from(roster.foreign).unwrap_or(i64::MAX);
        self.metrics.foreign.set(foreign);
        Ok(())
    }

    /// Puts the end of the lease off, and forgets those that are long over.
    async fn hold(&self) -> Result<(), PublishError> {
        let clock = *self.clock.lock();
        let Some(clock) = clock.filter(|_| !self.has_retired()) else {
            return Ok(());
        };
        let key = self.wire.channels().leases();
        let now = clock.now(Instant::now());
        let end = (now + LEASE_SECONDS * 1000).to_string();
        let forgotten = now.saturating_sub(millis(FORGOTTEN_AFTER)).to_string();
        let renew = ["ZADD", &key, &end, self.node.as_str()];
        let clean = ["ZREMRANGEBYSCORE", &key, "-inf", &forgotten];
        let route = Route::Key(&key);
        let renewed = self.publisher.command(&renew, route);
        let cleaned = self.publisher.command(&clean, route);
        try_join(renewed, cleaned).await.map(drop)
    }

    /// Looks at the leases of all nodes, and at Redis's clock.
    pub(super) async fn look_at_leases(&self) -> Result<Option<Look>, PublishError> {
        let key = &self.wire.channels().leases();
        let command = roll_call::leases(self.wire.channels());
        let held = self.publisher.command(&command, Route::Key(key));
        let time = self.publisher.command(&roll_call::TIME, Route::Key(key));
        let (held, time) = (held.await?, time.await?);
        let (Some(held), Some(time)) = (held.into_iter().next(), time.first()) else {
            return Ok(None);
        };
        if let Some(clock) = RedisClock::read(time, Instant::now()) {
            *self.clock.lock() = Some(clock);
        }
        let Some(leases) = roll_call::read_leases(&held, time) else {
            return Ok(None);
        };
        let alive = i64::try_from(leases.alive()).unwrap_or(i64::MAX);
        self.metrics.nodes.set(alive);
        *self.leases.lock() = Arc::new(leases);
        Ok(roll_call::read_time(time).map(|now| Look { now, held }))
    }

    /// Gives the lease back. A trace of it stays, since somebody may just have counted the node.
    pub(super) async fn release(&self) -> Result<(), PublishError> {
        let key = self.wire.channels().leases();
        let clock = *self.clock.lock();
        let trace = clock.map(|clock| {
            let now = clock.now(Instant::now()).to_string();
            let name = format!("{TRACE}{}", self.node);
            self.publisher
                .command(&["ZADD", &key, &now, &name], Route::Key(&key))
        });
        let removed = self
            .publisher
            .command(&["ZREM", &key, self.node.as_str()], Route::Key(&key));
        let (_, removed) = join(OptionFuture::from(trace), removed).await;
        removed.map(drop)
    }
}

impl Look {
    /// The names with the end of their leases; beginning with [`TRACE`], with the time of leaving.
    pub(super) fn held(&self) -> impl Iterator<Item = (&str, u64)> {
        let pairs = self.held.list().unwrap_or_default().chunks_exact(2);
        pairs.filter_map(|pair| {
            let time: f64 = pair[1].text()?.parse().ok()?;
            Some((pair[0].text()?, time as u64))
        })
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_redis_goes_on_between_two_looks() {
        let text = |text: &str| Value::Bytes(text.as_bytes().into());
        let start = Instant::now();
        let answer = Value::List(vec![text("1700000000"), text("250000")]);
        let clock = RedisClock::read(&answer, start).unwrap();
        assert_eq!(clock.now(start), 1_700_000_000_250);
        let later = start + Duration::from_millis(1500);
        assert_eq!(clock.now(later), 1_700_000_001_750);
        assert!(RedisClock::read(&Value::Nil, start).is_none());
    }
}
