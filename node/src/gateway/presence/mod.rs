//! Presence: the users who are online in the whole cluster and their rooms, without a question to
//! the cluster.
//!
//! ```text
//!  sockets of this node ── changes, 50 ms ──► table ◄── messages ── other nodes
//!   connect, join, leave                        │ │
//!                    users, presence, search ◄──┘ └──► message ──► other nodes
//! ```
//!
//! Each node publishes its users' sockets as events between servers of the namespace, and keeps
//! those that the others publish. [`stream`] defines these messages. Only namespaces that are named
//! in the settings have presence, because memory and traffic grow with the users of the whole
//! cluster. Sockets of Node.js servers and of clients without a user are not part of it.
//!
//! **Why kept and not asked.** A page that shows the online users asks repeatedly. A question costs
//! an answer of each node, and waits for the slowest. Changes are published once, in proportion to
//! their number, and every node answers from its own memory.
//!
//! **Why two tasks.** Changes are noted on the task of the socket, which must not wait.
//! One task reads the state of the sockets at that time, so that a room that was joined and left
//! at once costs nothing. The other one publishes, at the pace that the bus allows.

mod metrics;
mod settings;
mod stream;
mod table;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use roomcast::{Namespace, Observation, Observer, Server, Socket, SocketId};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use self::{
    metrics::Metrics,
    stream::{Message, State},
    table::Table,
};
pub(crate) use self::{
    settings::{Settings, TEMPLATE},
    stream::Found,
    table::{Occupied, Online, Page, Selected},
};
use super::{
    clock,
    session::{self, user_room},
};

/// The event between nodes.
const EVENT: &str = "roomcast:presence";

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);

/// The time between two looks whether something is due without a change.
const TICK: Duration = Duration::from_millis(500);

/// The pause after a large message, so that a full state does not take all of a connection.
const PAUSE: Duration = Duration::from_millis(20);

/// The presence of all namespaces that have it. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Presence(Arc<Inner>);

#[derive(Default)]
struct Inner {
    namespaces: Arc<BTreeMap<String, Arc<Kept>>>,
    observer: OnceLock<Observer>,
}

/// The presence of one namespace.
pub(crate) struct Kept {
    name: String,
    max_entries: usize,
    start: Instant,
    /// The server, and the known users. Set when the server is built.
    running: OnceLock<(Server, Mutex<State>)>,
    /// Changed sockets of this node.
    changed: Mutex<HashSet<SocketId>>,
    has_changes: Notify,
    has_news: Notify,
}

impl Presence {
    pub(crate) fn new(settings: &Settings) -> Self {
        let start = clock::now();
        let kept = settings.namespaces.iter().map(|name| {
            let kept = Kept {
                name: name.0.clone(),
                max_entries: settings.max_entries,
                start,
                running: OnceLock::new(),
                changed: Mutex::default(),
                has_changes: Notify::new(),
                has_news: Notify::new(),
            };
            (name.0.clone(), Arc::new(kept))
        });
        Self(Arc::new(Inner {
            namespaces: Arc::new(kept.collect()),
            observer: OnceLock::new(),
        }))
    }

    /// The presence of a namespace, if it has it.
    pub(crate) fn of(&self, namespace: &str) -> Option<&Arc<Kept>> {
        self.0.namespaces.get(namespace)
    }

    /// Adds the exchange between nodes to a namespace, if it has presence.
    pub(crate) fn with_messages(&self, name: &str, namespace: Namespace) -> Namespace {
        let Some(kept) = self.of(name).map(Arc::clone) else {
            return namespace;
        };
        namespace.on_server_side(EVENT, move |message: Message| {
            let kept = Arc::clone(&kept);
            async move { kept.receive(message) }
        })
    }

    /// Starts to publish. Must be called before the server has sockets.
    pub(crate) fn start(&self, server: &Server) -> Result<(), prometheus::Error> {
        if self.0.namespaces.is_empty() {
            return Ok(());
        }
        let metrics = Metrics::new(server.registry())?;
        for kept in self.0.namespaces.values() {
            let state = State::new(&server.node().to_string(), kept.max_entries);
            // The one server of the process.
            let _ = kept.running.set((server.clone(), Mutex::new(state)));
            tokio::spawn(Arc::clone(kept).gather());
            tokio::spawn(Arc::clone(kept).publish(metrics.clone()));
        }
        let namespaces = Arc::clone(&self.0.namespaces);
        let observer = server.observe_members(move |observation| {
            let (Observation::Connected { socket }
            | Observation::Disconnected { socket, .. }
            | Observation::Joined { socket, .. }
            | Observation::Left { socket, .. }) = observation
            else {
                return;
            };
            if let Some(kept) = namespaces.get(socket.namespace_name()) {
                kept.note(socket);
            }
        });
        self.0.observer.get_or_init(|| observer);
        Ok(())
    }
}

