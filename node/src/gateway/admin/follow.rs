//! Following one room, user or socket live, on all nodes.
//!
//! ```text
//!  page of A follows a room ──► A, B: observe their own sockets ──► lines ── B, every 250 ms ──► A ──► page
//! ```
//!
//! The names of followed rooms, users and sockets travel with the statuses, so a node stops by
//! itself when the page or its node has ended. Without followers, a node observes nothing.
//!
//! **Why on all nodes.** A room has members on any node, and each node knows only the activity of
//! its own sockets. So every node observes its own, and lines travel to the node of the page.
//!
//! **Why bounded everywhere.** Following must never harm the followed clients. Lines that a
//! page does not take are dropped, and the page shows how many. Arguments are cut,
//! since they may be as large as a message.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use roomcast::{Args, Observation, Observer, Server, Socket};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::gateway::{
    clock::{self, millis},
    session,
};

/// Lines that wait for a page or for another node. Further ones are dropped and counted.
const MAX_LINES: usize = 200;

/// Bytes of the arguments that a line shows.
const MAX_ARGS: usize = 1000;

/// Rooms that a line shows.
const MAX_ROOMS: usize = 20;

/// Bytes of a line that another node sends.
/// Any process with access to Redis can send lines, so each is checked before it is sent to a page.
const MAX_LINE: usize = 16 * 1024;

/// The rooms, users and sockets that a node follows for pages of other nodes.
const MAX_FOLLOWED: usize = 100;

/// A room, a user or a socket that a page follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Follow {
    pub(super) namespace: String,
    #[serde(flatten)]
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Room(String),
    User(String),
    Socket(String),
}

/// A request to follow a room, a user or a socket, for a page of the sending node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Followed {
    id: u64,
    follow: Follow,
}

/// Lines for a page of another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lines {
    /// The name of the node, and the number that it has given.
    to: String,
    id: u64,
    lines: Vec<String>,
    dropped: u64,
}

/// Something that is being followed on this node, for a page here or on another node.
pub(super) struct Following {
    follow: Follow,
    id: u64,
    /// The node of the page, if it is another one, and until when it counts.
    remote: Option<(String, AtomicU64)>,
    waiting: Mutex<(VecDeque<String>, u64)>,
    pub(super) news: Notify,
}

impl Following {
    fn new(follow: Follow, id: u64, remote: Option<(String, AtomicU64)>) -> Arc<Self> {
        Arc::new(Self {
            follow,
            id,
            remote,
            waiting: Mutex::default(),
            news: Notify::new(),
        })
    }

    /// Takes the lines that wait, and the number of those that were dropped.
    pub(super) fn take(&self) -> (Vec<String>, u64) {
        let (lines, dropped) = std::mem::take(&mut *self.waiting.lock());
        (lines.into(), dropped)
    }

    fn push(&self, line: String) {
        let mut waiting = self.waiting.lock();
        // The oldest lines are kept, so that a page shows a beginning without holes and then the
        // number of missing lines.
        if waiting.0.len() >= MAX_LINES {
            waiting.1 += 1;
            return;
        }
        waiting.0.push_back(line);
        drop(waiting);
        self.news.notify_one();
    }
}

/// All that is followed on this node.
#[derive(Default)]
pub(super) struct Follows {
    active: RwLock<Vec<Arc<Following>>>,
    observer: Mutex<Option<Observer>>,
    next: AtomicU64,
    /// There are lines for other nodes.
    traced: Notify,
}

