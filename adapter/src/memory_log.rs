//! Logs of rooms, and journals, in the memory of one process: for servers without Redis,
//! and for tests.
//!
//! Entries are evicted oldest first, by four limits. Those of one room are in [`Room`];
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
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use roomcast_protocol::{
    args::Args,
    message::{Message, Position},
    target::Target,
};

use crate::{
    bus::{
        BusError, BusFuture, HistoryEntry, HistoryLimits, JournalEntry, JournalLimits, JournalPage,
        Listener, Log, LogLimits, Once, Page, Published,
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
        !entries.rooms.is_empty() || journal.is_some_and(|journal| !journal.entries.is_empty())
    }

    /// Stores a broadcast in the journal, if there is one, and in the log of the room, if
    /// it is named, and passes it to all listeners.
    async fn store(
        &self,
        target: Target,
        event: Box<str>,
        args: Args,
        room: Option<&str>,
    ) -> Position {
        let turn = self.turn.lock().await;
        let position = {
            let mut entries = self.entries.lock();
            let now = now();
            let position = entries.next(now);
            if let Some(room) = room {
                entries.append(position, room, &event, &args, now);
            }
            if let Some(journal) = &mut entries.journal {
                journal.append(
                    JournalEntry {
                        position,
                        target: target.clone(),
                        event: event.clone(),
                        args: args.clone(),
                    },
                    now,
                );
            }
            position
        };
        let message = Message::Broadcast {
            target,
            event,
            args,
        };
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
        let mut target = Target::default();
        target.add_rooms(room);
        let event: Box<str> = event.into();
        let room = Box::<str>::from(room);
        Box::pin(async move { Ok(log.store(target, event, args, Some(&room)).await) })
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

    fn broadcast(
        &self,
        target: Target,
        event: &str,
        args: Args,
    ) -> BusFuture<Result<Published, BusError>> {
        let log = Arc::clone(&self.0);
        let event = event.into();
        Box::pin(async move {
            let position = log.store(target, event, args, None).await;
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
        target: Target,
        event: &str,
        args: Args,
        once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let (keys, publishing) = (self.0.keys.clone(), self.broadcast(target, event, args));
        Box::pin(async move { keys.once("", &once, publishing).await })
    }

    fn read_journal(&self, page: Page, limit: usize) -> BusFuture<Result<JournalPage, BusError>> {
        let entries = self.0.entries.lock();
        let journal = entries.journal.as_ref();
        let mut read = journal.map_or_else(JournalPage::default, |journal| {
            journal.read(page, limit, entries.last)
        });
        read.newest = entries.last;
        Box::pin(std::future::ready(Ok(read)))
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
    rooms: HashMap<Arc<str>, Room>,
    by_latest: BTreeMap<u64, Arc<str>>,
    journal: Option<Journal>,
}

/// All broadcasts of a namespace.
struct Journal {
    limits: JournalLimits,
    entries: VecDeque<JournalEntry>,
    bytes: usize,
}

impl Journal {
    fn append(&mut self, entry: JournalEntry, now: Duration) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        let oldest = oldest(self.limits.age, now);
        while let Some(first) = self.entries.front()
            // The newest entry stays, however large it is, because it was just stored.
            && self.entries.len() > 1
            && (self.entries.len() > self.limits.messages
                || self.bytes > self.limits.bytes
                || first.position.time < oldest)
        {
            self.bytes -= first.bytes();
            self.entries.pop_front();
        }
    }

    fn read(&self, page: Page, limit: usize, last: u64) -> JournalPage {
        let end = self.entries.len();
        let at = |id| self.entries.partition_point(|e| e.position.id < id);
        let up_to = |first: usize, end: usize| first..end.min(first.saturating_add(limit));
        let range = match page {
            Page::After(id) if id > last => up_to(0, end),
            Page::After(id) => up_to(at(id.saturating_add(1)), end),
            Page::Before(id) => at(id).saturating_sub(limit)..at(id),
            Page::Latest => end.saturating_sub(limit)..end,
            Page::Only(id) => up_to(at(id), at(id.saturating_add(1))),
        };
        JournalPage {
            is_full: range.len() == limit,
            entries: self.entries.range(range).cloned().collect(),
            unreadable: Vec::new(),
            newest: last,
        }
    }
}

#[derive(Default)]
struct Room {
    /// Never empty.
    entries: VecDeque<Stored>,
    bytes: usize,
}

struct Stored {
    position: Position,
    event: Box<str>,
    args: Args,
}

impl Stored {
    fn bytes(&self) -> usize {
        let attached: usize = self.args.attachments().iter().map(bytes::Bytes::len).sum();
        OVERHEAD + self.event.len() + self.args.json().len() + attached
    }
}

impl Entries {
    fn new(limits: LogLimits) -> Self {
        let journal = |limits| Journal {
            limits,
            entries: VecDeque::new(),
            bytes: 0,
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
            position,
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
        room.bytes += stored.bytes();
        self.bytes += stored.bytes();
        room.entries.push_back(stored);
        let (limits, oldest) = (self.limits, oldest(self.limits.age, now));
        self.bytes -= room.evict(|room, first| {
            room.entries.len() > limits.messages.max(1)
                || room.bytes > limits.bytes && room.entries.len() > 1
                || first.position.time < oldest && room.entries.len() > 1
        });
        self.expire(now);
        while self.bytes > self.limits.memory_bytes && self.rooms.len() > 1 {
            self.forget_first();
        }
    }

    /// Removes the rooms without recent entries, and the journal if it has none.
    /// Called on each write and read, so a log needs no timer.
    fn expire(&mut self, now: Duration) {
        if let Some(journal) = &mut self.journal
            && let Some(latest) = journal.entries.back()
            && latest.position.time < oldest(journal.limits.age, now)
        {
            journal.entries.clear();
            journal.bytes = 0;
        }
        let oldest = oldest(self.limits.age, now);
        while let Some(name) = self.by_latest.values().next() {
            let room = self.rooms.get(name).expect("a room is in both tables");
            let latest = room.entries.back().expect("a room has an entry");
            if latest.position.time >= oldest {
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
        let oldest = oldest(self.limits.age, now);
        let expired = |stored: &Stored| stored.position.time < oldest;
        let kept = room.entries.partition_point(expired);
        let end = room.entries.len();
        let at = |id: u64| {
            let at = room
                .entries
                .partition_point(|stored| stored.position.id < id);
            at.max(kept)
        };
        let range = match page {
            Page::After(id) if id > self.last => kept..end.min(kept.saturating_add(limit)),
            Page::After(id) => at(id + 1)..end.min(at(id + 1).saturating_add(limit)),
            Page::Before(id) => at(id).saturating_sub(limit).max(kept)..at(id),
            Page::Latest => end.saturating_sub(limit).max(kept)..end,
            Page::Only(id) => at(id)..at(id.saturating_add(1)).min(at(id).saturating_add(limit)),
        };
        let entry = |stored: &Stored| HistoryEntry {
            id: stored.position.id,
            time: stored.position.time,
            room: (**name).into(),
            event: stored.event.clone(),
            args: stored.args.clone(),
        };
        room.entries.range(range).map(entry).collect()
    }
}

impl Room {
    /// Removes entries while `is_too_much` holds for the oldest one. Returns their size.
    fn evict(&mut self, is_too_much: impl Fn(&Self, &Stored) -> bool) -> usize {
        let before = self.bytes;
        while let Some(first) = self.entries.front()
            && is_too_much(self, first)
        {
            self.bytes -= first.bytes();
            self.entries.pop_front();
        }
        before - self.bytes
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
