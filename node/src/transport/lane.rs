//! One worker's share of the connections: those that have to be flushed, and the task that flushes
//! them. There are as many lanes as worker threads.
//!
//! Pushing to an outbox and writing it are two operations. A push marks the connection as
//! dirty, once; the lane's task writes the dirty ones, 64 at a time, and yields in between. A frame
//! pushed meanwhile to a connection that is still dirty goes out in the same write, so under load a
//! connection gets many frames per system call, and order is the order of its outbox.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior},
};

use super::{
    connection::Connection,
    engine::Engine,
    sessions::{Identified, Sessions},
};

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

    pub(super) fn sessions(&self) -> MutexGuard<'_, Sessions<Arc<Connection>>> {
        self.sessions.lock()
    }

    /// Adds connections that have something to write, and wakes the lane if it was idle.
    /// Only the first connection wakes the task, because it continues until none is left.
    pub(super) fn flush_later(&self, connections: impl IntoIterator<Item = Arc<Connection>>) {
        let mut dirty = self.dirty.lock();
        let was_idle = dirty.is_empty();
        dirty.extend(connections);
        let wakes = was_idle && !dirty.is_empty();
        drop(dirty);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Makes the lane's task enforce the budget of waiting bytes soon.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The lane's task. Ends only by being aborted.
    pub(super) async fn run(&self, engine: &Engine) {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut scratch = Vec::new();
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    engine.enforce_budget();
                    self.flush_dirty(engine, &mut ticks, &mut scratch).await;
                }
                _ = ticks.tick() => self.look_at_timers(engine),
            }
        }
    }

    async fn flush_dirty(&self, engine: &Engine, ticks: &mut Interval, scratch: &mut Vec<u8>) {
        loop {
            // Taken as a whole. Connections that become dirty meanwhile are flushed in the next
            // round.
            let dirty = std::mem::take(&mut *self.dirty.lock());
            if dirty.is_empty() {
                return;
            }
            for chunk in dirty.chunks(CHUNK) {
                let sent: usize = chunk.iter().map(|dirty| dirty.flush(scratch)).sum();
                engine.enforce_budget();
                engine.metrics.bytes_sent.inc_by(sent as u64);
                tokio::task::yield_now().await;
                // Broadcasts that never pause keep the lane here; its connections need their
                // heartbeat nevertheless.
                if ticks.tick().now_or_never().is_some() {
                    self.look_at_timers(engine);
                }
            }
        }
    }

    fn look_at_timers(&self, engine: &Engine) {
        engine.enforce_budget();
        let now = engine.clock.now();
        let due = self.sessions().due(now);
        for (connection, tick) in due {
            connection.on_timer(tick, now);
        }
    }
}
