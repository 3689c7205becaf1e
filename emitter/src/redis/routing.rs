//! Commands to a cluster: the node for each, and the handling of moved slots.
//!
//! Classic channels reach all nodes through any one of them, so a single link carries them. Sharded
//! channels and keys need a link to the owner of the slot, which is opened when it is first needed.
//!
//! ```text
//!             ┌────────────── MOVED: new owner ──────────────┐
//!   command ──▶ owner by the map ── reply ──▶ other reply: done
//!             ▲                      └─ ASK: ASKING + command at that node
//!             └── next map ◀── CLUSTERDOWN, TRYAGAIN
//! ```
//!
//! All of these replies mean that the command was not executed, so nothing is executed twice. An
//! attempt without a reply is never repeated.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use redis::Value;
use roomcast_protocol::channel::slot;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time,
};

use super::{
    cluster::Cluster,
    commands::Commands,
    connect::Endpoint,
    link::{Destination, Link, Pending},
    outcome::{Outcome, PublishError, PublisherConfig, PublisherState, PublisherStats, accepted},
    redirect::Redirect,
    slots::ClusterMap,
    url::Address,
};
use crate::vital::vital;

/// Redirections that a command follows before it fails.
const MAX_REDIRECTIONS: u32 = 3;

/// How long a command waits for a map with an owner for its slot.
const MAP_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands that are no longer awaited but still follow redirections. Further ones end with
/// their first attempt.
const MAX_ABANDONED: usize = 1024;

/// The most primaries; Redis recommends no more than a thousand nodes.
const MAX_LINKS: usize = 1024;

