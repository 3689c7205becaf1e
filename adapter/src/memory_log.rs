//! Logs of rooms in the memory of one process: for servers without Redis, and for tests.
//!
//! Entries are evicted oldest first, by four limits. Those of one room are in [`Room`]; the limit of
//! the whole namespace takes the rooms in the order of their latest entries:
//!
//! ```text
//! by_latest: id of the latest entry ─► room ─► entries, oldest first
//!            ▲ first: the room that has been silent for the longest time
//! ```

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

use crate::bus::{BusError, BusFuture, HistoryEntry, HistoryLimits, Listener, Log, Page};

/// The bytes of an entry beside its texts.
const OVERHEAD: usize = 64;

/// The logs of the namespaces of one process. They outlive the namespaces, which may come and go.
#[derive(Clone, Default)]
pub struct MemoryLogs(Arc<Mutex<HashMap<Box<str>, Arc<MemoryLog>>>>);

impl MemoryLogs {
    /// Opens the log of a namespace, and creates it if it does not exist. The listener receives what is
    /// published from now on. The limits of the first call apply.
    pub fn open(
        &self,
        namespace: &str,
        limits: HistoryLimits,
        listener: Weak<dyn Listener>,
    ) -> Arc<dyn Log> {
        let mut logs = self.0.lock();
        let log = match logs.get(namespace) {
            Some(log) => Arc::clone(log),
            None => {
                // Names of namespaces come from clients, so those without use and content must go.
                let now = now();
                logs.retain(|_, log| log.is_used() || log.has_entries(now));
                let log = Arc::new(MemoryLog::new(limits));
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
}

impl MemoryLog {
    fn new(limits: HistoryLimits) -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            entries: Mutex::new(Entries::new(limits)),
            listeners: Mutex::default(),
        }
    }

    fn is_used(&self) -> bool {
        let listeners = self.listeners.lock();
        listeners.iter().any(|listener| listener.strong_count() > 0)
    }

    fn has_entries(&self, now: Duration) -> bool {
        let mut entries = self.entries.lock();
        entries.expire(now);
        !entries.rooms.is_empty()
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
        Box::pin(async move {
            let turn = log.turn.lock().await;
            let (room, now) = (&*target.rooms[0], now());
            let position = log.entries.lock().append(room, &event, &args, now);
            let message = Message::Broadcast {
                target,
                event,
                args,
            };
            let listeners: Vec<_> = {
                let listeners = log.listeners.lock();
                listeners.iter().filter_map(Weak::upgrade).collect()
            };
            for listener in listeners {
                listener.receive(&message, Some(position));
            }
            drop(turn);
            Ok(position)
        })
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
    fn new(limits: HistoryLimits) -> Self {
        Self {
            limits,
            last: 0,
            bytes: 0,
            rooms: HashMap::new(),
            by_latest: BTreeMap::new(),
        }
    }

    fn append(&mut self, name: &str, event: &str, args: &Args, now: Duration) -> Position {
        self.last = (self.last + 1).max(now.as_secs());
        let position = Position {
            id: self.last,
            time: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
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
        let (limits, oldest) = (self.limits, oldest(&self.limits, now));
        self.bytes -= room.evict(|room, first| {
            room.entries.len() > limits.messages.max(1)
                || room.bytes > limits.bytes && room.entries.len() > 1
                || first.position.time < oldest && room.entries.len() > 1
        });
        self.expire(now);
        while self.bytes > self.limits.memory_bytes && self.rooms.len() > 1 {
            self.forget_first();
        }
        position
    }

    /// Forgets the rooms without an entry that is young enough.
    fn expire(&mut self, now: Duration) {
        let oldest = oldest(&self.limits, now);
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
        let oldest = oldest(&self.limits, now);
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
fn oldest(limits: &HistoryLimits, now: Duration) -> u64 {
    let seconds = limits.age.as_secs().max(1);
    let oldest = now.saturating_sub(Duration::from_secs(seconds));
    u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
