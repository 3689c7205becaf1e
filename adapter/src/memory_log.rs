//! Logs of rooms, and journals, in the memory of one process: for servers without Redis,
//! and for tests.
//!
//! Entries are evicted oldest first, by four limits. Those of one room are in [`List`];
//! the limit of the whole namespace takes the rooms in the order of their latest entries:
//!
//! ```text
//! by_latest: id of the latest entry ─► room ─► entries, oldest first
//!            ▲ first: the room that has been silent for the longest time
//! ```
//!
//! A journal is one more list, with the same ids.
//!
//! **Why bounded four times.** The number, the bytes and the age of a room's entries are promised
//! to its readers. The fourth limit is the memory of the process, because clients choose the names
//! of rooms. It takes whole rooms, those first that have been silent for the longest time.
//!
//! **Why a turn.** Storing and passing on are one step for the order, but listeners
//! must not be called under the lock of the entries, because they may read the log. So a separate
//! lock is held across both.
//!
//! Positions follow the same rules as those of Redis, so everything above behaves alike
//! with and without Redis, and the same tests run against both.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, vec_deque},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use roomcast_protocol::{
    args::Args,
    message::{Broadcast, Message, Position},
};

use crate::{
    bus::{
        BusError, BusFuture, HistoryEntry, HistoryLimits, JournalEntry, JournalLimits, JournalPage,
        Listener, Log, LogLimits, Once, Page, Published, to_room,
    },
    memory_keys::MemoryKeys,
};

/// The bytes of an entry in addition to its texts.
/// Without it, many empty entries would count for nothing.
const OVERHEAD: usize = 64;

/// The logs of the namespaces of one process. They outlive the namespaces, which may come and go.
#[derive(Clone, Default)]
pub struct MemoryLogs(Arc<Mutex<HashMap<Box<str>, Arc<MemoryLog>>>>);

impl MemoryLogs {
    /// Opens the logs of a namespace, and creates them if they do not exist. The listener receives
    /// broadcasts published from now on. The limits of the first call apply.
    pub fn open(
        &self,
        namespace: &str,
        limits: impl Into<LogLimits>,
        listener: Weak<dyn Listener>,
    ) -> Arc<dyn Log> {
        let mut logs = self.0.lock();
        let log = match logs.get(namespace) {
            Some(log) => Arc::clone(log),
            None => {
                // Names of namespaces come from clients, so those without use and content must go.
                let now = now();
                logs.retain(|_, log| log.is_used() || log.has_entries(now));
                let log = Arc::new(MemoryLog::new(limits.into()));
                logs.insert(namespace.into(), Arc::clone(&log));
                log
            }
        };
        let mut listeners = log.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
        drop(listeners);
        Arc::new(Handle(log))
    }
}

impl std::fmt::Debug for MemoryLogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLogs").finish_non_exhaustive()
    }
}

/// The log of one namespace.
struct MemoryLog {
    /// Held while one broadcast is stored and passed to all listeners, so that they receive the
    /// broadcasts in the order of their ids. Nothing else may be taken before it.
    turn: tokio::sync::Mutex<()>,
    entries: Mutex<Entries>,
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    keys: MemoryKeys,
}

impl MemoryLog {
    fn new(limits: LogLimits) -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            entries: Mutex::new(Entries::new(limits)),
            listeners: Mutex::default(),
            keys: MemoryKeys::default(),
        }
    }

    fn is_used(&self) -> bool {
        let listeners = self.listeners.lock();
        listeners.iter().any(|listener| listener.strong_count() > 0)
    }

    fn has_entries(&self, now: Duration) -> bool {
        let mut entries = self.entries.lock();
        entries.expire(now);
        let journal = entries.journal.as_ref();
        let has_journal = journal.is_some_and(|journal| !journal.list.entries.is_empty());
        has_journal || !entries.rooms.is_empty()
    }

    /// Stores a broadcast in the journal, if there is one, and in the log of the room, if
    /// it is named, and passes it to all listeners.
    async fn store(&self, broadcast: Broadcast, room: Option<&str>) -> Position {
        let turn = self.turn.lock().await;
        let position = {
            let mut entries = self.entries.lock();
            let now = now();
            let position = entries.next(now);
            if let Some(room) = room {
                entries.append(position, room, &broadcast.event, &broadcast.args, now);
            }
            if let Some(journal) = &mut entries.journal {
                let entry = JournalEntry {
                    position,
                    broadcast: broadcast.clone(),
                };
                journal.list.push(position, entry.bytes(), entry);
                let limits = &journal.limits;
                let oldest = oldest(limits.age, now);
                journal.list.evict(limits.messages, limits.bytes, oldest);
            }
            position
        };
        let message = Message::Broadcast(broadcast);
        // Upgraded first, so that none is called under the lock.
        let listeners: Vec<_> = {
            let listeners = self.listeners.lock();
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener.receive(&message, Some(position));
        }
        drop(turn);
        position
    }
}