/// Which server of a cluster gets a command. Elsewhere there is only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// Any.
    Any,
    /// The owner of the key.
    Key(&'a str),
    /// The owner of the sharded channel.
    Channel(&'a str),
    /// All primaries and replicas that can be reached; each sends a reply.
    AllServers,
}

/// The links to a cluster.
#[derive(Debug)]
pub(super) struct Routes {
    links: Arc<Links>,
    state: watch::Sender<PublisherState>,
    upkeep: AbortHandle,
}

#[derive(Debug)]
struct Links {
    endpoint: Endpoint,
    config: PublisherConfig,
    stats: Arc<PublisherStats>,
    cluster: Cluster,
    /// Carries all classic channels; `None` if the channels are sharded.
    any: Option<Arc<Link>>,
    open: Mutex<BTreeMap<Address, Arc<Link>>>,
    /// A link went up or down.
    changed: Arc<Notify>,
    runtime: Handle,
    abandoned: Mutex<JoinSet<()>>,
}

impl Routes {
    pub(super) fn start(
        endpoint: &Endpoint,
        config: PublisherConfig,
        stats: &Arc<PublisherStats>,
    ) -> Self {
        let changed = Arc::<Notify>::default();
        let any = (!endpoint.is_sharded()).then(|| {
            Arc::new(Link::start(
                Destination::Endpoint(endpoint.clone()),
                config.clone(),
                None,
                Arc::clone(stats),
                Some(Arc::clone(&changed)),
            ))
        });
        let links = Arc::new(Links {
            endpoint: endpoint.clone(),
            config,
            stats: Arc::clone(stats),
            cluster: endpoint.cluster().expect("the endpoint is a cluster"),
            any,
            open: Mutex::default(),
            changed,
            runtime: Handle::current(),
            abandoned: Mutex::default(),
        });
        let state = watch::Sender::new(PublisherState::Down("not connected yet".into()));
        let upkeep = tokio::spawn(vital("publishers", keep(Arc::clone(&links), state.clone())));
        Self {
            links,
            state,
            upkeep: upkeep.abort_handle(),
        }
    }

    pub(super) fn state(&self) -> watch::Receiver<PublisherState> {
        self.state.subscribe()
    }

    /// The link that carries all channels, if they are not sharded.
    pub(super) fn any(&self) -> Option<&Arc<Link>> {
        self.links.any.as_ref()
    }

    /// Enqueues the command at once; the future follows redirections.
    pub(super) fn send(&self, command: Commands, route: Route<'_>) -> Receiving {
        match route {
            Route::Key(name) | Route::Channel(name) => self.send_to_slot(command, slot(name)),
            Route::Any | Route::AllServers => Receiving::Plain(match self.links.any_or_working() {
                Some(link) => link.send(command),
                None => Pending::failed(self.links.no_primary()),
            }),
        }
    }

    /// Publishes with a command whose second word is the sharded channel.
    pub(super) fn publish(&self, words: &[&[u8]]) -> Receiving {
        let channel = words
            .get(1)
            .and_then(|channel| str::from_utf8(channel).ok());
        self.send_to_slot(Commands::one(words), channel.map_or(0, slot))
    }

    fn send_to_slot(&self, command: Commands, slot: u16) -> Receiving {
        let attempts = Attempts {
            links: Arc::clone(&self.links),
            slot,
            command,
        };
        let first = attempts.send_to_owner();
        Receiving::Routed(Routed {
            links: Arc::clone(&self.links),
            following: Some(Box::pin(attempts.follow(first))),
        })
    }

    /// Sends the command to each server that can be reached. Replicas are servers, too: a
    /// client may have subscribed there.
    pub(super) fn send_to_all(
        &self,
        command: Commands,
    ) -> impl Future<Output = Result<Vec<Value>, PublishError>> + Send + use<> {
        let links = Arc::clone(&self.links);
        async move {
            let map = links.known_map(|map| !map.ranges().is_empty()).await;
            let servers = map.servers().into_iter().take(MAX_LINKS);
            let pending: Vec<_> = servers
                .map(|server| links.to(server).send(command.clone()))
                .collect();
            let mut replies = Vec::with_capacity(pending.len());
            let mut failure = links.no_primary();
            for pending in pending {
                match accepted(pending.await) {
                    Ok(reply) => replies.push(reply),
                    Err(error) => failure = error,
                }
            }
            if replies.is_empty() {
                return Err(failure);
            }
            Ok(replies)
        }
    }

    pub(super) async fn close(&self) {
        self.upkeep.abort();
        let open: Vec<_> = self.links.open.lock().values().cloned().collect();
        let mut closing = JoinSet::new();
        for link in open.into_iter().chain(self.links.any.clone()) {
            closing.spawn(async move { link.close().await });
        }
        while closing.join_next().await.is_some() {}
        let closed = PublisherState::Down("the publisher is closed".into());
        self.state.send_replace(closed);
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.upkeep.abort();
        self.links.abandoned.lock().abort_all();
    }
}

impl Links {
    /// The link to a node. It accepts commands at once, also while it connects.
    fn to(&self, address: &Address) -> Arc<Link> {
        let mut open = self.open.lock();
        if let Some(link) = open.get(address) {
            return Arc::clone(link);
        }
        let _runtime = self.runtime.enter();
        let link = Arc::new(Link::start(
            Destination::Node(self.endpoint.clone(), address.clone()),
            self.config.clone(),
            None,
            Arc::clone(&self.stats),
            Some(Arc::clone(&self.changed)),
        ));
        open.insert(address.clone(), Arc::clone(&link));
        link
    }

    fn any_or_working(&self) -> Option<Arc<Link>> {
        if let Some(any) = &self.any {
            return Some(Arc::clone(any));
        }
        let open = self.open.lock();
        let working = open.values().find(|link| link.is_up());
        working.or_else(|| open.values().next()).cloned()
    }

    fn no_primary(&self) -> PublishError {
        let reason = self.cluster.failure();
        PublishError::Unavailable(reason.unwrap_or_else(|| "no primary is known".into()))
    }

    /// The map once it meets the condition, or the latest one after a while.
    async fn known_map(&self, is_known: impl Fn(&ClusterMap) -> bool) -> Arc<ClusterMap> {
        let mut maps = self.cluster.watch();
        let known = maps.wait_for(|map| is_known(map));
        if let Ok(Ok(map)) = time::timeout(MAP_TIMEOUT, known).await {
            return Arc::clone(&map);
        }
        self.cluster.map()
    }

    /// Closes links to nodes that have left the cluster, once all replies have arrived.
    fn retire(&self, map: &ClusterMap) {
        if map.ranges().is_empty() {
            return;
        }
        let servers = map.servers();
        let mut open = self.open.lock();
        let retired = open.extract_if(.., |address, _| !servers.contains(&address));
        for (_, link) in retired {
            self.runtime.spawn(async move { link.close().await });
        }
    }

    fn state(&self, map: &ClusterMap) -> PublisherState {
        if let Some(any) = &self.any {
            return any.state().borrow().clone();
        }
        if let Some(slot) = map.first_gap() {
            let reason = self.cluster.failure();
            let reason = reason.unwrap_or_else(|| format!("no node serves slot {slot}").into());
            return PublisherState::Down(reason);
        }
        let states = map.primaries().into_iter().take(MAX_LINKS);
        let mut states = states.map(|primary| self.to(primary).state().borrow().clone());
        let down = states.find(|state| *state != PublisherState::Up);
        down.unwrap_or(PublisherState::Up)
    }

    fn is_any_down(&self) -> bool {
        let open = self.open.lock();
        open.values().chain(&self.any).any(|link| !link.is_up())
    }
}

/// Follows the map and the links: reports the state, opens and retires links.
async fn keep(links: Arc<Links>, state: watch::Sender<PublisherState>) {
    let mut maps = links.cluster.watch();
    loop {
        let map = maps.borrow_and_update().clone();
        links.retire(&map);
        let now = links.state(&map);
        state.send_if_modified(|before| {
            let is_other = *before != now;
            *before = now;
            is_other
        });
        tokio::select! {
            changed = maps.changed() => if changed.is_err() {
                return;
            },
            () = links.changed.notified() => if links.is_any_down() {
                links.cluster.outdated();
            },
        }
    }
}

/// One command on its way to the owner of a slot.
struct Attempts {
    links: Arc<Links>,
    slot: u16,
    command: Commands,
}

struct Attempt {
    asked: Address,
    map: Arc<ClusterMap>,
    reply: Pending,
}

impl Attempts {
    fn send_to_owner(&self) -> Result<Attempt, PublishError> {
        let map = self.links.cluster.map();
        let Some(owner) = map.owner(self.slot).cloned() else {
            self.links.cluster.outdated();
            let reason = format!("no node is known that serves slot {}", self.slot);
            return Err(PublishError::Unavailable(reason.into()));
        };
        Ok(Attempt {
            reply: self.links.to(&owner).send(self.command.clone()),
            asked: owner,
            map,
        })
    }

    async fn follow(self, first: Result<Attempt, PublishError>) -> Outcome {
        let mut attempt = first?;
        let mut redirections = 0;
        loop {
            let Attempt { asked, map, reply } = attempt;
            let reply = reply.await?;
            redirections += 1;
            attempt = match Redirect::read(&reply, &asked) {
                Some(redirect) if redirections <= MAX_REDIRECTIONS => {
                    self.redirected(redirect, &map).await?
                }
                // One redirection too many is an error like any other.
                _ => return accepted(Ok(reply)),
            };
        }
    }

    async fn redirected(
        &self,
        redirect: Redirect,
        asked_by: &Arc<ClusterMap>,
    ) -> Result<Attempt, PublishError> {
        let cluster = &self.links.cluster;
        match redirect {
            Redirect::Moved { slot, to } => {
                cluster.moved(slot, to.clone());
                Ok(Attempt {
                    reply: self.links.to(&to).send(self.command.clone()),
                    asked: to,
                    map: cluster.map(),
                })
            }
            Redirect::Ask { to } => {
                let link = self.links.to(&to);
                let mut commands = Commands::one(&["ASKING"]);
                commands.append(&self.command);
                Ok(Attempt {
                    reply: link.send_prepared(commands),
                    asked: to,
                    map: cluster.map(),
                })
            }
            Redirect::Down => {
                cluster.outdated();
                let mut maps = cluster.watch();
                let newer = maps.wait_for(|map| !Arc::ptr_eq(map, asked_by));
                if time::timeout(MAP_TIMEOUT, newer).await.is_err() {
                    return Err(PublishError::Unavailable("the cluster is down".into()));
                }
                self.send_to_owner()
            }
        }
    }
}

/// The reply to a command.
#[derive(Debug)]
pub(super) enum Receiving {
    Plain(Pending),
    /// In a cluster, where it may take more than one attempt.
    Routed(Routed),
}

impl Receiving {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome> {
        match self {
            Self::Plain(pending) => Pin::new(pending).poll(context).map(accepted),
            Self::Routed(routed) => routed.poll(context),
        }
    }
}

/// The reply to a command that goes where its slot is. If it is dropped, the command still follows
/// redirections: its caller may only have given up waiting.
pub(super) struct Routed {
    links: Arc<Links>,
    /// `None` once it is done.
    following: Option<Pin<Box<dyn Future<Output = Outcome> + Send>>>,
}

impl Routed {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome> {
        let following = self.following.as_mut().expect("it is not polled again");
        let reply = ready!(following.as_mut().poll(context));
        self.following = None;
        Poll::Ready(reply)
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        let Some(following) = self.following.take() else {
            return;
        };
        let mut abandoned = self.links.abandoned.lock();
        while abandoned.try_join_next().is_some() {}
        if abandoned.len() < MAX_ABANDONED {
            let following = async move { drop(following.await) };
            abandoned.spawn_on(following, &self.links.runtime);
        }
    }
}

impl std::fmt::Debug for Routed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routed").finish_non_exhaustive()
    }
}