impl Follows {
    /// Begins to follow something for a page of this node.
    pub(super) fn start(self: &Arc<Self>, follow: Follow, server: &Server) -> Arc<Following> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let following = Following::new(follow, id, None);
        self.active.write().push(Arc::clone(&following));
        self.observe(server);
        following
    }

    /// Ends it for a page. The last one ends the observer, which costs something at
    /// each event.
    pub(super) fn stop(self: &Arc<Self>, following: &Arc<Following>, server: &Server) {
        self.active
            .write()
            .retain(|other| !Arc::ptr_eq(other, following));
        self.observe(server);
    }

    /// The rooms, users and sockets that the pages of this node follow.
    pub(super) fn own(&self) -> Vec<Followed> {
        let active = self.active.read();
        let own = active.iter().filter(|following| following.remote.is_none());
        let own = own.map(|following| Followed {
            id: following.id,
            follow: following.follow.clone(),
        });
        own.collect()
    }

    /// Follows what pages of another node follow, until then, and nothing else for that node.
    pub(super) fn replace(
        self: &Arc<Self>,
        node: &str,
        followed: Vec<Followed>,
        until: Duration,
        server: &Server,
    ) {
        let until = millis(until);
        let mut active = self.active.write();
        let is_of = |following: &Following| {
            following
                .remote
                .as_ref()
                .is_some_and(|(name, _)| name == node)
        };
        // Entries that are unchanged keep their waiting lines.
        active.retain(|known| {
            !is_of(known)
                || followed
                    .iter()
                    .any(|new| new.id == known.id && new.follow == known.follow)
        });
        for Followed { id, follow } in followed {
            let known = active.iter().find(|known| is_of(known) && known.id == id);
            match known.and_then(|known| known.remote.as_ref()) {
                Some((_, until_then)) => until_then.store(until, Ordering::Relaxed),
                None if active.len() < MAX_FOLLOWED => {
                    let remote = Some((node.to_owned(), AtomicU64::new(until)));
                    active.push(Following::new(follow, id, remote));
                }
                None => {}
            }
        }
        drop(active);
        self.observe(server);
    }

    /// Removes the subscriptions of nodes that no longer send statuses.
    pub(super) fn expire(self: &Arc<Self>, now: Duration, server: &Server) {
        let now = millis(now);
        let is_over = |(_, until): &(String, AtomicU64)| until.load(Ordering::Relaxed) <= now;
        let mut active = self.active.write();
        let before = active.len();
        active.retain(|following| !following.remote.as_ref().is_some_and(is_over));
        let is_less = active.len() < before;
        drop(active);
        if is_less {
            self.observe(server);
        }
    }

    /// Takes lines of other nodes for the pages of this one.
    pub(super) fn receive(&self, node: &str, lines: Vec<Lines>) {
        let active = self.active.read();
        for Lines {
            to,
            id,
            lines,
            dropped,
        } in lines
        {
            let is_own = |own: &&Arc<Following>| own.remote.is_none() && own.id == id;
            let Some(own) = active.iter().find(is_own).filter(|_| to == node) else {
                continue;
            };
            // The page misses them as well as those that are dropped here.
            own.waiting.lock().1 += dropped;
            let is_line = |line: &String| {
                line.len() <= MAX_LINE
                    && !line.contains('\n')
                    && serde_json::from_str::<&RawValue>(line).is_ok()
            };
            lines
                .into_iter()
                .filter(is_line)
                .for_each(|line| own.push(line));
        }
    }

    /// The lines for pages of other nodes, once there are any.
    pub(super) async fn for_others(&self) -> Vec<Lines> {
        self.traced.notified().await;
        // More of them leave together.
        tokio::time::sleep(Duration::from_millis(250)).await;
        let active = self.active.read();
        let mut all = Vec::new();
        for following in active.iter() {
            let Some((to, _)) = &following.remote else {
                continue;
            };
            let (lines, dropped) = following.take();
            if !lines.is_empty() || dropped > 0 {
                let (to, id) = (to.clone(), following.id);
                all.push(Lines {
                    to,
                    id,
                    lines,
                    dropped,
                });
            }
        }
        all
    }

    /// Observes while anything is followed.
    fn observe(self: &Arc<Self>, server: &Server) {
        let mut observer = self.observer.lock();
        if self.active.read().is_empty() {
            *observer = None;
        } else if observer.is_none() {
            // The observer is kept here, so a strong handle would keep both for ever.
            let (weak, node) = (Arc::downgrade(self), server.node().to_string());
            let io = server.clone();
            *observer = Some(server.observe(move |observation| {
                if let Some(follows) = weak.upgrade() {
                    follows.trace(observation, &io, &node);
                }
            }));
        }
    }

    fn trace(&self, observation: Observation<'_>, server: &Server, node: &str) {
        let active = self.active.read().clone();
        // A line is written once for all followers, and only if there are any.
        let mut line = None;
        for following in active {
            if following.follow.concerns(observation, server) {
                let line = line.get_or_insert_with(|| describe(observation, node));
                following.push(line.clone());
                if following.remote.is_some() {
                    self.traced.notify_one();
                }
            }
        }
    }
}

