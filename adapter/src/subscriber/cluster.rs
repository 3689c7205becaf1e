//! Sharded pub/sub over a Redis cluster: one subscriber per primary, each name where its slot is.
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

const KIND: SubscriptionKind = SubscriptionKind::Shard;

/// How long a server may keep serving a slot that another one has taken over: the default of
/// `cluster-node-timeout`. Probes prove nothing about slots other than their own.
const MOVE_MARGIN: Duration = Duration::from_secs(15);

/// How long names may take to be confirmed on their new server before the map is read again.
const MOVE_TIMEOUT: Duration = Duration::from_secs(5);

const UNSERVED: &str = "nobody serves some of the slots";

/// The subscribers of all primaries of a cluster. They end when it is dropped.
pub(super) struct ClusterSubscriber {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// The keeper of the map.
    cluster: Cluster,
    routes: Mutex<Routes>,
    /// The routes have changed.
    routed: Notify,
}

#[derive(Default)]
struct Routes {
    map: Arc<ClusterMap>,
    servers: HashMap<Address, ServerSubscriber>,
    /// Names whose slot no known server serves.
    unrouted: HashMap<Arc<str>, Priority>,
    /// Counts the changes of the map.
    generation: u64,
    is_closed: bool,
}

impl ClusterSubscriber {
    pub(super) fn start(
        endpoint: Endpoint,
        cluster: Cluster,
        config: Arc<SubscriberConfig>,
        sink: Arc<dyn Sink>,
    ) -> Self {
        let shared = Arc::new(Shared {
            cluster,
            routes: Mutex::new(Routes::default()),
            routed: Notify::new(),
        });
        let router = Router {
            endpoint,
            config,
            sink,
            shared: Arc::clone(&shared),
            moving: HashSet::new(),
            gap_from: None,
        };
        let task = Mutex::new(Some(tokio::spawn(vital(
            "sharded subscriber",
            router.run(),
        ))));
        Self { shared, task }
    }

    pub(super) fn subscribe(&self, priority: Priority, names: impl IntoIterator<Item = Arc<str>>) {
        let mut routes = self.shared.routes.lock();
        if routes.is_closed {
            return;
        }
        for name in names {
            routes.subscribe(priority, name);
        }
        if !routes.unrouted.is_empty() {
            self.shared.cluster.outdated();
        }
    }

    pub(super) fn unsubscribe(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        let mut routes = self.shared.routes.lock();
        for name in names {
            let name = name.as_ref();
            if routes.unrouted.remove(name).is_none()
                && let Some(server) = routes.server_of(name)
            {
                server.unsubscribe(KIND, [name]);
            }
        }
    }

    /// Resolves once Redis has confirmed the last change of each channel. Waits across reconnects
    /// and moves, at most for `timeout`.
    pub(super) async fn confirm(
        &self,
        names: Vec<Arc<str>>,
        timeout: Duration,
    ) -> Result<(), ConfirmError> {
        let confirming = self.shared.confirm(&names, timeout);
        let confirmed = time::timeout(timeout, confirming).await;
        confirmed.unwrap_or(Err(ConfirmError::TimedOut))
    }

    pub(super) fn state(&self) -> SubscriberState {
        let routes = self.shared.routes.lock();
        let down = |reason| SubscriberState::Down { reason };
        if routes.is_closed {
            return down(DownReason::Stopped);
        }
        let states = routes.servers.values().map(ServerSubscriber::state);
        match states.reduce(worse) {
            Some(state) if routes.unrouted.is_empty() => state,
            state => down(match (self.shared.cluster.failure(), state) {
                (Some(failure), _) => DownReason::Unreachable((*failure).into()),
                (None, Some(_)) => DownReason::Unreachable(UNSERVED.into()),
                (None, None) => DownReason::Starting,
            }),
        }
    }

    pub(super) fn is_confirmed(&self, name: &str) -> bool {
        let routes = self.shared.routes.lock();
        let server = routes.server_of(name);
        server.is_some_and(|server| server.is_confirmed(KIND, name))
    }

    pub(super) fn counts(&self) -> Counts {
        let routes = self.shared.routes.lock();
        let unrouted = Counts {
            desired: routes.unrouted.len(),
            ..Counts::default()
        };
        let counts = routes.servers.values().map(ServerSubscriber::counts);
        counts.fold(unrouted, |sum, counts| Counts {
            desired: sum.desired + counts.desired,
            confirmed: sum.confirmed + counts.confirmed,
            refused: sum.refused + counts.refused,
            queued: sum.queued + counts.queued,
            unconfirmed_batches: sum.unconfirmed_batches + counts.unconfirmed_batches,
            batches: sum.batches + counts.batches,
        })
    }

    pub(super) async fn close(&self) {
        let (task, servers) = self.stop();
        if let Some(task) = task {
            // It was aborted, which is the only possible error.
            let _ = task.await;
        }
        for server in servers {
            server.close().await;
        }
    }

    fn stop(&self) -> (Option<JoinHandle<()>>, Vec<ServerSubscriber>) {
        let task = self.task.lock().take();
        if let Some(task) = &task {
            task.abort();
        }
        let mut routes = self.shared.routes.lock();
        routes.is_closed = true;
        routes.unrouted = HashMap::new();
        routes.generation += 1;
        let servers = mem::take(&mut routes.servers);
        drop(routes);
        self.shared.routed.notify_waiters();
        (task, servers.into_values().collect())
    }
}

