//! Sends events that were missed in a gap to the sockets that follow the history of rooms.
//!
//! Events that arrived after the gap may have been sent before it is reported, and ids
//! have gaps of their own. So a namespace remembers the events that have arrived. Events in the log
//! since the beginning of the gap that have not arrived were missed.
//!
//! ```text
//! gap ─▶ each room that is followed: read its log from the last event that arrived before the gap
//!         ├─▶ each follower: what it joined before, and what has not arrived
//!         └─▶ it cannot be read: again, with growing delays, as long as the room is followed
//! ```
//!
//! A log that has lost its data gives ids from the clock again, which may be below those
//! that have arrived. So an event is known by its id and its time.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    time::{Duration, UNIX_EPOCH},
};

use parking_lot::Mutex;
use roomcast_adapter::{BusError, Gap, HistoryEntry, Log, Page};
use roomcast_emitter::backoff::Backoff;
use roomcast_protocol::target::Target;
use tokio::{sync::Mutex as AsyncMutex, time::sleep};

use super::{gaps::OnGap, live_namespace::LiveNamespace, server::Inner, socket::Socket};
use crate::{clock::unix_millis, transport::plain::Reached};

/// The delays between attempts to read a log.
const MIN_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// How many events a namespace notes. A gap is reported shortly after events arrive
/// again, so these are those of the last seconds before and after it.
const NOTED: usize = 4096;

/// The published events that have arrived at a namespace.
#[derive(Default)]
pub(super) struct Arrived {
    noted: Mutex<VecDeque<Noted>>,
    /// Held while logs are read and missed events are sent, so that nothing is sent twice.
    turn: AsyncMutex<()>,
    /// The rooms whose logs could not be read, each with the beginning of its gap, in
    /// milliseconds since 1970. While there are some, a task reads them again.
    unread: Mutex<BTreeMap<Box<str>, u64>>,
}

struct Noted {
    place: Reached,
    /// When it arrived, by the clock of this node.
    at: u64,
}

impl Arrived {
    pub(super) fn note(&self, id: u64, time: u64) {
        let place = Reached { id, time };
        let at = unix_millis();
        let mut noted = self.noted.lock();
        if noted.len() >= NOTED {
            noted.pop_front();
        }
        noted.push_back(Noted { place, at });
    }

    /// The last event that arrived before this time, or the first that is noted if all that arrived
    /// earlier is forgotten. An id of 0 if nothing is known.
    fn before(&self, millis: u64) -> Reached {
        let noted = self.noted.lock();
        let earlier = noted.iter().rev().find(|noted| noted.at < millis);
        let forgotten = noted.front().filter(|_| noted.len() >= NOTED);
        let found = earlier.or(forgotten);
        found.map_or_else(Reached::default, |noted| noted.place)
    }

    fn contains(&self, id: u64, time: u64) -> bool {
        let place = Reached { id, time };
        self.noted.lock().iter().any(|noted| noted.place == place)
    }
}

/// Makes the sockets of the server catch up before the application handles the gap.
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
                // Its deliveries reach followers of rooms, too.
                namespace.repair_journal().await;
            } else if namespace.plain_sockets.load(Ordering::Relaxed) > 0 {
                namespace.catch_up(from).await;
            }
        }
    }
}

impl LiveNamespace {
    /// Sends the events published since `from`, in milliseconds since 1970, that have not arrived.
    async fn catch_up(&self, from: u64) {
        let failed = {
            let _turn = self.arrived.turn.lock().await;
            // Each room by itself: one that cannot be read must not keep the others
            // waiting.
            let mut failed = Vec::new();
            for (room, followers) in self.followers() {
                if let Err(error) = self.catch_up_room(&room, &followers, from).await {
                    let namespace = &*self.name;
                    tracing::warn!(namespace, room = &*room, %error, "followers of a room may have missed events: its log is read again later");
                    failed.push(room);
                }
            }
            failed
        };
        if failed.is_empty() {
            return;
        }
        let is_first = {
            let mut unread = self.arrived.unread.lock();
            // One task retries for all rooms.
            let is_first = unread.is_empty();
            for room in failed {
                let earliest = unread.entry(room).or_insert(from);
                *earliest = from.min(*earliest);
            }
            is_first
        };
        if is_first && let Some(server) = self.server.upgrade() {
            let retrying = retry(Weak::clone(&self.me));
            drop(server.tasks.runtime().spawn(retrying));
        }
    }

