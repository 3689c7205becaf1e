//! The open connections of an internal port. Their number is limited, because anybody with access to the
//! port could otherwise take all descriptors of the process, and with them the clients and the probes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};
use tokio::task::AbortHandle;

use crate::gateway::line_limit::LineLimit;

/// Maximum number of connections, if the limit of open files allows it.
const MAX_CONNECTIONS: usize = 512;

/// The connections of one listener.
pub(super) struct Connections {
    most: usize,
    table: Mutex<Table>,
    lines: LineLimit,
}

#[derive(Default)]
struct Table {
    last: u64,
    open: BTreeMap<u64, Open>,
}

struct Open {
    task: AbortHandle,
    has_asked: Arc<AtomicBool>,
}

/// Removes a connection when it ends in any way.
struct Leaving(Arc<Connections>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.table.lock().open.remove(&self.1);
    }
}

impl Connections {
    /// As many as the limit of open files leaves beside the clients.
    pub(super) fn new() -> Self {
        let files = getrlimit(Resource::Nofile).current;
        let files = files.map_or(usize::MAX, |files| {
            usize::try_from(files).unwrap_or(usize::MAX)
        });
        Self::with((files / 16).clamp(8, MAX_CONNECTIONS))
    }

    fn with(most: usize) -> Self {
        Self {
            most,
            table: Mutex::default(),
            lines: LineLimit::default(),
        }
    }

    /// Runs a connection, which sets the flag with its first request. At the limit, the oldest connection without a
    /// request ends; if all have sent one, the new one ends.
    pub(super) fn run<F>(self: &Arc<Self>, connection: impl FnOnce(Arc<AtomicBool>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut table = self.table.lock();
        if table.open.len() >= self.most {
            let has_room = table.end_oldest_without_request();
            if let Some(left_out) = self.lines.pass() {
                let most = self.most;
                tracing::warn!(
                    most,
                    left_out,
                    "the internal port has too many connections, and closes one"
                );
            }
            if !has_room {
                return;
            }
        }
        table.last += 1;
        let leaving = Leaving(Arc::clone(self), table.last);
        let has_asked = Arc::<AtomicBool>::default();
        let running = connection(Arc::clone(&has_asked));
        let task = tokio::spawn(async move {
            let _leaving = leaving;
            running.await;
        });
        let open = Open {
            task: task.abort_handle(),
            has_asked,
        };
        let number = table.last;
        table.open.insert(number, open);
    }
}

impl Table {
    fn end_oldest_without_request(&mut self) -> bool {
        let mut waiting = self.open.iter();
        let oldest = waiting.find(|(_, open)| !open.has_asked.load(Ordering::Relaxed));
        let Some(number) = oldest.map(|(number, _)| *number) else {
            return false;
        };
        if let Some(open) = self.open.remove(&number) {
            open.task.abort();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot::{self, error::TryRecvError};

    use super::*;

    /// Runs a connection that never ends by itself. The receiver fails when it has ended.
    async fn open(connections: &Arc<Connections>, asks: bool) -> oneshot::Receiver<()> {
        let (ending, ended) = oneshot::channel();
        connections.run(move |has_asked| async move {
            has_asked.store(asks, Ordering::Relaxed);
            let _ending = ending;
            pending().await
        });
        tokio::task::yield_now().await;
        ended
    }

    #[tokio::test]
    async fn a_flood_of_connections_without_a_request_ends_the_oldest_of_them() {
        let connections = Arc::new(Connections::with(3));
        let mut asking = open(&connections, true).await;
        let first = open(&connections, false).await;
        let mut second = open(&connections, false).await;
        let mut third = open(&connections, true).await;
        first.await.unwrap_err();
        for kept in [&mut asking, &mut second, &mut third] {
            assert_eq!(kept.try_recv(), Err(TryRecvError::Empty));
        }
        assert_eq!(connections.table.lock().open.len(), 3);
    }

    #[tokio::test]
    async fn beside_connections_with_requests_a_further_one_ends_until_there_is_room() {
        let connections = Arc::new(Connections::with(1));
        connections.run(|_| async {});
        while !connections.table.lock().open.is_empty() {
            tokio::task::yield_now().await;
        }
        let mut kept = open(&connections, true).await;
        open(&connections, true).await.await.unwrap_err();
        assert_eq!(kept.try_recv(), Err(TryRecvError::Empty));
    }
}
