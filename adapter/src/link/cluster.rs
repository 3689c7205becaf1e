//! Sharded pub/sub over a Redis cluster: one link per primary, each name where its slot is.
//!
//! When a server says that it does not serve a name, or cannot be reached, the map of the cluster
//! is fetched anew and names move. What was published on a slot while it moved may be lost: that
//! is a gap, too.

use std::{
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::try_join_all;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use roomcast_emitter::{
    backoff::Backoff,
    endpoint::{Address, ClusterMap, Endpoint},
};
use roomcast_protocol::channel::slot;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{self, Instant},
};

use super::{
    ConfirmError, Counts, DownReason, LinkEvent, LinkState, Priority, Sink, Subscriber,
    SubscriberConfig, SubscribersConfig, SubscriptionKind,
};

/// A server may go on serving a slot this long after another has taken it over: the default of
/// `cluster-node-timeout`. Probes say nothing about slots other than their own.
const MOVE_MARGIN: Duration = Duration::from_secs(15);

/// How long names may take to be confirmed where they have moved to before the map is fetched
/// anew.
const MOVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handle of the links to all primaries of a cluster. Clones are handles of the same links, which
/// end with the last of them.
#[derive(Clone)]
pub(super) struct ClusterLinks {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    routes: Mutex<Routes>,
    /// The map may have changed.
    stale: Notify,
    /// The routes have changed.
    routed: Notify,
}

#[derive(Default)]
struct Routes {
    map: ClusterMap,
    links: HashMap<Address, Link>,
    /// Names whose slot nobody serves, as far as is known.
    unrouted: HashMap<Arc<str>, Priority>,
    /// Counts the changes of the map.
    generation: u64,
    is_closed: bool,
    /// Why there is no map, or the present one cannot be renewed.
    failure: Option<DownReason>,
}

struct Link {
    subscriber: Subscriber,
    probe_channel: Arc<str>,
}

impl ClusterLinks {
    /// Starts the links to a cluster, on the runtime of the caller. Each link has a clone of the
    /// sink; messages of one channel are in order, those of different slots need not be.
    pub(super) fn start(
        endpoint: Endpoint,
        config: SubscribersConfig,
        sink: impl Sink + Clone + Sync,
    ) -> Self {
        let shared = Arc::new(Shared {
            routes: Mutex::new(Routes::default()),
            stale: Notify::new(),
            routed: Notify::new(),
        });
        shared.stale.notify_one();
        let router = Router {
            endpoint,
            config,
            sink,
            shared: Arc::clone(&shared),
            moving: HashSet::new(),
            gap_from: None,
        };
        let task = Mutex::new(Some(tokio::spawn(router.run())));
        Self {
            owner: Arc::new(Owner { shared, task }),
        }
    }

    /// Wants these channels from now on.
    pub(super) fn subscribe(&self, priority: Priority, names: impl IntoIterator<Item = Arc<str>>) {
        let mut routes = self.owner.shared.routes.lock();
        if routes.is_closed {
            return;
        }
        for name in names {
            routes.subscribe(priority, name);
        }
        if !routes.unrouted.is_empty() {
            self.owner.shared.stale.notify_one();
        }
    }

    /// Does not want these channels any more.
    pub(super) fn unsubscribe(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        let mut routes = self.owner.shared.routes.lock();
        for name in names {
            let name = name.as_ref();
            if routes.unrouted.remove(name).is_none()
                && let Some(link) = routes.link_of(name)
            {
                link.unsubscribe(SubscriptionKind::Shard, [name]);
            }
        }
    }