/// A namespace's access to its log.
struct Handle(Arc<MemoryLog>);

impl Log for Handle {
    fn publish(
        &self,
        room: &str,
        event: &str,
        args: Args,
    ) -> BusFuture<Result<Position, BusError>> {
        let log = Arc::clone(&self.0);
        let (broadcast, room) = (to_room(room, event, args), Box::<str>::from(room));
        Box::pin(async move { Ok(log.store(broadcast, Some(&room)).await) })
    }

    fn read(
        &self,
        room: &str,
        page: Page,
        limit: usize,
    ) -> BusFuture<Result<Vec<HistoryEntry>, BusError>> {
        let read = self.0.entries.lock().read(room, page, limit, now());
        Box::pin(std::future::ready(Ok(read)))
    }

    fn broadcast(&self, broadcast: Broadcast) -> BusFuture<Result<Published, BusError>> {
        let log = Arc::clone(&self.0);
        Box::pin(async move {
            let position = log.store(broadcast, None).await;
            let listeners = log.listeners.lock();
            let nodes = listeners.iter().filter(|l| l.strong_count() > 0).count();
            Ok(Published {
                // The listener of the emitting server is one of them.
                nodes: nodes.saturating_sub(1),
                position: Some(position),
                ..Published::default()
            })
        })
    }

    fn broadcast_once(
        &self,
        broadcast: Broadcast,
        once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let (keys, publishing) = (self.0.keys.clone(), self.broadcast(broadcast));
        Box::pin(async move { keys.once("", &once, publishing).await })
    }

    fn read_journal(&self, page: Page, limit: usize) -> BusFuture<Result<JournalPage, BusError>> {
        let entries = self.0.entries.lock();
        let last = entries.last;
        let journal = entries.journal.as_ref();
        let read = journal.map(|journal| journal.list.read(page, limit, last, 0));
        let read = read.into_iter().flatten();
        let read: Vec<_> = read.map(|kept| kept.entry.clone()).collect();
        Box::pin(std::future::ready(Ok(JournalPage {
            is_full: read.len() == limit,
            entries: read,
            unreadable: Vec::new(),
            newest: last,
        })))
    }
}

/// The time since 1970.
fn now() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// The entries of a namespace. Times come in as arguments.
struct Entries {
    limits: HistoryLimits,
    /// The last id, 0 if there was none.
    last: u64,
    bytes: usize,
    /// No list is empty.
    rooms: HashMap<Arc<str>, List<Stored>>,
    by_latest: BTreeMap<u64, Arc<str>>,
    journal: Option<Journal>,
}

/// All broadcasts of a namespace.
struct Journal {
    limits: JournalLimits,
    list: List<JournalEntry>,
}

/// Entries in the order of their ids, and their size.
struct List<E> {
    entries: VecDeque<Kept<E>>,
    bytes: usize,
}

struct Kept<E> {
    position: Position,
    bytes: usize,
    entry: E,
}

/// An entry of a room.
struct Stored {
    event: Box<str>,
    args: Args,
}

impl Stored {
    fn bytes(&self) -> usize {
        let attached: usize = self.args.attachments().iter().map(bytes::Bytes::len).sum();
        OVERHEAD + self.event.len() + self.args.json().len() + attached
    }
}

impl<E> Default for List<E> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl<E> List<E> {
    fn push(&mut self, position: Position, bytes: usize, entry: E) {
        self.bytes += bytes;
        self.entries.push_back(Kept {
            position,
            bytes,
            entry,
        });
    }

    /// Removes the oldest entries until the rest is within the limits. The newest entry stays,
    /// however large it is, because it was just stored.
    fn evict(&mut self, messages: usize, bytes: usize, oldest: u64) {
        while let Some(first) = self.entries.front()
            && self.entries.len() > 1
            && (self.entries.len() > messages || self.bytes > bytes || first.position.time < oldest)
        {
            self.bytes -= first.bytes;
            self.entries.pop_front();
        }
    }

