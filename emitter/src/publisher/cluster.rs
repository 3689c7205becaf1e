//! Commands to a cluster: which node gets which, and what to do when slots move.
//!
//! A task, the keeper, owns the map of slots and the links; senders see its latest view. Classic
//! channels reach all nodes through any one of them, so one link carries them; sharded channels
//! need a link to each primary.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{self, MissedTickBehavior},
};

use super::{
    Later, PublishError, PublisherState, PublisherStats, Reply, Route, accepted,
    attempts::{Attempts, Following, REDIRECTION_TIMEOUT},
};
use crate::{
    endpoint::{Address, ClusterMap, ConnectError, Endpoint},
    link::{Destination, Link, LinkConfig, LinkError, LinkState, Pending},
    resp,
    value::Value,
};
use roomcast_protocol::channel::slot;

/// How often the keeper looks whether the map has to be read again.
const TICK: Duration = Duration::from_millis(250);

/// After how many ticks the map is read again while something is wrong with it.
const TICKS_WHILE_DOWN: u32 = 4;

/// After how many ticks it is read again anyway.
const TICKS_WHILE_UP: u32 = 120;

/// How many hints may wait for the keeper. Who finds no room, hints at nothing new.
const MAX_HINTS: usize = 256;

/// How many commands that nobody waits for are followed at a time; others are left where they are.
const MAX_ABANDONED: usize = 1024;

/// The most primaries that are talked to. Redis recommends no more than a thousand nodes.
const MAX_LINKS: usize = 1024;

#[derive(Debug)]
pub(super) struct Cluster {
    view: watch::Receiver<Arc<View>>,
    hints: mpsc::Sender<Hint>,
    /// Reaches all nodes; none if each primary has its link anyway.
    any: Option<Arc<Link>>,
    state: watch::Sender<PublisherState>,
    keeper: AbortHandle,
}

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) version: u64,
    pub(super) map: ClusterMap,
    /// To primaries, once they are wanted.
    pub(super) links: BTreeMap<Address, Arc<Link>>,
    /// Whether all primaries have links.
    is_complete: bool,
}

/// What senders tell the keeper.
pub(super) enum Hint {
    Moved {
        slot: u16,
        to: Address,
    },
    /// A link to this node is needed.
    Wanted(Address),
    /// Links to all primaries are needed from now on.
    AllWanted,
    /// The map is wrong.
    Outdated,
    /// Nobody waits any more for a command that is on its way.
    Abandoned(Following),
}

impl Cluster {
    pub(super) fn start(
        endpoint: Endpoint,
        config: LinkConfig,
        map: ClusterMap,
        stats: &Arc<PublisherStats>,
    ) -> Self {
        let changed = Arc::<Notify>::default();
        let any = (!endpoint.is_sharded()).then(|| {
            Arc::new(Link::start(
                Destination::Endpoint(endpoint.clone()),
                config.clone(),
                None,
                stats.clone(),
                Some(changed.clone()),
            ))
        });
        let down = PublisherState::Down("not connected yet".into());
        let state = watch::Sender::new(down);
        let (view_sender, view) = watch::channel(Arc::default());
        let (hints, hints_receiver) = mpsc::channel(MAX_HINTS);
        let mut keeper = Keeper {
            wants_all: any.is_none(),
            any: any.clone(),
            endpoint,
            config,
            stats: stats.clone(),
            changed,
            guests: Vec::new(),
            retired: JoinSet::new(),
            abandoned: JoinSet::new(),
            failure: None,
            view: view_sender,
            state: state.clone(),
        };
        if map != ClusterMap::default() {
            keeper.install(map);
        }
        Self {
            view,
            hints,
            any,
            state,
            keeper: tokio::spawn(keeper.run(hints_receiver)).abort_handle(),
        }
    }

    pub(super) fn state(&self) -> watch::Receiver<PublisherState> {
        self.state.subscribe()
    }

    /// The link that carries all channels, if they are not sharded.
    pub(super) fn any(&self) -> Option<&Arc<Link>> {
        self.any.as_ref()
    }

    /// Queues the command at once; the future follows redirections.
    pub(super) fn send<A: AsRef<[u8]>>(&self, args: &[A], route: Route<'_>) -> Reply {
        let slot = match route {
            Route::Key(name) | Route::Channel(name) => slot(name),
            Route::Any | Route::AllPrimaries => return Reply::Plain(self.send_to_any(args)),
        };
        let mut command = Vec::with_capacity(resp::encoded_len(args));
        resp::encode_command(&mut command, args);
        let attempts = Attempts::new(self.view.clone(), self.hints.clone(), slot, command);
        Reply::Routed(attempts.start())
    }