impl Kept {
    /// Users who are online: the selected ones, or all.
    pub(crate) fn users(&self, selected: Option<&Selected<'_>>, page: &Page<'_>) -> Found<Online> {
        self.found(|table| table.users(selected, page))
    }

    /// The rooms of users in the cluster, as far as this node knows.
    pub(crate) fn rooms(&self, page: &Page<'_>) -> Found<Occupied> {
        self.found(|table| table.rooms(page))
    }

    fn found<T>(&self, look: impl FnOnce(&Table) -> (usize, Vec<T>)) -> Found<T> {
        let Some((server, state)) = self.running.get() else {
            return Found {
                total: 0,
                page: Vec::new(),
                silent_nodes: Vec::new(),
            };
        };
        let (alive, now) = (alive(server), self.now());
        state.lock().found(&alive, now, look)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn note(&self, socket: &Socket) {
        if session::user(socket).is_some() {
            self.changed.lock().insert(socket.id().clone());
            self.has_changes.notify_one();
        }
    }

    fn receive(&self, message: Message) {
        if let Some((_, state)) = self.running.get() {
            state.lock().receive(message, self.now());
            self.has_news.notify_one();
        }
    }

    /// Notes how the sockets of this node are now, if something about them has changed.
    async fn gather(self: Arc<Self>) {
        let Some((server, state)) = self.running.get() else {
            return;
        };
        let namespace = server.of(&self.name);
        loop {
            self.has_changes.notified().await;
            sleep(GATHER).await;
            let changed = std::mem::take(&mut *self.changed.lock());
            for id in changed {
                let socket = namespace.socket(id.as_str());
                let socket = socket.filter(Socket::is_connected);
                let online = socket.as_ref().and_then(online);
                let now = online.as_ref().map(|(user, rooms)| (&**user, &**rooms));
                state.lock().change(id.as_str(), now);
            }
            self.has_news.notify_one();
        }
    }

    /// Publishes changes, full states that other nodes request, and signs of life.
    async fn publish(self: Arc<Self>, metrics: Metrics) {
        let Some((server, state)) = self.running.get() else {
            return;
        };
        let namespace = server.of(&self.name);
        loop {
            let alive = alive(server);
            loop {
                let message = state.lock().next(&alive, self.now());
                let Some(message) = message else {
                    break;
                };
                let is_large = message.is_large();
                let emitted = namespace.clone().server_side_emit(EVENT, message).await;
                if let Err(error) = emitted {
                    // The others notice that a number is missing, and ask for all.
                    debug!(%error, "other nodes may not know the users of this one");
                }
                if is_large {
                    sleep(PAUSE).await;
                }
            }
            let (figures, has_place) = {
                let mut state = state.lock();
                (state.figures(), state.has_place_again(self.now()))
            };
            metrics.set(&self.name, figures);
            if has_place {
                self.note_all(&namespace).await;
            }
            // Signs of life and requests for missing states are due even without changes.
            drop(timeout(TICK, self.has_news.notified()).await);
        }
    }

    /// Notes all sockets of this node.
    async fn note_all(&self, namespace: &roomcast::BroadcastOperator) {
        let ids = namespace.clone().local().socket_ids().await;
        self.changed.lock().extend(ids.unwrap_or_default());
        self.has_changes.notify_one();
    }
}

/// The nodes with a lease.
fn alive(server: &Server) -> Vec<String> {
    server.nodes().iter().map(ToString::to_string).collect()
}

/// The user of a socket, and its rooms that are shared by several users.
fn online(socket: &Socket) -> Option<(String, Vec<String>)> {
    let user = session::user(socket)?;
    let of_user = user_room(&user);
    let mut rooms = socket.rooms();
    rooms.retain(|room| *room != of_user && room != socket.id().as_str());
    Some((user, rooms))
}
