//! Sends sockets that follow the history of rooms what a gap has kept from them.
//!
//! Events that arrived after the gap may have been sent before it is reported, and ids have gaps of
//! their own. So a namespace notes the ids that have arrived, and what is kept since the beginning of
//! the gap and has not arrived is what was missed.
//!
//! ```text
//! gap ─▶ each room that is followed: read its log from the last id that arrived before the gap
//!         ─▶ each follower: what it joined before, and what has not arrived
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    time::UNIX_EPOCH,
};

use parking_lot::Mutex;
use roomcast_adapter::{Gap, Page};
use roomcast_protocol::target::Target;

use super::{gaps::OnGap, live_namespace::LiveNamespace, server::Inner, socket::Socket};
use crate::clock::unix_millis;

/// How many ids a namespace notes. A gap is reported shortly after events arrive again, so these are
/// those of the last seconds before and after it.
const NOTED: usize = 4096;

/// The ids of published events that have arrived at a namespace, in their order, each with the time.
#[derive(Default)]
pub(super) struct Arrived(Mutex<VecDeque<(u64, u64)>>);

impl Arrived {
    pub(super) fn note(&self, id: u64) {
        let mut noted = self.0.lock();
        if noted.len() >= NOTED {
            noted.pop_front();
        }
        noted.push_back((id, unix_millis()));
    }

    /// The last id that arrived before this time, or the first that is noted if all that arrived
    /// earlier is forgotten. 0 if nothing is known.
    fn before(&self, millis: u64) -> u64 {
        let noted = self.0.lock();
        let earlier = noted.iter().rev().find(|(_, time)| *time < millis);
        let forgotten = noted.front().filter(|_| noted.len() >= NOTED);
        earlier.or(forgotten).map_or(0, |(id, _)| *id)
    }

    fn contains(&self, id: u64) -> bool {
        self.0.lock().iter().any(|(known, _)| *known == id)
    }
}

/// Has the sockets of the server catch up before the application handles the gap.
pub(super) fn before(handler: Option<OnGap>, server: Arc<OnceLock<Weak<Inner>>>) -> OnGap {
    let handler = handler.map(Arc::new);
    Box::new(move |gap| {
        let server = server.get().and_then(Weak::upgrade);
        let handler = handler.clone();
        Box::pin(async move {
            if let Some(server) = server {
                server.catch_up(gap).await;
            }
            match handler {
                Some(handler) => handler(gap).await,
                None => Ok(()),
            }
        })
    })
}

impl Inner {
    async fn catch_up(&self, gap: Gap) {
        let from = gap.from.duration_since(UNIX_EPOCH).unwrap_or_default();
        let from = u64::try_from(from.as_millis()).unwrap_or(u64::MAX);
        let live: Vec<_> = self.live.read().values().cloned().collect();
        for namespace in live {
            if namespace.journal.is_some() {
                // What it delivers reaches followers of rooms, too.
                namespace.repair_journal().await;
            } else if namespace.plain_sockets.load(Ordering::Relaxed) > 0 {
                namespace.catch_up(from).await;
            }
        }
    }
}

impl LiveNamespace {
    /// Sends what was published since `from`, in milliseconds since 1970, and has not arrived.
    async fn catch_up(&self, from: u64) {
        let Some(log) = &self.log else {
            return;
        };
        let begin = self.arrived.before(from);
        let limit = self.handlers.history.map_or(0, |limits| limits.messages);
        for (room, followers) in self.followers() {
            let entries = match log.read(&room, Page::After(begin), limit).await {
                Ok(entries) => entries,
                Err(error) => {
                    let namespace = &*self.name;
                    tracing::warn!(namespace, room = &*room, %error, "followers of a room may have missed events");
                    continue;
                }
            };
            let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
            let frames = entries.into_iter().map(|entry| self.frame_of(entry));
            let frames: Vec<_> = frames.filter_map(Result::ok).collect();
            for follower in followers {
                let connection = follower.connection();
                connection.send_missed(&frames, |id| self.arrived.contains(id));
            }
            for id in ids {
                if !self.arrived.contains(id) {
                    self.arrived.note(id);
                }
            }
        }
    }

    /// The rooms that sockets of this node follow, with these sockets.
    fn followers(&self) -> BTreeMap<Box<str>, Vec<Socket>> {
        let mut rooms = BTreeMap::<_, Vec<_>>::new();
        for socket in self.local_sockets(&Target::default()) {
            for room in socket.connection().followed() {
                rooms.entry(room).or_default().push(socket.clone());
            }
        }
        rooms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_before_a_time_is_known_until_it_is_forgotten() {
        let arrived = Arrived::default();
        assert_eq!(arrived.before(u64::MAX), 0);
        arrived.note(1);
        assert_eq!((arrived.before(u64::MAX), arrived.before(0)), (1, 0));
        (2..=NOTED as u64 + 5).for_each(|id| arrived.note(id));
        assert_eq!(arrived.before(0), 6);
        assert!(!arrived.contains(5) && arrived.contains(6));
    }
}
