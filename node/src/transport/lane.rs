//! One worker's share of the connections: who has to be flushed, whose deadline is due, and which
//! id belongs to whom. As many lanes as worker threads, each with one task.
//!
//! Pushing to an outbox and writing it are two operations. Whoever pushes notes the connection as
//! dirty, once; the lane's task writes the dirty ones, 64 at a time, and yields in between. What is
//! pushed meanwhile to a connection that is still dirty goes out in the same write, so under load a
//! connection gets many frames per system call, and order is the order of its outbox.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use hashbrown::HashTable;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior},
};

use super::{connection::Connection, engine::Engine};
use crate::clock::Time;

/// Connections that are written between two yields: few enough that others are served in between,
/// enough that a yield costs nothing (64 writes take about 0.25 ms).
const CHUNK: usize = 64;

/// Buckets of the timer wheel; a deadline beyond them is looked at again when the wheel gets there.
const BUCKETS: u64 = 128;

pub(crate) struct Lane {
    sessions: Mutex<Sessions>,
    dirty: Mutex<Vec<Arc<Connection>>>,
    wake: Notify,
    tick: Duration,
    hasher: RandomState,
}

/// Where a connection's id and timer are kept.
pub(crate) type Slot = u32;

struct Sessions {
    slots: Vec<Option<Arc<Connection>>>,
    free: Vec<Slot>,
    ids: HashTable<Slot>,
    /// Bucket `n` holds the slots whose timer is set to a tick `n` modulo the number of buckets.
    wheel: Box<[Vec<Slot>]>,
    /// The last tick that was looked at.
    now: u64,
}

impl Lane {
    /// `tick` is the resolution of deadlines.
    pub(crate) fn new(tick: Duration) -> Self {
        let sessions = Sessions {
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashTable::new(),
            wheel: (0..BUCKETS).map(|_| Vec::new()).collect(),
            now: 0,
        };
        Self {
            sessions: Mutex::new(sessions),
            dirty: Mutex::default(),
            wake: Notify::new(),
            tick,
            hasher: RandomState::new(),
        }
    }

    /// Makes a connection findable by its id and gives it a timer.
    pub(crate) fn insert(&self, connection: &Arc<Connection>) -> Slot {
        let hash = self.hasher.hash_one(connection.id().as_str());
        let sessions = &mut *self.sessions.lock();
        let slot = sessions.free.pop().unwrap_or_else(|| {
            sessions.slots.push(None);
            Slot::try_from(sessions.slots.len() - 1).expect("fewer than 2^32 connections")
        });
        sessions.slots[slot as usize] = Some(Arc::clone(connection));
        let slots = &sessions.slots;
        sessions.ids.insert_unique(hash, slot, |&slot| {
            slots[slot as usize]
                .as_ref()
                .map_or(0, |other| self.hasher.hash_one(other.id().as_str()))
        });
        slot
    }

    pub(crate) fn remove(&self, connection: &Connection, slot: Slot) {
        let hash = self.hasher.hash_one(connection.id().as_str());
        let sessions = &mut *self.sessions.lock();
        if let Ok(found) = sessions.ids.find_entry(hash, |&known| known == slot) {
            found.remove();
            sessions.slots[slot as usize] = None;
            sessions.free.push(slot);
        }
        if sessions.ids.is_empty() && sessions.slots.len() > 1024 {
            // Gives memory back after a storm; numbering starts again.
            sessions.slots = Vec::new();
            sessions.free = Vec::new();
            sessions.ids = HashTable::new();
        }
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Connection>> {
        let hash = self.hasher.hash_one(id);
        let sessions = self.sessions.lock();
        let of = |slot: Slot| sessions.slots[slot as usize].as_ref();
        let slot = sessions.ids.find(hash, |&slot| {
            of(slot).is_some_and(|other| other.id().as_str() == id)
        })?;
        of(*slot).cloned()
    }

    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        self.sessions
            .lock()
            .slots
            .iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Sets the timer of a connection; answers the tick at which it will be looked at, which is
    /// not before `at` unless `at` is beyond the wheel.
    pub(crate) fn arm(&self, slot: Slot, at: Time) -> u64 {
        let mut sessions = self.sessions.lock();
        let tick = (at.as_millis() / self.tick_millis() + 1)
            .clamp(sessions.now + 1, sessions.now + BUCKETS - 1);
        sessions.wheel[usize::try_from(tick % BUCKETS).expect("few buckets")].push(slot);
        tick
    }

    /// Notes connections that have something to write.
    pub(crate) fn flush_later(&self, mut connections: Vec<Arc<Connection>>) {
        if connections.is_empty() {
            return;
        }
        let mut dirty = self.dirty.lock();
        let idle = dirty.is_empty();
        if idle {
            *dirty = connections;
        } else {
            dirty.append(&mut connections);
        }
        drop(dirty);
        if idle {
            self.wake.notify_one();
        }
    }

    /// Notes one connection that has something to write.
    pub(crate) fn flush_one_later(&self, connection: Arc<Connection>) {
        let mut dirty = self.dirty.lock();
        dirty.push(connection);
        let first = dirty.len() == 1;
        drop(dirty);
        if first {
            self.wake.notify_one();
        }
    }

    /// The lane's task. Ends only by being aborted.
    pub(crate) async fn run(&self, engine: &Engine) {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut scratch = Vec::new();
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    self.flush_dirty(engine, &mut ticks, &mut scratch).await;
                }
                _ = ticks.tick() => self.look_at_timers(engine),
            }
        }
    }

    async fn flush_dirty(&self, engine: &Engine, ticks: &mut Interval, scratch: &mut Vec<u8>) {
        loop {
            let dirty = std::mem::take(&mut *self.dirty.lock());
            if dirty.is_empty() {
                return;
            }
            for chunk in dirty.chunks(CHUNK) {
                let sent: usize = chunk.iter().map(|dirty| dirty.flush(scratch)).sum();
                engine.metrics.bytes_sent.inc_by(sent as u64);
                tokio::task::yield_now().await;
                // Broadcasts that never pause keep the lane here; its connections need their
                // heartbeat all the same.
                if ticks.tick().now_or_never().is_some() {
                    self.look_at_timers(engine);
                }
            }
        }
    }

    fn look_at_timers(&self, engine: &Engine) {
        let now = engine.clock.now();
        for (connection, tick) in self.due(now) {
            connection.on_timer(tick, now);
        }
    }

    /// The connections whose timers were set to a tick up to now. Timers that were set anew since
    /// are among them; they tell by the tick.
    fn due(&self, now: Time) -> Vec<(Arc<Connection>, u64)> {
        let sessions = &mut *self.sessions.lock();
        let until = (now.as_millis() / self.tick_millis()).max(sessions.now);
        let mut due = Vec::new();
        for tick in sessions.now + 1..=until {
            let bucket = usize::try_from(tick % BUCKETS).expect("few buckets");
            for slot in std::mem::take(&mut sessions.wheel[bucket]) {
                if let Some(Some(connection)) = sessions.slots.get(slot as usize) {
                    due.push((Arc::clone(connection), tick));
                }
            }
        }
        sessions.now = until;
        due
    }

    fn tick_millis(&self) -> u64 {
        u64::try_from(self.tick.as_millis())
            .unwrap_or(u64::MAX)
            .max(1)
    }
}
