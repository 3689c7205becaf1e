//! Rooms that sockets of other nodes were commanded to join a moment ago.
//!
//! A node subscribes to the channel of a room when the room gets its first member there. If one
//! sender has sockets join a room and then emits to that room, the emit is published before the
//! node has subscribed, and would be lost:
//!
//! ```text
//! sender   join "a" ─ emit to "a" ──────────────────────────────────────
//! node               └► join ─ SUBSCRIBE a ─► confirmed
//!                          └ the emit passes here, on a channel without that node
//! ```
//!
//! So for a while after such a join, broadcasts to the room go to the channel of the whole
//! namespace, which every node receives. The payload names the room.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_protocol::{channel::Channels, message::Message, target::Target};
use tokio::time::Instant;

/// How long after the command the nodes are given to subscribe. It takes them milliseconds; a node
/// that has lost its connection reports a gap when it is back.
const WHILE: Duration = Duration::from_secs(5);

/// Maximum number of rooms that are remembered. Beyond it, all rooms count as joined.
const MAX_ROOMS: usize = 10_000;

/// The rooms that one sender had sockets join.
#[derive(Debug, Default)]
pub struct RecentJoins {
    /// Whether there are any, so that a broadcast costs a read while there are none.
    is_used: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When each room was joined last, by namespace and room.
    rooms: HashMap<Box<str>, HashMap<Box<str>, Instant>>,
    /// When there were too many rooms to remember.
    overflowed: Option<Instant>,
    /// When old rooms were last removed. That is not done for each message, because it checks all
    /// rooms.
    tidied: Option<Instant>,
}

impl RecentJoins {
    /// Takes note of a message on its way. Returns the channel that it has to be published on, if
    /// it is not the one that its target names.
    pub fn channel(
        &self,
        channels: &Channels,
        namespace: &str,
        message: &Message,
    ) -> Option<String> {
        match message {
            Message::SocketsJoin { rooms, .. } => {
                self.note(namespace, rooms);
                None
            }
            Message::Broadcast(broadcast) => {
                self.channel_of(channels, namespace, &broadcast.target)
            }
            Message::SocketsLeave { .. }
            | Message::DisconnectSockets { .. }
            | Message::ServerSideEmit { .. } => None,
        }
    }

    /// The same for a broadcast to this target.
    pub fn channel_of(
        &self,
        channels: &Channels,
        namespace: &str,
        target: &Target,
    ) -> Option<String> {
        let is_recent = self.is_used.load(Ordering::Acquire)
            && matches!(&*target.rooms, [room] if self.is_recent(namespace, room));
        is_recent.then(|| channels.broadcast(namespace))
    }

    fn note(&self, namespace: &str, rooms: &[Box<str>]) {
        let now = Instant::now();
        let state = &mut *self.state.lock();
        state.tidy(now);
        let known: usize = state.rooms.values().map(HashMap::len).sum();
        if known + rooms.len() > MAX_ROOMS {
            state.overflowed = Some(now);
        } else {
            let of_namespace = state.rooms.entry(namespace.into()).or_default();
            of_namespace.extend(rooms.iter().map(|room| (room.clone(), now)));
        }
        self.is_used.store(true, Ordering::Release);
    }

    fn is_recent(&self, namespace: &str, room: &str) -> bool {
        let now = Instant::now();
        let state = &mut *self.state.lock();
        let is_recent = |joined: &Instant| now.duration_since(*joined) < WHILE;
        let joined = state.rooms.get(namespace).and_then(|of| of.get(room));
        let is_recent = joined.or(state.overflowed.as_ref()).is_some_and(is_recent);
        if state.tidy(now) {
            let is_used = !state.rooms.is_empty() || state.overflowed.is_some();
            self.is_used.store(is_used, Ordering::Release);
        }
        is_recent
    }
}

impl State {
    /// Removes entries that are no longer recent. Returns `false` if that was done a moment ago.
    fn tidy(&mut self, now: Instant) -> bool {
        if self.tidied.is_some_and(|tidied| now < tidied + WHILE / 5) {
            return false;
        }
        self.tidied = Some(now);
        let is_recent = |joined: &Instant| now.duration_since(*joined) < WHILE;
        self.overflowed = self.overflowed.filter(is_recent);
        self.rooms.retain(|_, rooms| {
            rooms.retain(|_, joined| is_recent(joined));
            !rooms.is_empty()
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use roomcast_protocol::channel::Dialect;
    use tokio::time::advance;

    use super::*;

    fn to(rooms: &[&str]) -> Target {
        let mut target = Target::default();
        target.add_rooms(rooms);
        target
    }

    fn join(rooms: &[&str]) -> Message {
        Message::SocketsJoin {
            target: to(&["somebody"]),
            rooms: rooms.iter().map(|room| (*room).into()).collect(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_that_was_just_joined_is_reached_through_its_namespace() {
        let channels = Channels::new("p", Dialect::Classic);
        let joins = RecentJoins::default();
        let channel =
            |namespace, rooms: &[&str]| joins.channel_of(&channels, namespace, &to(rooms));
        assert_eq!(channel("/", &["a"]), None);
        assert_eq!(joins.channel(&channels, "/", &join(&["a", "b"])), None);
        assert_eq!(channel("/", &["a"]).as_deref(), Some("p#/#"));
        assert_eq!(channel("/", &["c"]), None);
        assert_eq!(channel("/chat", &["a"]), None);
        advance(WHILE / 2).await;
        joins.channel(&channels, "/", &join(&["b"]));
        advance(WHILE / 2).await;
        assert_eq!(channel("/", &["a"]), None);
        assert_eq!(channel("/", &["b"]).as_deref(), Some("p#/#"));
        advance(WHILE / 2).await;
        assert_eq!(channel("/", &["b"]), None);
        assert!(!joins.is_used.load(Ordering::Acquire));
        assert!(joins.state.lock().rooms.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_rooms_to_remember_are_all_rooms_for_a_while() {
        let channels = Channels::new("p", Dialect::Classic);
        let joins = RecentJoins::default();
        for number in 0..=MAX_ROOMS {
            joins.note("/", &[number.to_string().into()]);
        }
        assert_eq!(joins.state.lock().rooms["/"].len(), MAX_ROOMS);
        let channel = || joins.channel_of(&channels, "/", &to(&["another"]));
        assert_eq!(channel().as_deref(), Some("p#/#"));
        advance(WHILE).await;
        assert_eq!(channel(), None);
    }
}
