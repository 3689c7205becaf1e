//! The servers of a subscriber: one, or with sharded pub/sub in a cluster every primary, each with
//! the names of its slots.
//!
//! ```text
//!   server: MOVED, slot taken away, unreachable
//!        │ outdated
//!        ▼
//!   keeper of the map (emitter) ── each reading ──▶ Router::follow ──▶ names move to the server
//!        ▲                                             │               of their slot
//!        └────── not confirmed within MOVE_TIMEOUT ────┴── all confirmed ──▶ Gap
//! ```
//!
//! The crate's cluster client would replay all channels of a server in one command, so names are
//! routed here. Messages published on a slot while it moves may be lost, which is a gap, too.

use std::{
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::try_join_all;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use roomcast_emitter::{
    redis::{Address, Cluster, ClusterMap, Endpoint},
    vital::vital,
};
use roomcast_protocol::channel::slot;
use tokio::{sync::Notify, task::JoinHandle, time};

use super::{
    ConfirmError, Counts, DownReason, Priority, Sink, SubscriberConfig, SubscriberEvent,
    SubscriberState,
    server::{ServerSubscriber, Target},
    subscriptions::SubscriptionKind,
};

/// How long a server may keep serving a slot that another one has taken over: the default of
/// `cluster-node-timeout`. Probes prove nothing about slots other than their own.
const MOVE_MARGIN: Duration = Duration::from_secs(15);

/// How long names may take to be confirmed on their new server before the map is read again.
const MOVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handle of a subscriber. Clones are handles of the same subscriber, which ends with the last of
/// them.
///
/// A cluster delivers plain channels through each of its nodes, so one connection is enough. With
/// sharded pub/sub a channel is delivered where its slot is, and each primary has a connection.
#[derive(Clone)]
pub struct Subscriber {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    router: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    kind: SubscriptionKind,
    /// The keeper of the map of a cluster.
    cluster: Option<Cluster>,
    routes: Mutex<Routes>,
    /// The routes have changed.
    routed: Notify,
}

#[derive(Default)]
struct Routes {
    /// The server of all names, unless they are routed by slot.
    only: Option<ServerSubscriber>,
    map: Arc<ClusterMap>,
    primaries: HashMap<Address, ServerSubscriber>,
    /// Names whose slot no known server serves.
    unrouted: HashMap<Arc<str>, Priority>,
    /// Counts the changes of the map.
    generation: u64,
    is_closed: bool,
}

impl Subscriber {
    /// Starts the connections on the runtime of the caller. Messages of one channel are in order,
    /// those of different channels only where there is one connection.
    pub fn start(endpoint: Endpoint, config: SubscriberConfig, sink: impl Sink) -> Self {
        let (config, sink) = (Arc::new(config), Arc::new(sink));
        let cluster = config.is_sharded.then(|| endpoint.cluster()).flatten();
        let shared = Arc::new(Shared {
            kind: config.kind(),
            cluster: cluster.clone(),
            routes: Mutex::default(),
            routed: Notify::new(),
        });
        let router = match cluster {
            Some(cluster) => {
                let router = Router {
                    endpoint,
                    cluster,
                    config,
                    sink,
                    shared: Arc::clone(&shared),
                    moving: HashSet::new(),
                    gap_from: None,
                };
                Some(tokio::spawn(vital("sharded subscriber", router.run())))
            }
            None => {
                let target = Target {
                    endpoint,
                    address: None,
                    probe_channel: (config.probe_channel)(0),
                };
                let only = ServerSubscriber::start(target, config, Box::new(|| ()), sink);
                shared.routes.lock().only = Some(only);
                None
            }
        };
        let router = Mutex::new(router);
        Self {
            owner: Arc::new(Owner { shared, router }),
        }
    }

    /// Subscribes to channels. Those that are already subscribed are ignored.
    pub fn subscribe(&self, priority: Priority, names: impl IntoIterator<Item = Arc<str>>) {
        let shared = &self.owner.shared;
        let mut routes = shared.routes.lock();
        if let Some(only) = &routes.only {
            only.subscribe(shared.kind, priority, names);
            return;
        }
        if routes.is_closed {
            return;
        }
        for name in names {
            routes.subscribe(priority, name);
        }
        if !routes.unrouted.is_empty() {
            shared.outdated();
        }
    }

    /// Unsubscribes from channels.
    pub fn unsubscribe(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        let shared = &self.owner.shared;
        let mut routes = shared.routes.lock();
        if let Some(only) = &routes.only {
            only.unsubscribe(shared.kind, names);
            return;
        }
        for name in names {
            let name = name.as_ref();
            if routes.unrouted.remove(name).is_none()
                && let Some(server) = routes.server_of(name)
            {
                server.unsubscribe(shared.kind, [name]);
            }
        }
    }

    /// Subscribes to all channels that the pattern matches. Returns `false` if there are no
    /// patterns, as in sharded pub/sub.
    pub fn subscribe_pattern(&self, pattern: Arc<str>) -> bool {
        let shared = &self.owner.shared;
        match &shared.routes.lock().only {
            Some(only) if shared.kind == SubscriptionKind::Channel => {
                only.subscribe(SubscriptionKind::Pattern, Priority::Pattern, [pattern]);
                true
            }
            _ => false,
        }
    }

    /// Unsubscribes from a pattern.
    pub fn unsubscribe_pattern(&self, pattern: &str) {
        if let Some(only) = &self.owner.shared.routes.lock().only {
            only.unsubscribe(SubscriptionKind::Pattern, [pattern]);
        }
    }

    /// Resolves once Redis has confirmed the last change of each of these channels: wanted ones are
    /// subscribed, and others are unsubscribed. Waits across reconnects, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// Redis refuses one of the names, did not confirm them in time, or the subscriber is closed.
    pub async fn confirm(
        &self,
        names: Vec<Arc<str>>,
        timeout: Duration,
    ) -> Result<(), ConfirmError> {
        let confirming = self.owner.shared.confirm(names);
        let confirmed = time::timeout(timeout, confirming).await;
        confirmed.unwrap_or(Err(ConfirmError::TimedOut))
    }

    /// Like [`Self::confirm`], for a pattern. Resolves at once if there are no patterns.
    ///
    /// # Errors
    ///
    /// As [`Self::confirm`].
    pub async fn confirm_pattern(
        &self,
        pattern: Arc<str>,
        timeout: Duration,
    ) -> Result<(), ConfirmError> {
        let kind = SubscriptionKind::Pattern;
        let confirming = {
            let routes = self.owner.shared.routes.lock();
            let only = routes.only.as_ref();
            only.map(|only| only.confirm(kind, vec![pattern]))
        };
        let Some(confirming) = confirming else {
            return Ok(());
        };
        let confirmed = time::timeout(timeout, confirming).await;
        confirmed.unwrap_or(Err(ConfirmError::TimedOut))
    }

    /// Whether Redis has confirmed the channel on the present connection.
    pub fn is_confirmed(&self, name: &str) -> bool {
        let shared = &self.owner.shared;
        let routes = shared.routes.lock();
        let server = routes.server_of(name);
        server.is_some_and(|server| server.is_confirmed(shared.kind, name))
    }

    /// Whether messages arrive over all connections. If not, why not over one of them.
    pub fn state(&self) -> SubscriberState {
        let shared = &self.owner.shared;
        let routes = shared.routes.lock();
        let down = |reason| SubscriberState::Down { reason };
        if routes.is_closed {
            return down(DownReason::Stopped);
        }
        let states = routes.servers().map(ServerSubscriber::state);
        // The worst of them.
        let state = states.max_by_key(|state| match state {
            SubscriberState::Up { probe_round_trip } => *probe_round_trip,
            SubscriberState::Down { .. } => Duration::MAX,
        });
        let failure = shared.cluster.as_ref().and_then(Cluster::failure);
        match (state, failure) {
            (Some(state), _) if routes.unrouted.is_empty() => state,
            (_, Some(failure)) => down(DownReason::Unreachable((*failure).into())),
            (Some(_), None) => down(DownReason::Unreachable(
                "no server serves some of the slots".into(),
            )),
            (None, None) => down(DownReason::Starting),
        }
    }

    /// The state of the names, in numbers, summed over all connections. Includes the probes'
    /// channels.
    pub fn counts(&self) -> Counts {
        let routes = self.owner.shared.routes.lock();
        let unrouted = Counts {
            desired: routes.unrouted.len(),
            ..Counts::default()
        };
        let counts = routes.servers().map(ServerSubscriber::counts);
        counts.fold(unrouted, |sum, counts| Counts {
            desired: sum.desired + counts.desired,
            confirmed: sum.confirmed + counts.confirmed,
            refused: sum.refused + counts.refused,
            batches: sum.batches + counts.batches,
        })
    }

    /// Closes all connections. Calls that wait for confirmations return an error.
    pub async fn close(&self) {
        for task in self.owner.stop() {
            // It was aborted, which is the only possible error.
            let _ = task.await;
        }
    }
}

impl Owner {
    fn stop(&self) -> Vec<JoinHandle<()>> {
        let router = self.router.lock().take();
        if let Some(router) = &router {
            router.abort();
        }
        let mut routes = self.shared.routes.lock();
        routes.is_closed = true;
        routes.unrouted = HashMap::new();
        routes.generation += 1;
        let stopped = routes.servers().filter_map(ServerSubscriber::stop);
        let stopped = stopped.chain(router).collect();
        drop(routes);
        self.shared.routed.notify_waiters();
        stopped
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Routes {
    fn servers(&self) -> impl Iterator<Item = &ServerSubscriber> {
        self.only.iter().chain(self.primaries.values())
    }

    fn server_of(&self, name: &str) -> Option<&ServerSubscriber> {
        match &self.only {
            Some(only) => Some(only),
            None => self.primaries.get(self.map.owner(slot(name))?),
        }
    }

    /// Routes a name of a cluster.
    fn subscribe(&mut self, priority: Priority, name: Arc<str>) {
        match self.server_of(&name) {
            Some(server) => server.subscribe(SubscriptionKind::Shard, priority, [name]),
            None => {
                self.unrouted.insert(name, priority);
            }
        }
    }

    /// Follows a new map. Returns the names that have moved or are subscribed once more, and the
    /// servers that are no longer needed.
    fn follow(
        &mut self,
        map: Arc<ClusterMap>,
        config: &SubscriberConfig,
        start: impl Fn(&Address, Arc<str>) -> ServerSubscriber,
    ) -> (Vec<Arc<str>>, Vec<ServerSubscriber>) {
        let has_changed = self.map != map;
        let mut before = mem::take(&mut self.primaries);
        let mut closing = Vec::new();
        for range in map.ranges() {
            if self.primaries.contains_key(&range.primary) {
                continue;
            }
            let serves = |channel: &str| map.owner(slot(channel)) == Some(&range.primary);
            if let Some(server) = before.remove(&range.primary) {
                if serves(server.probe_channel()) {
                    self.primaries.insert(range.primary.clone(), server);
                    continue;
                }
                // Its probe has moved, so it could no longer watch itself.
                closing.push(server);
            }
            let probe_channel = (config.probe_channel)(range.last);
            // A prefix with a hash tag has all names in one slot, and other servers have none.
            if serves(&probe_channel) {
                let server = start(&range.primary, probe_channel);
                self.primaries.insert(range.primary.clone(), server);
            }
        }
        closing.extend(before.into_values());
        self.map = map;
        self.generation += 1;
        let moved = self.take_moved(&closing, has_changed);
        let mut names: Vec<_> = moved.iter().map(|(name, _)| Arc::clone(name)).collect();
        for (name, priority) in moved {
            self.subscribe(priority, name);
        }
        for server in self.primaries.values() {
            names.extend(server.ask_again());
        }
        (names, closing)
    }

    /// Takes the names from servers that do not serve them.
    fn take_moved(
        &mut self,
        closing: &[ServerSubscriber],
        has_changed: bool,
    ) -> Vec<(Arc<str>, Priority)> {
        let mut moved: Vec<_> = mem::take(&mut self.unrouted).into_iter().collect();
        for server in closing {
            moved.extend(server.wanted());
        }
        for (address, server) in self.primaries.iter().filter(|_| has_changed) {
            let mut wanted = server.wanted();
            wanted.retain(|(name, _)| self.map.owner(slot(name)) != Some(address));
            let names = wanted.iter().map(|(name, _)| name);
            server.unsubscribe(SubscriptionKind::Shard, names);
            moved.append(&mut wanted);
        }
        moved
    }
}

impl Shared {
    fn outdated(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.outdated();
        }
    }

    async fn confirm(&self, names: Vec<Arc<str>>) -> Result<(), ConfirmError> {
        loop {
            let routed = self.routed.notified();
            let (generation, confirming) = {
                let routes = self.routes.lock();
                if routes.is_closed {
                    return Err(ConfirmError::Closed);
                }
                (routes.generation, self.confirming(&routes, &names))
            };
            let Some(confirming) = confirming else {
                routed.await;
                continue;
            };
            let confirmed = tokio::select! {
                confirmed = try_join_all(confirming) => confirmed,
                () = routed => continue,
            };
            // Names that have moved were settled on their old server, which proves nothing.
            if self.routes.lock().generation == generation {
                return confirmed.map(drop);
            }
        }
    }

    /// The confirmations of the servers of these names. `None` if a name has no server.
    fn confirming(
        &self,
        routes: &Routes,
        names: &[Arc<str>],
    ) -> Option<Vec<impl Future<Output = Result<(), ConfirmError>> + Send + use<> + 'static>> {
        if let Some(only) = &routes.only {
            return Some(vec![only.confirm(self.kind, names.to_vec())]);
        }
        let mut by_server: HashMap<&Address, Vec<Arc<str>>> = HashMap::new();
        for name in names {
            if routes.unrouted.contains_key(name) {
                return None;
            }
            if let Some(address) = routes.map.owner(slot(name)) {
                by_server.entry(address).or_default().push(Arc::clone(name));
            }
        }
        let confirming = by_server.into_iter().filter_map(|(address, names)| {
            let server = routes.primaries.get(address)?;
            Some(server.confirm(self.kind, names))
        });
        Some(confirming.collect())
    }
}

/// Follows the map of a cluster.
struct Router {
    endpoint: Endpoint,
    cluster: Cluster,
    config: Arc<SubscriberConfig>,
    sink: Arc<dyn Sink>,
    shared: Arc<Shared>,
    /// Names that have moved and are not confirmed on their new server.
    moving: HashSet<Arc<str>>,
    /// Since when messages on these names may be lost.
    gap_from: Option<SystemTime>,
}

impl Router {
    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut readings = self.cluster.watch();
        // The first reading may have come before.
        readings.mark_changed();
        // The keeper lives as long as its handle here.
        while readings.changed().await.is_ok() {
            let map = Arc::clone(&readings.borrow_and_update());
            self.follow(map);
            if self.moving.is_empty() {
                continue;
            }
            let names = self.moving.iter().cloned().collect();
            let confirming = time::timeout(MOVE_TIMEOUT, shared.confirm(names));
            tokio::select! {
                Ok(Ok(())) = confirming => self.has_moved(),
                // The new server does not serve them either, or not yet.
                _ = readings.changed() => readings.mark_changed(),
                else => self.cluster.outdated(),
            }
        }
    }

    fn has_moved(&mut self) {
        self.moving = HashSet::new();
        if let Some(from) = self.gap_from.take() {
            let to = SystemTime::now().max(from);
            self.sink.event(SubscriberEvent::Gap { from, to });
        }
    }

    /// Moves names to their servers.
    fn follow(&mut self, map: Arc<ClusterMap>) {
        let mut routes = self.shared.routes.lock();
        if routes.is_closed {
            return;
        }
        // Proofs from before the move: later ones prove nothing about names that have moved.
        let proof = routes
            .servers()
            .filter_map(ServerSubscriber::last_proof)
            .min();
        let (names, closing) = routes.follow(map, &self.config, |address, probe_channel| {
            self.start(address, probe_channel)
        });
        let is_routed = routes.unrouted.is_empty();
        drop(routes);
        self.shared.routed.notify_waiters();
        if !is_routed {
            self.cluster.outdated();
        }
        if !names.is_empty()
            && let Some(proof) = proof
        {
            let from = proof.checked_sub(MOVE_MARGIN);
            let from = from.unwrap_or(SystemTime::UNIX_EPOCH);
            self.gap_from = Some(self.gap_from.map_or(from, |before| before.min(from)));
        }
        self.moving.extend(names);
        drop(closing);
    }

    fn start(&self, address: &Address, probe_channel: Arc<str>) -> ServerSubscriber {
        let cluster = self.cluster.clone();
        let moved = Box::new(move || cluster.outdated());
        let target = Target {
            endpoint: self.endpoint.clone(),
            address: Some(address.clone()),
            probe_channel,
        };
        let (config, sink) = (Arc::clone(&self.config), Arc::clone(&self.sink));
        ServerSubscriber::start(target, config, moved, sink)
    }
}