    fn send_to_any<A: AsRef<[u8]>>(&self, args: &[A]) -> Pending {
        if let Some(any) = &self.any {
            return any.send(args);
        }
        let view = self.view.borrow().clone();
        let link = view.links.values().find(|link| link.is_up());
        link.or_else(|| view.links.values().next()).map_or_else(
            || Pending::failed(LinkError::Unavailable("no primary is known".into())),
            |link| link.send(args),
        )
    }

    /// Says the command to each primary that can be reached.
    pub(super) fn send_to_all<A: AsRef<[u8]>>(&self, args: &[A]) -> Later {
        let mut command = Vec::with_capacity(resp::encoded_len(args));
        resp::encode_command(&mut command, args);
        let mut view = self.view.clone();
        let hints = self.hints.clone();
        Later(Box::pin(async move {
            let is_complete = view.borrow().is_complete;
            if !is_complete {
                let _ = hints.try_send(Hint::AllWanted);
                let complete = view.wait_for(|view| view.is_complete);
                // If it takes too long, those are asked that there are.
                let _ = time::timeout(REDIRECTION_TIMEOUT, complete).await.is_ok();
            }
            let links: Vec<_> = view.borrow().links.values().cloned().collect();
            for link in links.iter().filter(|link| link.is_starting()) {
                until_up(link).await;
            }
            let pending: Vec<_> = links
                .iter()
                .map(|link| link.send_encoded(None, &command))
                .collect();
            let mut replies = Vec::with_capacity(pending.len());
            let mut failure = PublishError::Unavailable("no primary is known".into());
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
        }))
    }