    fn is_older_than(&self, oldest: u64) -> bool {
        let latest = self.entries.back();
        latest.is_none_or(|latest| latest.position.time < oldest)
    }

    /// Reads at most `limit` of the entries from `oldest` on. `last` is the last id that was given.
    fn read(
        &self,
        page: Page,
        limit: usize,
        last: u64,
        oldest: u64,
    ) -> vec_deque::Iter<'_, Kept<E>> {
        let kept = self.entries.partition_point(|e| e.position.time < oldest);
        let end = self.entries.len();
        let at = |id| {
            let at = self.entries.partition_point(|e| e.position.id < id);
            at.max(kept)
        };
        let up_to = |first: usize, end: usize| first..end.min(first.saturating_add(limit));
        self.entries.range(match page {
            Page::After(id) if id > last => up_to(kept, end),
            Page::After(id) => up_to(at(id.saturating_add(1)), end),
            Page::Before(id) => at(id).saturating_sub(limit).max(kept)..at(id),
            Page::Latest => end.saturating_sub(limit).max(kept)..end,
            Page::Only(id) => up_to(at(id), at(id.saturating_add(1))),
        })
    }
}

impl Entries {
    fn new(limits: LogLimits) -> Self {
        let journal = |limits| Journal {
            limits,
            list: List::default(),
        };
        Self {
            limits: limits.history.unwrap_or_default(),
            journal: limits.journal.map(journal),
            last: 0,
            bytes: 0,
            rooms: HashMap::new(),
            by_latest: BTreeMap::new(),
        }
    }

    /// The next position.
    fn next(&mut self, now: Duration) -> Position {
        // Only a journal is a chain, in which each entry names the one before it.
        let after = self.journal.as_ref().map(|_| self.last);
        // The clock is a lower bound, so that ids grow also across restarts of the
        // process.
        self.last = (self.last + 1).max(now.as_secs());
        Position {
            id: self.last,
            time: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            after,
        }
    }

    fn append(&mut self, position: Position, name: &str, event: &str, args: &Args, now: Duration) {
        let stored = Stored {
            event: event.into(),
            args: args.clone(),
        };
        let name = match self.rooms.get_key_value(name) {
            Some((name, room)) => {
                let latest = room.entries.back().expect("a room has an entry");
                self.by_latest.remove(&latest.position.id);
                Arc::clone(name)
            }
            None => name.into(),
        };
        self.by_latest.insert(position.id, Arc::clone(&name));
        let room = self.rooms.entry(name).or_default();
        let (limits, before) = (&self.limits, room.bytes);
        room.push(position, stored.bytes(), stored);
        room.evict(limits.messages, limits.bytes, oldest(limits.age, now));
        self.bytes = self.bytes - before + room.bytes;
        self.expire(now);
        while self.bytes > self.limits.memory_bytes && self.rooms.len() > 1 {
            self.forget_first();
        }
    }

    /// Removes the rooms without recent entries, and the journal if it has none.
    /// Called on each write and read, so a log needs no timer.
    fn expire(&mut self, now: Duration) {
        if let Some(journal) = &mut self.journal
            && journal.list.is_older_than(oldest(journal.limits.age, now))
        {
            journal.list = List::default();
        }
        let oldest = oldest(self.limits.age, now);
        while let Some(name) = self.by_latest.values().next() {
            let room = self.rooms.get(name).expect("a room is in both tables");
            if !room.is_older_than(oldest) {
                return;
            }
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, name)) = self.by_latest.pop_first()
            && let Some(room) = self.rooms.remove(&name)
        {
            self.bytes -= room.bytes;
        }
    }

    fn read(&self, name: &str, page: Page, limit: usize, now: Duration) -> Vec<HistoryEntry> {
        let Some((name, room)) = self.rooms.get_key_value(name) else {
            return Vec::new();
        };
        let entry = |kept: &Kept<Stored>| HistoryEntry {
            id: kept.position.id,
            time: kept.position.time,
            room: (**name).into(),
            event: kept.entry.event.clone(),
            args: kept.entry.args.clone(),
        };
        let oldest = oldest(self.limits.age, now);
        let read = room.read(page, limit, self.last, oldest);
        read.map(entry).collect()
    }
}

/// The time of the oldest entries that are kept, in milliseconds since 1970.
fn oldest(age: Duration, now: Duration) -> u64 {
    let seconds = age.as_secs().max(1);
    let oldest = now.saturating_sub(Duration::from_secs(seconds));
    u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
