//! The order of one socket's requests.
//!
//! A call takes a turn and waits for all earlier calls of its socket. Events that are
//! sent in batches share a turn: those that arrive one after the other are a [`Run`],
//! which has the turn until its last event is done. Any other call ends the run, so that nothing
//! overtakes it.

use std::sync::Arc;

use roomcast::Socket;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::batch::Run;

/// The turns of one socket.
#[derive(Default)]
pub(super) struct Turns {
    order: Arc<Mutex<()>>,
    /// The run that the next event of a batch joins.
    run: parking_lot::Mutex<Option<Arc<Run>>>,
}

/// A turn, until it is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Turns {
    pub(super) fn of(socket: &Socket) -> Arc<Self> {
        socket.attached::<Self>().unwrap_or_else(|| {
            // Only the connection's own task polls its handlers, so nothing happens in between.
            socket.attach(Self::default());
            socket.attached().unwrap_or_default()
        })
    }

    /// Waits until everything before is done.
    pub(super) async fn next(&self) -> Turn {
        Arc::clone(&self.order).lock_owned().await
    }

    /// Calls `join` with the run that is still open. If it returns a new one, that one
    /// takes its place and is returned.
    pub(super) fn join_run(
        &self,
        join: impl FnOnce(Option<&Arc<Run>>) -> Option<Arc<Run>>,
    ) -> Option<Arc<Run>> {
        let mut run = self.run.lock();
        let new = join(run.as_ref())?;
        *run = Some(Arc::clone(&new));
        Some(new)
    }
}

/// Waits until everything that the socket did before is done. The order is that of the first polls,
/// which is the order of the packets.
pub(super) async fn turn(socket: &Socket) -> Turn {
    let turns = Turns::of(socket);
    *turns.run.lock() = None;
    turns.next().await
}