    /// Resolves once Redis has confirmed the last change of each of these channels. Waits across
    /// reconnects and moves, no longer than `timeout`.
    pub(super) fn confirmed(
        &self,
        names: Vec<Arc<str>>,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), ConfirmError>> + Send + use<> + 'static {
        let shared = Arc::clone(&self.owner.shared);
        async move {
            let confirming = shared.confirmed(&names, timeout);
            time::timeout(timeout, confirming)
                .await
                .unwrap_or(Err(ConfirmError::TimedOut))
        }
    }

    /// Whether messages arrive from all primaries; if not, why not from one of them.
    pub(super) fn state(&self) -> LinkState {
        let routes = self.owner.shared.routes.lock();
        if routes.is_closed {
            return LinkState::Down {
                reason: DownReason::Stopped,
            };
        }
        let starting = LinkState::Down {
            reason: DownReason::Starting,
        };
        let failed = routes
            .failure
            .clone()
            .map(|reason| LinkState::Down { reason });
        if routes.links.is_empty() || !routes.unrouted.is_empty() {
            return failed.unwrap_or(starting);
        }
        let states = routes
            .links
            .values()
            .map(|link| link.subscriber.state().borrow().clone());
        states.reduce(worse).unwrap_or(starting)
    }

    /// Whether Redis has confirmed that the channel is subscribed.
    pub(super) fn is_confirmed(&self, name: &str) -> bool {
        let routes = self.owner.shared.routes.lock();
        let link = routes.link_of(name);
        link.is_some_and(|link| link.is_confirmed(SubscriptionKind::Shard, name))
    }

    /// How many connections the present links have made.
    pub(super) fn connections(&self) -> u64 {
        let routes = self.owner.shared.routes.lock();
        routes
            .links
            .values()
            .map(|link| link.subscriber.connections())
            .sum()
    }

    /// How the links stand with their channels, in sum.
    pub(super) fn counts(&self) -> Counts {
        let routes = self.owner.shared.routes.lock();
        let unrouted = Counts {
            desired: routes.unrouted.len(),
            ..Counts::default()
        };
        routes.links.values().fold(unrouted, |sum, link| {
            let counts = link.subscriber.counts();
            Counts {
                desired: sum.desired + counts.desired,
                confirmed: sum.confirmed + counts.confirmed,
                queued: sum.queued + counts.queued,
                unconfirmed_commands: sum.unconfirmed_commands + counts.unconfirmed_commands,
                commands: sum.commands + counts.commands,
            }
        })
    }

    /// Closes all connections and resolves when the sinks have been dropped.
    pub(super) async fn close(&self) {
        let (task, links) = self.owner.stop();
        if let Some(task) = task {
            // It was aborted, which is the only error there is.
            let _ = task.await;
        }
        for link in links {
            link.subscriber.close().await;
        }
    }
}