impl Follow {
    fn concerns(&self, observation: Observation<'_>, server: &Server) -> bool {
        if let Observation::Broadcast {
            namespace,
            rooms,
            except,
            ..
        } = observation
        {
            return namespace == self.namespace && self.is_among(rooms, except, server);
        }
        let Some(socket) = socket_of(observation) else {
            return false;
        };
        if socket.namespace_name() != self.namespace {
            return false;
        }
        match (&self.what, observation) {
            (What::Socket(id), _) => socket.id().as_str() == id,
            (What::User(id), _) => session::user(socket).as_ref() == Some(id),
            (
                What::Room(room),
                Observation::Joined { rooms, .. } | Observation::Left { rooms, .. },
            ) => rooms.iter().any(|other| **other == **room),
            (What::Room(room), Observation::Disconnected { .. }) => socket.rooms().contains(room),
            _ => false,
        }
    }

    /// Whether a broadcast selects the room, or a socket of this node. Sockets of other
    /// nodes are followed there.
    fn is_among(&self, rooms: &[Box<str>], except: &[Box<str>], server: &Server) -> bool {
        let selects = |own: &[String]| session::is_selected(own, rooms, except);
        let namespace = server.of(&self.namespace);
        let sockets = match &self.what {
            What::Room(room) => return selects(std::slice::from_ref(room)),
            What::Socket(id) => namespace.socket(id).into_iter().collect(),
            What::User(id) => namespace.to(session::user_room(id)).local_sockets(),
        };
        sockets.iter().any(|socket| selects(&socket.rooms()))
    }
}

fn socket_of(observation: Observation<'_>) -> Option<&Socket> {
    match observation {
        Observation::Connected { socket }
        | Observation::Disconnected { socket, .. }
        | Observation::Joined { socket, .. }
        | Observation::Left { socket, .. }
        | Observation::Received { socket, .. }
        | Observation::Acknowledged { socket, .. }
        | Observation::Emitted { socket, .. } => Some(socket),
        _ => None,
    }
}

/// A line as the page shows it.
#[derive(Default, Serialize)]
struct Described<'a> {
    node: &'a str,
    time: u64,
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    /// The begin of the arguments, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rooms: &'a [Box<str>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    except: &'a [Box<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    sockets: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn describe(observation: Observation<'_>, node: &str) -> String {
    let socket = socket_of(observation);
    let mut line = Described {
        node,
        time: clock::unix_millis(),
        socket: socket.map(|socket| socket.id().as_str()),
        user: socket.and_then(session::user),
        ..Described::default()
    };
    match observation {
        Observation::Connected { .. } => line.what = "connected",
        Observation::Disconnected { reason, .. } => {
            line.what = "disconnected";
            line.reason = Some(reason.to_string());
        }
        Observation::Joined { rooms, .. } => (line.what, line.rooms) = ("joined", rooms),
        Observation::Left { rooms, .. } => (line.what, line.rooms) = ("left", rooms),
        Observation::Received { event, args, .. } => {
            line.what = "received";
            (line.event, line.args) = (Some(event), Some(begin(args)));
        }
        Observation::Acknowledged { event, args, .. } => {
            line.what = "acknowledged";
            // The handler may have taken the acknowledgement, and then the event is unknown.
            line.event = Some(event).filter(|event| !event.is_empty());
            line.args = Some(begin(args));
        }
        Observation::Emitted { event, args, .. } => {
            line.what = "emitted";
            (line.event, line.args) = (Some(event), Some(begin(args)));
        }
        Observation::Broadcast {
            rooms,
            except,
            event,
            args,
            sockets,
            ..
        } => {
            line.what = "broadcast";
            (line.event, line.args) = (Some(event), Some(begin(args)));
            (line.rooms, line.except, line.sockets) = (rooms, except, Some(sockets));
        }
        _ => {}
    }
    line.rooms = &line.rooms[..line.rooms.len().min(MAX_ROOMS)];
    line.except = &line.except[..line.except.len().min(MAX_ROOMS)];
    serde_json::to_string(&line).unwrap_or_default()
}

