//! The cluster as an admin page sees it: the statuses of its nodes.
//!
//! ```text
//!  page ── stream ── node A ── "I watch", its status ──► bus ──► B, C: publish for 6 s
//!                       ▲                                          │ every 2 s
//!                       └────────── status of B, status of C ◄─────┘
//! ```
//!
//! While a page is open on any node, every node publishes its status every two seconds,
//! as an event between servers. No node is asked, so a page always costs the same, and while no
//! page is open nothing is published at all. Two pages on one node, or on several, cost no more.
//!
//! **Why not by questions.** A node that hangs would delay the answer to each of them,
//! for every page. Here, its status merely gets old, which the page shows.
//!
//! **Why so many bounds.** Events between servers carry no identity, and any process with access to
//! Redis can send one. So names, sizes and numbers are limited where they arrive.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast::{Namespace, Server};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{
    Health,
    follow::{Follow, Followed, Following, Follows, Lines},
    status::Status,
};
use crate::gateway::{
    api::Key,
    clock::{self, millis},
};

/// The event between nodes.
const EVENT: &str = "roomcast:admin";

/// Time between two statuses of a node.
const PERIOD: Duration = Duration::from_secs(2);

/// A node publishes for this long after it was notified of a page on another node.
/// Three periods, so that a message that is lost does not interrupt the page.
const WANTED: Duration = Duration::from_secs(6);

/// A node is removed when it has sent nothing for this long. Until then, the page shows it as
/// silent, so that an operator sees which node has failed.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Pages that may be open on this node at a time.
pub(super) const MAX_PAGES: usize = 32;

/// Nodes that are kept, and the bytes of a status. Any process with access to Redis can publish
/// one.
const MAX_NODES: usize = 1000;

const MAX_STATUS: usize = 64 * 1024;

/// A message between nodes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Message {
    from: String,
    /// Whether a page is open on the node.
    watches: bool,
    /// A [`Status`] as JSON. It is passed on to the pages unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// The rooms and sockets that its pages follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    follows: Vec<Followed>,
    /// Events of rooms and sockets that pages of other nodes follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lines: Vec<Lines>,
}

/// The last status of a node.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) status: Arc<RawValue>,
    pub(super) age: Duration,
    /// Differs between any two statuses.
    pub(super) number: u64,
}

/// The cluster as this node sees it, and the pages that are open on it.
pub(crate) struct View {
    start: Instant,
    dialect: Option<String>,
    server: OnceLock<Server>,
    /// By the name of the node: when the status arrived, and the status.
    nodes: Mutex<BTreeMap<String, (Duration, Seen)>>,
    /// Milliseconds from the start until when another node wants to see this one.
    wanted: AtomicU64,
    pages: AtomicUsize,
    follows: Arc<Follows>,
    /// There is somebody to publish for.
    wake: Notify,
    /// The number of the last status.
    news: watch::Sender<u64>,
}