impl Owner {
    fn stop(&self) -> (Option<JoinHandle<()>>, Vec<Link>) {
        let task = self.task.lock().take();
        if let Some(task) = &task {
            task.abort();
        }
        let mut routes = self.shared.routes.lock();
        routes.is_closed = true;
        routes.unrouted = HashMap::new();
        routes.generation += 1;
        let links = mem::take(&mut routes.links);
        drop(routes);
        self.shared.routed.notify_waiters();
        (task, links.into_values().collect())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The state of two links together.
fn worse(one: LinkState, other: LinkState) -> LinkState {
    match (one, other) {
        (
            LinkState::Up {
                since,
                last_probe_round_trip,
            },
            LinkState::Up {
                since: other_since,
                last_probe_round_trip: other_round_trip,
            },
        ) => LinkState::Up {
            since: since.max(other_since),
            last_probe_round_trip: last_probe_round_trip.max(other_round_trip),
        },
        (down @ LinkState::Down { .. }, _) | (_, down) => down,
    }
}

impl Routes {
    fn link_of(&self, name: &str) -> Option<&Subscriber> {
        let address = self.map.owner(slot(name))?;
        self.links.get(address).map(|link| &link.subscriber)
    }

    fn subscribe(&mut self, priority: Priority, name: Arc<str>) {
        match self.link_of(&name) {
            Some(link) => link.subscribe(SubscriptionKind::Shard, priority, [name]),
            None => {
                self.unrouted.insert(name, priority);
            }
        }
    }

    /// Follows a new map. Answers the names that have moved or are asked for once more, and the
    /// links that are not needed any more.
    fn follow(
        &mut self,
        map: ClusterMap,
        config: &SubscribersConfig,
        start: impl Fn(&Address, SubscriberConfig) -> Link,
    ) -> (Vec<Arc<str>>, Vec<Link>) {
        let has_changed = self.map != map;
        let mut before = mem::take(&mut self.links);
        let mut closing = Vec::new();
        for range in map.ranges() {
            if self.links.contains_key(&range.primary) {
                continue;
            }
            let serves = |channel: &str| map.owner(slot(channel)) == Some(&range.primary);
            let link = before.remove(&range.primary);
            if let Some(link) = link {
                if serves(&link.probe_channel) {
                    self.links.insert(range.primary.clone(), link);
                    continue;
                }
                // A link whose probe has moved away could not watch itself any more.
                closing.push(link);
            }
            let config = config.of_link(range.last, SubscriptionKind::Shard);
            // A prefix with a hash tag has all names in one slot: other servers have none of them.
            if serves(&config.probe_channel) {
                let link = start(&range.primary, config);
                self.links.insert(range.primary.clone(), link);
            }
        }
        closing.extend(before.into_values());
        self.map = map;
        self.generation += 1;
        let moved = self.moved(&closing, has_changed);
        let mut names: Vec<_> = moved.iter().map(|(name, _)| Arc::clone(name)).collect();
        for (name, priority) in moved {
            self.subscribe(priority, name);
        }
        for link in self.links.values() {
            names.extend(link.subscriber.ask_again());
        }
        (names, closing)
    }

    /// Takes the names from links that do not serve them.
    fn moved(&mut self, closing: &[Link], has_changed: bool) -> Vec<(Arc<str>, Priority)> {
        let mut moved: Vec<_> = mem::take(&mut self.unrouted).into_iter().collect();
        for link in closing {
            moved.extend(link.subscriber.wanted());
        }
        for (address, link) in self.links.iter().filter(|_| has_changed) {
            let mut wanted = link.subscriber.wanted();
            wanted.retain(|(name, _)| self.map.owner(slot(name)) != Some(address));
            let names = wanted.iter().map(|(name, _)| name);
            link.subscriber.unsubscribe(SubscriptionKind::Shard, names);
            moved.append(&mut wanted);
        }
        moved
    }
}

impl Shared {
    async fn confirmed(&self, names: &[Arc<str>], timeout: Duration) -> Result<(), ConfirmError> {
        loop {
            let routed = self.routed.notified();
            let (generation, is_routed, confirming) = {
                let routes = self.routes.lock();
                if routes.is_closed {
                    return Err(ConfirmError::Closed);
                }
                let is_routed = !names.iter().any(|name| routes.unrouted.contains_key(name));
                (
                    routes.generation,
                    is_routed,
                    routes.confirming(names, timeout),
                )
            };
            if !is_routed {
                routed.await;
                continue;
            }
            let confirmed = tokio::select! {
                confirmed = try_join_all(confirming) => confirmed,
                () = routed => continue,
            };
            // Names that have moved meanwhile are settled where they were, and that says nothing.
            if self.routes.lock().generation == generation {
                return confirmed.map(drop);
            }
        }
    }
}

impl Routes {
    fn confirming(
        &self,
        names: &[Arc<str>],
        timeout: Duration,
    ) -> Vec<impl Future<Output = Result<(), ConfirmError>> + Send + use<> + 'static> {
        let mut of_link: HashMap<&Address, Vec<Arc<str>>> = HashMap::new();
        for name in names {
            if let Some(address) = self.map.owner(slot(name)) {
                of_link.entry(address).or_default().push(Arc::clone(name));
            }
        }
        let links = of_link.into_iter().filter_map(|(address, names)| {
            let link = &self.links.get(address)?.subscriber;
            Some(link.confirmed(SubscriptionKind::Shard, names, timeout))
        });
        links.collect()
    }
}

/// Fetches the map and follows it.
struct Router<S> {
    endpoint: Endpoint,
    config: SubscribersConfig,
    sink: S,
    shared: Arc<Shared>,
    /// Names that have moved and are not confirmed where they are now.
    moving: HashSet<Arc<str>>,
    /// Since when messages on such names may be lost.
    gap_from: Option<SystemTime>,
}

impl<S: Sink + Clone + Sync> Router<S> {
    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut backoff = Backoff::default();
        loop {
            shared.stale.notified().await;
            let began = Instant::now();
            if self.refresh().await {
                backoff.reset();
            } else {
                shared.stale.notify_one();
            }
            // Links call while they cannot connect, however often they try.
            time::sleep_until(began + backoff.next_delay()).await;
        }
    }