impl Drop for ClusterSubscriber {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The state of two servers together.
fn worse(one: SubscriberState, other: SubscriberState) -> SubscriberState {
    match (one, other) {
        (
            SubscriberState::Up {
                since,
                last_probe_round_trip,
            },
            SubscriberState::Up {
                since: other_since,
                last_probe_round_trip: other_round_trip,
            },
        ) => SubscriberState::Up {
            since: since.max(other_since),
            last_probe_round_trip: last_probe_round_trip.max(other_round_trip),
        },
        (down @ SubscriberState::Down { .. }, _) | (_, down) => down,
    }
}

impl Routes {
    fn server_of(&self, name: &str) -> Option<&ServerSubscriber> {
        self.servers.get(self.map.owner(slot(name))?)
    }

    fn subscribe(&mut self, priority: Priority, name: Arc<str>) {
        match self.server_of(&name) {
            Some(server) => server.subscribe(KIND, priority, [name]),
            None => {
                self.unrouted.insert(name, priority);
            }
        }
    }

    /// Follows a new map. Returns the names that have moved or are asked for once more, and the
    /// servers that are not needed any more.
    fn follow(
        &mut self,
        map: Arc<ClusterMap>,
        config: &SubscriberConfig,
        start: impl Fn(&Address, Arc<str>) -> ServerSubscriber,
    ) -> (Vec<Arc<str>>, Vec<ServerSubscriber>) {
        let has_changed = self.map != map;
        let mut before = mem::take(&mut self.servers);
        let mut closing = Vec::new();
        for range in map.ranges() {
            if self.servers.contains_key(&range.primary) {
                continue;
            }
            let serves = |channel: &str| map.owner(slot(channel)) == Some(&range.primary);
            if let Some(server) = before.remove(&range.primary) {
                if serves(server.probe_channel()) {
                    self.servers.insert(range.primary.clone(), server);
                    continue;
                }
                // Its probe has moved away, so it could not watch itself any more.
                closing.push(server);
            }
            let probe_channel = (config.probe_channel)(range.last);
            // A prefix with a hash tag has all names in one slot, and other servers have none.
            if serves(&probe_channel) {
                let server = start(&range.primary, probe_channel);
                self.servers.insert(range.primary.clone(), server);
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
        for server in self.servers.values() {
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
        for (address, server) in self.servers.iter().filter(|_| has_changed) {
            let mut wanted = server.wanted();
            wanted.retain(|(name, _)| self.map.owner(slot(name)) != Some(address));
            server.unsubscribe(KIND, wanted.iter().map(|(name, _)| name));
            moved.append(&mut wanted);
        }
        moved
    }

    fn confirming(
        &self,
        names: &[Arc<str>],
        timeout: Duration,
    ) -> Vec<impl Future<Output = Result<(), ConfirmError>> + Send + use<> + 'static> {
        let mut by_server: HashMap<&Address, Vec<Arc<str>>> = HashMap::new();
        for name in names {
            if let Some(address) = self.map.owner(slot(name)) {
                by_server.entry(address).or_default().push(Arc::clone(name));
            }
        }
        let confirming = by_server.into_iter().filter_map(|(address, names)| {
            let server = self.servers.get(address)?;
            Some(server.confirm(KIND, names, timeout))
        });
        confirming.collect()
    }
}

impl Shared {
    async fn confirm(&self, names: &[Arc<str>], timeout: Duration) -> Result<(), ConfirmError> {
        loop {
            let routed = self.routed.notified();
            let (generation, confirming) = {
                let routes = self.routes.lock();
                if routes.is_closed {
                    return Err(ConfirmError::Closed);
                }
                let is_routed = !names.iter().any(|name| routes.unrouted.contains_key(name));
                let confirming = is_routed.then(|| routes.confirming(names, timeout));
                (routes.generation, confirming)
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
}

/// Follows the map.
struct Router {
    endpoint: Endpoint,
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
        let mut readings = shared.cluster.watch();
        // The first reading may have come before.
        readings.mark_changed();
        // The keeper lives as long as its handle in `shared`.
        while readings.changed().await.is_ok() {
            let map = Arc::clone(&readings.borrow_and_update());
            self.follow(map);
            if self.moving.is_empty() {
                continue;
            }
            let names: Vec<_> = self.moving.iter().cloned().collect();
            let confirming = time::timeout(MOVE_TIMEOUT, shared.confirm(&names, MOVE_TIMEOUT));
            tokio::select! {
                Ok(Ok(())) = confirming => self.has_moved(),
                // The new server does not serve them either, or not yet.
                _ = readings.changed() => readings.mark_changed(),
                else => shared.cluster.outdated(),
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
        let servers = routes.servers.values();
        let proof = servers.filter_map(ServerSubscriber::last_proof).min();
        let (names, closing) = routes.follow(map, &self.config, |address, probe_channel| {
            self.start(address, probe_channel)
        });
        let is_routed = routes.unrouted.is_empty();
        drop(routes);
        self.shared.routed.notify_waiters();
        if !is_routed {
            self.shared.cluster.outdated();
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
        let cluster = self.shared.cluster.clone();
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