    /// Reads the logs again that could not be read. Returns whether that is done.
    async fn catch_up_unread(&self) -> bool {
        let _turn = self.arrived.turn.lock().await;
        let mut followers = self.followers();
        let unread = self.arrived.unread.lock().clone();
        for (room, from) in unread {
            let followers = followers.remove(&room).unwrap_or_default();
            // A room without followers is done as well.
            let is_done =
                followers.is_empty() || self.catch_up_room(&room, &followers, from).await.is_ok();
            let mut unread = self.arrived.unread.lock();
            // A gap that was reported meanwhile may begin earlier.
            if is_done && unread.get(&room) == Some(&from) {
                unread.remove(&room);
            }
        }
        self.arrived.unread.lock().is_empty()
    }

    async fn catch_up_room(
        &self,
        room: &str,
        followers: &[Socket],
        from: u64,
    ) -> Result<(), BusError> {
        let Some(log) = &self.log else {
            return Ok(());
        };
        let limit = self.handlers.history.map_or(0, |limits| limits.messages);
        let entries = read_after(&**log, room, self.arrived.before(from), limit).await?;
        let places: Vec<_> = entries.iter().map(|entry| (entry.id, entry.time)).collect();
        let frames = entries.into_iter().map(|entry| self.frame_of(entry));
        let frames: Vec<_> = frames.filter_map(Result::ok).collect();
        for follower in followers {
            let connection = follower.connection();
            // Events may arrive while the log is read, so it is checked when each is
            // sent.
            connection.send_missed(&frames, |position| {
                self.arrived.contains(position.id, position.time)
            });
        }
        for (id, time) in places {
            if !self.arrived.contains(id, time) {
                self.arrived.note(id, time);
            }
        }
        Ok(())
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

/// Reads the entries of a room after an event, or all if the log has begun again since.
async fn read_after(
    log: &dyn Log,
    room: &str,
    begin: Reached,
    limit: usize,
) -> Result<Vec<HistoryEntry>, BusError> {
    let mut from = begin.id;
    if from > 0 {
        // Ids of the new log may have passed that of the event. Then it has one that is
        // not above it, and later.
        let before = Page::Before(from.saturating_add(1));
        let before = log.read(room, before, 1).await?;
        if before.last().is_some_and(|entry| entry.time > begin.time) {
            from = 0;
        }
    }
    log.read(room, Page::After(from), limit).await
}

/// Reads the logs that could not be read until all are.
async fn retry(namespace: Weak<LiveNamespace>) {
    let mut delays = Backoff::new(MIN_RETRY, MAX_RETRY);
    loop {
        sleep(delays.next_delay()).await;
        match namespace.upgrade() {
            Some(namespace) if !namespace.catch_up_unread().await => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_before_a_time_is_known_until_it_is_forgotten() {
        let arrived = Arrived::default();
        let note = |id| arrived.note(id, 10 * id);
        assert_eq!(arrived.before(u64::MAX), Reached::default());
        note(1);
        let first = Reached { id: 1, time: 10 };
        assert_eq!(arrived.before(u64::MAX), first);
        assert_eq!(arrived.before(0), Reached::default());
        (2..=NOTED as u64 + 5).for_each(note);
        assert_eq!(arrived.before(0), Reached { id: 6, time: 60 });
        assert!(!arrived.contains(5, 50) && arrived.contains(6, 60));
        // The same id of another log.
        assert!(!arrived.contains(6, 61));
    }
}
