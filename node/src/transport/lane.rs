//! One worker's share of the connections: which have to be flushed, and the task that does it. There
//! are as many lanes as worker threads.
//!
//! Pushing to an outbox and writing it are two operations. Whoever pushes notes the connection as
//! dirty, once; the lane's task writes the dirty ones, 64 at a time, and yields in between. What is
//! pushed meanwhile to a connection that is still dirty goes out in the same write, so under load a
//! connection gets many frames per system call, and order is the order of its outbox.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior},
};

use super::{
    connection::Connection,
    engine::Engine,
    sessions::{Identified, Sessions, Slot},
};
use crate::clock::Time;

/// Connections that are written between two yields: few enough that others are served in between,
/// enough that a yield costs nothing (64 writes take about 0.25 ms).
const CHUNK: usize = 64;

pub(crate) struct Lane {
    sessions: Mutex<Sessions<Arc<Connection>>>,
    dirty: Mutex<Vec<Arc<Connection>>>,
    wake: Notify,
    tick: Duration,
}

impl Identified for Arc<Connection> {
    fn id(&self) -> &str {
        Connection::id(self).as_str()
    }
}

impl Lane {
    /// `tick` is the resolution of deadlines.
    pub(super) fn new(tick: Duration) -> Self {
        Self {
            sessions: Mutex::new(Sessions::new(tick)),
            dirty: Mutex::default(),
            wake: Notify::new(),
            tick,
        }
    }

    pub(super) fn insert(&self, connection: &Arc<Connection>) -> Slot {
        self.sessions.lock().insert(Arc::clone(connection))
    }

    pub(super) fn remove(&self, connection: &Connection, slot: Slot) {
        self.sessions.lock().remove(connection.id().as_str(), slot);
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Connection>> {
        self.sessions.lock().find(id)
    }

    pub(super) fn connections(&self) -> Vec<Arc<Connection>> {
        self.sessions.lock().all()
    }

    /// See [`Sessions::arm`].
    pub(super) fn arm(&self, slot: Slot, at: Time) -> u64 {
        self.sessions.lock().arm(slot, at)
    }

    /// Notes connections that have something to write.
    pub(super) fn flush_later(&self, mut connections: Vec<Arc<Connection>>) {
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
    pub(super) fn flush_one_later(&self, connection: Arc<Connection>) {
        let mut dirty = self.dirty.lock();
        dirty.push(connection);
        let first = dirty.len() == 1;
        drop(dirty);
        if first {
            self.wake.notify_one();
        }
    }

    /// The lane's task. Ends only by being aborted.
    pub(super) async fn run(&self, engine: &Engine) {
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
        let due = self.sessions.lock().due(now);
        for (connection, tick) in due {
            connection.on_timer(tick, now);
        }
    }
}
