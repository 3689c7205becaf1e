//! Handlers of server-side events, which no connection runs. Their number is bounded,
//! because any node can emit such events, and a server that closes waits for them.

use std::future::{Future, poll_fn};

use parking_lot::Mutex;
use tokio::{runtime::Handle, task::JoinSet};

/// The running handlers. Dropping this aborts them.
pub(crate) struct Tasks {
    runtime: Handle,
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: JoinSet<()>,
    is_closed: bool,
}

/// Why a task was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error("the server is handling too many server-side events")]
    TooMany,
    #[error("the server is closing")]
    Closed,
}

impl Tasks {
    /// Runs at most `limit` tasks at a time on `runtime`.
    pub(crate) fn new(runtime: Handle, limit: usize) -> Self {
        Self {
            runtime,
            limit,
            state: Mutex::default(),
        }
    }

    /// The runtime of the server.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Starts a task, unless there are too many or the server is closing.
    pub(crate) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), NotStarted> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(NotStarted::Closed);
        }
        // Those that are done stay in the set until they are taken out.
        while state.running.try_join_next().is_some() {}
        if state.running.len() >= self.limit {
            return Err(NotStarted::TooMany);
        }
        state.running.spawn_on(task, &self.runtime);
        Ok(())
    }

    /// Refuses further tasks and waits for the running ones.
    pub(crate) async fn finish(&self) {
        self.state.lock().is_closed = true;
        while poll_fn(|cx| self.state.lock().running.poll_join_next(cx))
            .await
            .is_some()
        {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn no_more_run_than_may_and_the_end_is_waited_for() {
        let tasks = Arc::new(Tasks::new(Handle::current(), 1));
        let (release, released) = oneshot::channel::<()>();
        let task = async { drop(released.await) };
        assert_eq!(tasks.spawn(task), Ok(()));
        assert_eq!(tasks.spawn(async {}), Err(NotStarted::TooMany));
        let finishing = tokio::spawn({
            let tasks = Arc::clone(&tasks);
            async move { tasks.finish().await }
        });
        while tasks.spawn(async {}) != Err(NotStarted::Closed) {
            tokio::task::yield_now().await;
        }
        assert!(!finishing.is_finished());
        release.send(()).unwrap();
        finishing.await.unwrap();
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_its_task_is_done() {
        let tasks = Tasks::new(Handle::current(), 1);
        let (done, is_done) = oneshot::channel();
        let task = async { done.send(()).unwrap() };
        assert_eq!(tasks.spawn(task), Ok(()));
        is_done.await.unwrap();
        while tasks.spawn(async {}) == Err(NotStarted::TooMany) {
            tokio::task::yield_now().await;
        }
        tasks.finish().await;
    }
}
