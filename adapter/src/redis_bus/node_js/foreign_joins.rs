//! Joins that Node's servers and emitters command.
//!
//! A Node server receives all rooms through one pattern. Node code may therefore have sockets join
//! a room and emit to the room in the next line. A node of ours subscribes to a room when it gets
//! its first member, which is too late for that emit. (Our own senders publish it elsewhere:
//! [`RecentJoins`](roomcast_emitter::recent_joins::RecentJoins).)
//!
//! ```text
//! Node servers are counted ────┐
//! a Node sender commands joins ┴─► the pattern of all rooms, then no channels of single rooms
//! ```
//!
//! While both are subscribed, a message arrives twice, one copy right after the other. The second
//! is dropped.
//!
//! A Node emitter is not seen before its first command. Its next messages may be
//! missed, and are reported as a gap.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use roomcast_emitter::membership::Leases;
use roomcast_protocol::{
    channel::{self, Dialect, EMITTER_UID},
    message::Message,
};
use serde::Deserialize;
use tokio::{
    runtime::Handle,
    time::{self, Instant},
};

use super::{AttachedNamespace, Subscriptions};
use crate::{
    bus::Gap,
    redis_bus::{gaps::Gaps, subscriptions::AllRooms},
};

/// How long all rooms stay subscribed after a Node server was counted. They are counted every
/// second.
const AFTER_COUNT: Duration = Duration::from_secs(20);

/// How long all rooms stay subscribed after a Node sender commanded a join.
const AFTER_JOIN: Duration = Duration::from_secs(600);

/// For how long joins are collected into one gap.
const COLLECTING: Duration = Duration::from_millis(500);

/// Longest payload whose memory is kept for comparison.
const KEPT_BYTES: usize = 64 << 10;

/// The duties of this node so that emits after joins of Node senders arrive.
pub(super) struct ForeignJoins {
    gaps: Arc<Gaps>,
    runtime: Handle,
    /// The message before the one at hand, if it came by a channel.
    before: Mutex<Before>,
    late: Mutex<Vec<Late>>,
}

#[derive(Default)]
struct Before {
    is_some: bool,
    channel: Vec<u8>,
    payload: Vec<u8>,
}

/// Rooms that are not subscribed yet.
struct Late {
    namespace: Arc<AttachedNamespace>,
    /// Joined by sockets of this node.
    rooms: Vec<Box<str>>,
    /// When sockets of this node joined; `None` if none did.
    since: Option<SystemTime>,
}

impl ForeignJoins {
    /// Must be called on a tokio runtime.
    pub(super) fn new(gaps: Arc<Gaps>) -> Self {
        Self {
            gaps,
            runtime: Handle::current(),
            before: Mutex::default(),
            late: Mutex::default(),
        }
    }

    /// Node servers were counted.
    pub(super) fn servers_are_there(self: &Arc<Self>, subscriptions: &Arc<Subscriptions>) {
        let until = Instant::now() + AFTER_COUNT;
        for namespace in subscriptions.namespaces() {
            if subscriptions.hear_all_rooms(&namespace, until) == AllRooms::Begun {
                self.follow(subscriptions, &namespace, &[], None);
            }
        }
    }

    /// A message was carried out, for this number of sockets.
    pub(super) fn carried_out(
        self: &Arc<Self>,
        subscriptions: &Arc<Subscriptions>,
        namespace: &Arc<AttachedNamespace>,
        message: &Message,
        sockets: usize,
        is_foreign: impl FnOnce() -> bool,
    ) {
        let Message::SocketsJoin { rooms, .. } = message else {
            return;
        };
        if subscriptions.classic_channels().is_none() || !is_foreign() {
            return;
        }
        let until = Instant::now() + AFTER_JOIN;
        let heard = subscriptions.hear_all_rooms(namespace, until);
        if heard != AllRooms::Heard {
            let since = (sockets > 0).then(SystemTime::now);
            self.follow(subscriptions, namespace, rooms, since);
        }
    }