impl View {
    /// `dialect` is how the node speaks to the others.
    pub(crate) fn new(dialect: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            start: clock::now(),
            dialect,
            server: OnceLock::new(),
            nodes: Mutex::default(),
            wanted: AtomicU64::new(0),
            pages: AtomicUsize::new(0),
            follows: Arc::default(),
            wake: Notify::new(),
            news: watch::Sender::new(0),
        })
    }

    /// Adds the exchange of statuses of the other nodes.
    pub(crate) fn with_statuses(self: &Arc<Self>, namespace: Namespace) -> Namespace {
        let view = Arc::clone(self);
        namespace.on_server_side(EVENT, move |message: Message| {
            let view = Arc::clone(&view);
            async move { view.receive(message) }
        })
    }

    /// The time since the start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Opens a page, unless too many are. It may follow something.
    pub(super) fn open(self: &Arc<Self>, follow: Option<Follow>) -> Option<Page> {
        let more = |open| (open < MAX_PAGES).then_some(open + 1);
        let opened = self
            .pages
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        opened.ok()?;
        let start = |follow| Some(self.follows.start(follow, self.server.get()?));
        let page = Page {
            view: Arc::clone(self),
            following: follow.and_then(start),
        };
        self.wake.notify_one();
        Some(page)
    }

    /// The statuses of the nodes, and all nodes that the bus knows.
    pub(super) fn nodes(&self) -> (BTreeMap<String, Seen>, Vec<String>) {
        let now = self.now();
        let mut nodes = self.nodes.lock();
        nodes.retain(|_, (at, _)| now.saturating_sub(*at) < FORGOTTEN);
        let seen = nodes.iter().map(|(name, (at, seen))| {
            let seen = Seen {
                age: now.saturating_sub(*at),
                ..seen.clone()
            };
            (name.clone(), seen)
        });
        let seen = seen.collect();
        let known = self.server.get().map(Server::nodes).unwrap_or_default();
        (seen, known.iter().map(ToString::to_string).collect())
    }

    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// The name of this node.
    pub(super) fn node(&self) -> String {
        let node = self.server.get().map(|server| server.node().to_string());
        node.unwrap_or_default()
    }

    /// The namespaces of this node that the key is for.
    pub(super) fn namespaces(&self, key: &Key) -> Vec<String> {
        let mut names = self
            .server
            .get()
            .map(Server::namespaces)
            .unwrap_or_default();
        names.retain(|name| key.may_in(name));
        names
    }

    fn receive(&self, message: Message) {
        if message.watches {
            let until = self.now() + WANTED;
            if let Some(server) = self.server.get() {
                let follows = message.follows;
                self.follows.replace(&message.from, follows, until, server);
            }
            // Only the first request wakes the task; the following ones prolong the
            // time.
            let before = self.wanted.swap(millis(until), Ordering::Relaxed);
            if before <= millis(self.now()) {
                self.wake.notify_one();
            }
        }
        if !message.lines.is_empty() {
            self.follows.receive(&self.node(), message.lines);
        }
        // Without a page, it would not be used.
        if self.pages.load(Ordering::Relaxed) > 0
            && let Some(status) = message.status
        {
            self.note(message.from, status);
        }
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > millis(self.now())
    }

    /// Keeps a status. One that is too large, or no line of JSON, is dropped.
    fn note(&self, node: String, status: String) {
        if status.len() > MAX_STATUS || status.contains('\n') {
            return;
        }
        let Ok(status) = RawValue::from_string(status) else {
            return;
        };
        let mut nodes = self.nodes.lock();
        if nodes.len() >= MAX_NODES && !nodes.contains_key(&node) {
            return;
        }
        self.news.send_modify(|number| *number += 1);
        let seen = Seen {
            status: status.into(),
            age: Duration::ZERO,
            number: *self.news.borrow(),
        };
        nodes.insert(node, (self.now(), seen));
    }

    /// Publishes while there is somebody to publish for. Statuses are read where this runs, and
    /// emitted by the workers.
    pub(super) async fn run(self: Arc<Self>, server: Server, health: Arc<Health>, workers: Handle) {
        // The one server of the process.
        let server = self.server.get_or_init(|| server).clone();
        let forwarding = self.forward(&server, &workers);
        tokio::join!(self.publish(&server, &health, &workers), forwarding);
    }

    /// Publishes the activity that pages of other nodes follow.
    async fn forward(&self, server: &Server, workers: &Handle) {
        loop {
            let lines = self.follows.for_others().await;
            if lines.is_empty() {
                continue;
            }
            let message = Message {
                from: server.node().to_string(),
                lines,
                ..Message::default()
            };
            workers.spawn(publish(server.clone(), message));
        }
    }

    async fn publish(&self, server: &Server, health: &Health, workers: &Handle) {
        loop {
            self.follows.expire(self.now(), server);
            let watches = self.pages.load(Ordering::Relaxed) > 0;
            let is_wanted = self.is_wanted();
            if !watches && !is_wanted {
                self.wake.notified().await;
                continue;
            }
            let status = self.status(server, health);
            let message = Message {
                from: server.node().to_string(),
                watches,
                status: is_wanted.then(|| status.clone()),
                follows: self.follows.own(),
                ..Message::default()
            };
            if watches {
                self.note(message.from.clone(), status);
            }
            workers.spawn(publish(server.clone(), message));
            // A page that opens, here or elsewhere, sees something at once.
            drop(timeout(PERIOD, self.wake.notified()).await);
            // Pages that open one after the other must not make each of them a message.
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn status(&self, server: &Server, health: &Health) -> String {
        let mut status = Status::read(server.registry());
        status.dialect.clone_from(&self.dialect);
        status.time = clock::unix_millis();
        status.obstacle = health.obstacle().map(String::from);
        serde_json::to_string(&status).unwrap_or_default()
    }
}

/// Notifies the other nodes. Any namespace of this node will do, because nodes of a cluster
/// have the same.
async fn publish(server: Server, message: Message) {
    let Some(namespace) = server.namespaces().into_iter().next() else {
        return;
    };
    let emitted = server.of(&namespace).server_side_emit(EVENT, message).await;
    if let Err(error) = emitted {
        debug!(%error, "other nodes may not have received the status of this one");
    }
}

/// An open page. Dropping it closes it.
pub(super) struct Page {
    view: Arc<View>,
    following: Option<Arc<Following>>,
}

impl Page {
    pub(super) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The room or socket that the page follows.
    pub(super) fn following(&self) -> Option<&Arc<Following>> {
        self.following.as_ref()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let (Some(following), Some(server)) = (&self.following, self.view.server.get()) {
            self.view.follows.stop(following, server);
        }
        self.view.pages.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use roomcast::MemoryBus;

    use super::*;

    async fn node(bus: &MemoryBus) -> (Arc<View>, Server) {
        let view = View::new(None);
        let namespace = view.with_statuses(Namespace::new("/"));
        let server = Server::builder().namespace(namespace).bus(bus.clone());
        let server = server.build().await.unwrap();
        let running = Arc::clone(&view).run(server.clone(), Arc::default(), Handle::current());
        tokio::spawn(running);
        (view, server)
    }

    #[tokio::test]
    async fn a_page_on_one_node_sees_all_nodes() {
        let bus = MemoryBus::new();
        let [(one, server), (_two, other)] = [node(&bus).await, node(&bus).await];
        assert!(one.nodes().0.is_empty());
        let page = one.open(None).unwrap();
        let mut news = page.view().news();
        while one.nodes().0.len() < 2 {
            let next = timeout(Duration::from_secs(30), news.changed());
            next.await.unwrap().unwrap();
        }
        let (seen, known) = one.nodes();
        for server in [server, other] {
            let name = server.node().to_string();
            let status: serde_json::Value = serde_json::from_str(seen[&name].status.get()).unwrap();
            assert_eq!(status["obstacle"], "starting");
            assert!(known.contains(&name));
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_while_no_page_is_open() {
        let bus = MemoryBus::new();
        let (view, _server) = node(&bus).await;
        view.receive(status("other", "{}"));
        assert!(view.nodes().0.is_empty());
        let page = view.open(None).unwrap();
        view.receive(status("other", "{}"));
        assert!(view.nodes().0.contains_key("other"));
        drop(page);
        assert_eq!(view.pages.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_anybody_publishes_cannot_fill_a_node_or_break_a_stream() {
        let view = View::new(None);
        let _page = view.open(None).unwrap();
        for wrong in [
            "",
            "{",
            "{}\n{}",
            &format!("\"{}\"", "x".repeat(MAX_STATUS)),
        ] {
            view.receive(status("other", wrong));
        }
        assert!(view.nodes().0.is_empty());
        for number in 0..2 * MAX_NODES {
            view.receive(status(&number.to_string(), "{}"));
        }
        assert_eq!(view.nodes().0.len(), MAX_NODES);
    }

    #[tokio::test]
    async fn pages_are_limited() {
        let view = View::new(None);
        let mut pages: Vec<_> = std::iter::from_fn(|| view.open(None)).collect();
        assert_eq!(pages.len(), MAX_PAGES);
        pages.pop();
        assert!(view.open(None).is_some());
    }

    fn status(node: &str, status: &str) -> Message {
        Message {
            from: node.to_owned(),
            watches: false,
            status: Some(status.to_owned()),
            follows: Vec::new(),
            lines: Vec::new(),
        }
    }
}