    pub(super) async fn close(&self) {
        self.keeper.abort();
        let view = self.view.borrow().clone();
        let mut closing = JoinSet::new();
        for link in view.links.values().chain(&self.any) {
            let link = Arc::clone(link);
            closing.spawn(async move { link.close().await });
        }
        while closing.join_next().await.is_some() {}
        let closed = PublisherState::Down("the publisher has been closed".into());
        self.state.send_replace(closed);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Gives a new link the time to connect.
pub(super) async fn until_up(link: &Link) {
    let mut state = link.state();
    let up = state.wait_for(|state| *state == LinkState::Up);
    // If it is not, sending tells why.
    let _ = time::timeout(REDIRECTION_TIMEOUT, up).await.is_ok();
}

/// Owns what is known of the cluster.
struct Keeper {
    endpoint: Endpoint,
    config: LinkConfig,
    stats: Arc<PublisherStats>,
    /// Told by links whose state has changed.
    changed: Arc<Notify>,
    any: Option<Arc<Link>>,
    wants_all: bool,
    /// Nodes with links that the map does not ask for.
    guests: Vec<Address>,
    /// Links that are not needed any more, until all is answered.
    retired: JoinSet<()>,
    /// Commands on their way that nobody waits for.
    abandoned: JoinSet<Result<Value, PublishError>>,
    /// Why the map could not be read.
    failure: Option<Arc<str>>,
    view: watch::Sender<Arc<View>>,
    state: watch::Sender<PublisherState>,
}

impl Keeper {
    async fn run(mut self, mut hints: mpsc::Receiver<Hint>) {
        let mut ticks = time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut age = 0;
        let mut is_outdated = self.view.borrow().map == ClusterMap::default();
        let mut asked = None;
        let mut reading = None;
        let changed = self.changed.clone();
        loop {
            tokio::select! {
                hint = hints.recv() => match hint {
                    Some(hint) => is_outdated |= self.take(hint, &mut asked),
                    None => return,
                },
                () = changed.notified() => is_outdated |= !self.are_links_up(),
                result = finished(&mut reading), if reading.is_some() => {
                    reading = None;
                    age = 0;
                    self.read(result);
                }
                _ = ticks.tick() => {
                    age += 1;
                    let is_due = age >= TICKS_WHILE_UP
                        || (age >= TICKS_WHILE_DOWN && !self.are_links_up());
                    if reading.is_none() && (is_due || is_outdated) {
                        is_outdated = false;
                        reading = Some(Box::pin(read_map(self.endpoint.clone(), asked.take())));
                    }
                }
            }
            while self.retired.try_join_next().is_some() {}
            while self.abandoned.try_join_next().is_some() {}
            self.tell_state();
        }
    }

    /// Whether the map has to be read again.
    fn take(&mut self, hint: Hint, asked: &mut Option<Address>) -> bool {
        match hint {
            Hint::Moved { slot, to } => {
                let map = self.view.borrow().map.with_moved(slot, to.clone());
                if !self.guests.contains(&to) {
                    self.guests.push(to.clone());
                }
                self.install(map);
                *asked = Some(to);
                true
            }
            Hint::Wanted(node) => {
                let view = self.view.borrow().clone();
                if !view.links.contains_key(&node) {
                    self.guests.push(node);
                    self.install(view.map.clone());
                }
                false
            }
            Hint::AllWanted => {
                self.wants_all = true;
                let map = self.view.borrow().map.clone();
                self.install(map);
                false
            }
            Hint::Outdated => true,
            Hint::Abandoned(following) => {
                if self.abandoned.len() < MAX_ABANDONED {
                    self.abandoned.spawn(following);
                }
                false
            }
        }
    }

    fn read(&mut self, result: Result<Option<ClusterMap>, ConnectError>) {
        match result {
            Ok(map) => {
                self.failure = None;
                let map = map.unwrap_or_default();
                // What is no primary is gone, or will be asked for again.
                let primaries = map.primaries();
                self.guests.retain(|guest| primaries.contains(&guest));
                self.install(map);
            }
            Err(error) => self.failure = Some(error.to_string().into()),
        }
    }

    /// Makes the map the one that counts, opens what links it needs and lets go of the others.
    fn install(&mut self, map: ClusterMap) {
        let before = self.view.borrow().clone();
        let excess = self.guests.len().saturating_sub(MAX_LINKS);
        self.guests.drain(..excess);
        let mut wanted: Vec<_> = self.guests.clone();
        if self.wants_all {
            wanted.extend(map.primaries().into_iter().cloned());
        }
        wanted.truncate(MAX_LINKS);
        let mut links = BTreeMap::new();
        for address in wanted {
            let link = before.links.get(&address).cloned();
            let link = link.unwrap_or_else(|| Arc::new(self.open(&address)));
            links.insert(address, link);
        }
        for (address, link) in &before.links {
            if !links.contains_key(address) {
                let link = link.clone();
                self.retired.spawn(async move { link.close().await });
            }
        }
        self.view.send_replace(Arc::new(View {
            version: before.version + 1,
            is_complete: self.wants_all && map != ClusterMap::default(),
            map,
            links,
        }));
    }

    fn open(&self, address: &Address) -> Link {
        Link::start(
            Destination::Node(self.endpoint.clone(), address.clone()),
            self.config.clone(),
            None,
            self.stats.clone(),
            Some(self.changed.clone()),
        )
    }

    fn are_links_up(&self) -> bool {
        let view = self.view.borrow();
        !view.map.ranges().is_empty()
            && view.links.values().all(|link| link.is_up())
            && self.any.as_ref().is_none_or(|any| any.is_up())
    }

    fn tell_state(&self) {
        let state = match &self.any {
            Some(any) => any.state().borrow().clone(),
            None => self.state_of_all(),
        };
        self.state.send_if_modified(|before| {
            let is_other = *before != state;
            *before = state;
            is_other
        });
    }

    fn state_of_all(&self) -> PublisherState {
        let view = self.view.borrow();
        if let Some(slot) = view.map.first_gap() {
            let reason = match &self.failure {
                Some(reason) => reason.clone(),
                None => format!("no node is known that serves slot {slot}").into(),
            };
            return PublisherState::Down(reason);
        }
        for address in view.map.primaries() {
            match view.links.get(address).map(|link| link.state()) {
                Some(state) => {
                    if let LinkState::Down(reason) = &*state.borrow() {
                        return PublisherState::Down(reason.clone());
                    }
                }
                None => return PublisherState::Down(format!("no link to {address}").into()),
            }
        }
        PublisherState::Up
    }
}

type MapResult = Result<Option<ClusterMap>, ConnectError>;

async fn read_map(endpoint: Endpoint, asked: Option<Address>) -> MapResult {
    endpoint.cluster_map(asked.as_ref()).await
}

/// Only asked for while there is a future.
async fn finished<F: Future<Output = MapResult> + Unpin>(reading: &mut Option<F>) -> MapResult {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}