    /// Moves names to where the cluster says they belong. False if it is to be tried again.
    async fn refresh(&mut self) -> bool {
        let map = match self.endpoint.cluster_map(None).await {
            Ok(map) => map.unwrap_or_default(),
            Err(error) => {
                let failure = DownReason::Unreachable(error.to_string().into());
                self.shared.routes.lock().failure = Some(failure);
                return false;
            }
        };
        let is_routed = self.follow(map);
        if self.moving.is_empty() {
            return is_routed;
        }
        let shared = Arc::clone(&self.shared);
        let names: Vec<_> = self.moving.iter().cloned().collect();
        let is_confirmed = tokio::select! {
            confirmed = time::timeout(MOVE_TIMEOUT, shared.confirmed(&names, MOVE_TIMEOUT)) => {
                matches!(confirmed, Ok(Ok(())))
            }
            // A server does not serve them either, or not yet.
            () = shared.stale.notified() => false,
        };
        if is_confirmed {
            self.moving = HashSet::new();
            if let Some(from) = self.gap_from.take() {
                let to = SystemTime::now().max(from);
                self.sink.event(LinkEvent::Gap { from, to });
            }
        }
        is_confirmed
    }

    /// Moves names to where they belong now; answers whether all have a place.
    fn follow(&mut self, map: ClusterMap) -> bool {
        let mut routes = self.shared.routes.lock();
        if routes.is_closed {
            return true;
        }
        // The proofs of before the move: later ones say nothing about what has moved.
        let proofs = routes
            .links
            .values()
            .filter_map(|link| link.subscriber.last_proof())
            .min();
        let (names, closing) = routes.follow(map, &self.config, |address, config| {
            self.start(address, config)
        });
        routes.failure = (!routes.unrouted.is_empty())
            .then(|| DownReason::Unreachable("nobody serves some of the slots".into()));
        let is_routed = routes.unrouted.is_empty();
        drop(routes);
        self.shared.routed.notify_waiters();
        if !names.is_empty()
            && let Some(proof) = proofs
        {
            let from = proof
                .checked_sub(MOVE_MARGIN)
                .unwrap_or(SystemTime::UNIX_EPOCH);
            self.gap_from = Some(self.gap_from.map_or(from, |before| before.min(from)));
        }
        self.moving.extend(names);
        drop(closing);
        is_routed
    }

    fn start(&self, address: &Address, config: SubscriberConfig) -> Link {
        let probe_channel = Arc::clone(&config.probe_channel);
        let shared = Arc::downgrade(&self.shared);
        let moved = Box::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.stale.notify_one();
            }
        });
        let (endpoint, sink) = (self.endpoint.clone(), self.sink.clone());
        let address = address.clone();
        let subscriber = Subscriber::start_to(endpoint, address, slot, moved, config, sink);
        Link {
            subscriber,
            probe_channel,
        }
    }
}