/// The begin of the JSON, cut between two characters.
fn begin(args: &Args) -> &str {
    let json = args.json();
    &json[..json.floor_char_boundary(MAX_ARGS)]
}

#[cfg(test)]
mod tests {
    use roomcast::Namespace;

    use super::*;

    fn room(name: &str) -> Follow {
        Follow {
            namespace: "/".to_owned(),
            what: What::Room(name.to_owned()),
        }
    }

    fn followed(id: u64, name: &str) -> Followed {
        let follow = room(name);
        Followed { id, follow }
    }

    async fn server() -> Server {
        let builder = Server::builder().namespace(Namespace::new("/"));
        builder.build().await.unwrap()
    }

    #[tokio::test]
    async fn a_node_observes_while_something_is_followed() {
        let (follows, server) = (Arc::<Follows>::default(), server().await);
        let is_observing = || follows.observer.lock().is_some();
        let own = follows.start(room("a"), &server);
        assert!(is_observing());
        follows.stop(&own, &server);
        assert!(!is_observing());
        let until = Duration::from_secs(5);
        follows.replace(
            "n2",
            vec![followed(0, "a"), followed(1, "b")],
            until,
            &server,
        );
        follows.replace("n3", vec![followed(0, "a")], until * 2, &server);
        follows.replace("n2", vec![followed(1, "b")], until, &server);
        assert_eq!(follows.active.read().len(), 2);
        follows.expire(until, &server);
        assert_eq!(follows.active.read().len(), 1);
        assert!(is_observing());
        follows.replace("n3", Vec::new(), until * 2, &server);
        assert!(!is_observing());
        assert!(follows.own().is_empty());
    }

    #[tokio::test]
    async fn another_node_gets_its_lines_and_those_of_others_are_bounded() {
        let (one, two) = (Arc::<Follows>::default(), Arc::<Follows>::default());
        let server = server().await;
        let own = one.start(room("a"), &server);
        two.replace("n1", one.own(), Duration::MAX, &server);
        for _ in 0..MAX_LINES + 3 {
            let emitted = server.to("a").emit("x", "y".repeat(2 * MAX_ARGS)).await;
            emitted.unwrap();
        }
        // Both observe the one server.
        let (lines, dropped) = own.take();
        assert_eq!((lines.len(), dropped), (MAX_LINES, 3));
        assert!(lines[0].len() < 2 * MAX_ARGS, "{}", lines[0]);
        let lines = two.for_others().await;
        assert_eq!((lines[0].lines.len(), lines[0].dropped), (MAX_LINES, 3));
        one.receive("n2", lines.clone());
        assert_eq!(own.take().0.len(), 0, "they are for n1");
        one.receive("n1", lines);
        let (lines, dropped) = own.take();
        assert_eq!((lines.len(), dropped), (MAX_LINES, 3));
        let wrong = ["{", "{}\n{}", &format!("\"{}\"", "x".repeat(MAX_LINE))];
        let lines = wrong.map(str::to_owned).to_vec();
        let to = "n1".to_owned();
        one.receive(
            "n1",
            vec![Lines {
                to,
                id: own.id,
                lines,
                dropped: 0,
            }],
        );
        assert_eq!(own.take().0.len(), 0);
    }

    #[tokio::test]
    async fn what_other_nodes_follow_is_limited() {
        let (follows, server) = (Arc::<Follows>::default(), server().await);
        let many = (0..2 * MAX_FOLLOWED as u64).map(|id| followed(id, "a"));
        follows.replace("n2", many.collect(), Duration::MAX, &server);
        assert_eq!(follows.active.read().len(), MAX_FOLLOWED);
    }
}