    /// Waits until the rooms are subscribed, and reports the gap before that.
    fn follow(
        self: &Arc<Self>,
        subscriptions: &Arc<Subscriptions>,
        namespace: &Arc<AttachedNamespace>,
        rooms: &[Box<str>],
        since: Option<SystemTime>,
    ) {
        let mut late = self.late.lock();
        let is_followed = !late.is_empty();
        late.push(Late {
            namespace: Arc::clone(namespace),
            rooms: rooms.to_vec(),
            since,
        });
        drop(late);
        if is_followed {
            return;
        }
        let (this, subscriptions) = (Arc::downgrade(self), Arc::downgrade(subscriptions));
        self.runtime.spawn(async move {
            time::sleep(COLLECTING).await;
            let (Some(this), Some(subscriptions)) = (this.upgrade(), subscriptions.upgrade())
            else {
                return;
            };
            let late = std::mem::take(&mut *this.late.lock());
            for late in &late {
                match subscriptions.confirm(&late.namespace, &late.rooms).await {
                    Ok(()) => subscriptions.all_rooms_are_heard(&late.namespace),
                    Err(error) => tracing::debug!(%error, "rooms may not be subscribed yet"),
                }
            }
            if let Some(from) = late.iter().filter_map(|late| late.since).min() {
                let to = SystemTime::now();
                this.gaps.report(&Gap { from, to });
            }
        });
    }

    /// A message came by a channel.
    pub(super) fn received(&self, channel: &[u8], payload: &[u8]) {
        let before = &mut *self.before.lock();
        before.is_some = true;
        before.channel.clear();
        before.channel.extend_from_slice(channel);
        before.payload.clear();
        before.payload.shrink_to(KEPT_BYTES);
        before.payload.extend_from_slice(payload);
    }

    /// Returns whether a message that arrives by the pattern is a copy of the previous one.
    pub(super) fn is_copy(&self, channel: &[u8], payload: &[u8]) -> bool {
        let before = &mut *self.before.lock();
        let is_copy = before.is_some && before.channel == channel && before.payload == payload;
        before.is_some = false;
        is_copy
    }
}

/// Returns whether a command was sent by a Node server or a Node emitter. Those have no uid.
pub(super) fn is_foreign(payload: &[u8], namespace: &str, leases: &Leases) -> bool {
    #[derive(Deserialize)]
    struct Command {
        uid: Option<String>,
    }
    let command: Option<Command> = serde_json::from_slice(payload).ok();
    let Some(uid) = command.and_then(|command| command.uid) else {
        return true;
    };
    let is_of = |node| channel::uid(node, namespace, Dialect::Classic).as_str() == uid;
    uid != EMITTER_UID && !leases.nodes().any(is_of)
}

#[cfg(test)]
mod tests {
    use roomcast_protocol::id::NodeId;

    use super::*;
    use crate::redis_bus::metrics::{GapMetrics, Series};

    #[test]
    fn commands_of_our_nodes_and_emitters_are_not_foreign() {
        let node = NodeId::new("AAAAbbbbccccddddeeee");
        let leases = Leases::new([(node.clone(), 2)], 1);
        let uid = channel::uid(&node, "/", Dialect::Classic);
        let is_foreign = |payload: String| is_foreign(payload.as_bytes(), "/", &leases);
        assert!(!is_foreign(format!(r#"{{"uid":"{uid}","type":2}}"#)));
        assert!(!is_foreign(r#"{"uid":"emitter","type":2}"#.into()));
        assert!(is_foreign(r#"{"uid":"abcdef","type":2}"#.into()));
        assert!(is_foreign(r#"{"type":2}"#.into()));
        assert!(is_foreign("not JSON".into()));
    }

    #[tokio::test]
    async fn only_the_copy_that_comes_next_is_one() {
        let metrics = GapMetrics::new(&mut Series::default());
        let joins = ForeignJoins::new(Arc::new(Gaps::new(metrics)));
        assert!(!joins.is_copy(b"a", b"1"));
        for _ in 0..2 {
            joins.received(b"a", b"1");
            assert!(joins.is_copy(b"a", b"1"));
        }
        assert!(!joins.is_copy(b"a", b"1"), "it was published again");
        joins.received(b"a", b"1");
        assert!(!joins.is_copy(b"b", b"1"));
        joins.received(b"a", b"1");
        joins.received(b"a", b"2");
        assert!(!joins.is_copy(b"a", b"1"));
    }
}
