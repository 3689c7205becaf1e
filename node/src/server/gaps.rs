//! Gaps, times in which messages of other nodes may not have arrived. Each is logged and
//! passed to the application's handler.
//!
//! The handler runs for one gap at a time. Gaps that arrive meanwhile are merged into one
//! that spans them, so memory stays constant while the connection to Redis flaps.
//!
//! The application is notified after the server has repaired the gap, see
//! [`catch_up`](super::catch_up), so that its handler finds histories complete.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
};

use futures_util::FutureExt as _;
use httpdate::fmt_http_date;
use parking_lot::Mutex;
use roomcast_adapter::{Bus, Gap};
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle};

use super::{
    error::{HandlerResult, Place},
    handler::{BoxFuture, Outcome},
};
use crate::metrics::Metrics;

pub(crate) type OnGap = Box<dyn Fn(Gap) -> BoxFuture<HandlerResult> + Send + Sync>;

/// A handler as the builder takes it.
pub(super) fn handler<F, Fut>(handler: F) -> OnGap
where
    F: Fn(Gap) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Outcome> + Send + 'static,
{
    Box::new(move |gap| {
        let running = handler(gap);
        Box::pin(async move { running.await.into_result() })
    })
}

/// Listens for gaps until it is dropped.
pub(crate) struct Gaps {
    /// Kept alive here; the bus has a weak reference.
    _untold: Arc<Untold>,
    task: AbortHandle,
}

/// The gap that the handler has not seen yet.
#[derive(Default)]
struct Untold {
    gap: Mutex<Option<Gap>>,
    news: Notify,
}

impl Gaps {
    pub(super) fn listen(
        bus: &dyn Bus,
        handler: OnGap,
        runtime: &Handle,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let untold = Arc::<Untold>::default();
        let weak: Weak<Untold> = Arc::downgrade(&untold);
        // Called by the bus where messages arrive, so the handler, which may wait, runs
        // in a task.
        bus.on_gap(Box::new(move |gap| {
            if let Some(untold) = weak.upgrade() {
                log(gap);
                untold.add(gap);
            }
        }));
        let telling = tell(Arc::clone(&untold), handler, Arc::clone(metrics));
        let task = runtime.spawn(telling).abort_handle();
        Self {
            _untold: untold,
            task,
        }
    }
}

impl Drop for Gaps {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Untold {
    fn add(&self, gap: &Gap) {
        let mut untold = self.gap.lock();
        let (from, to) = untold.map_or((gap.from, gap.to), |earlier| {
            (earlier.from.min(gap.from), earlier.to.max(gap.to))
        });
        *untold = Some(Gap { from, to });
        drop(untold);
        self.news.notify_one();
    }
}

/// Written even without a handler, because a gap explains losses that clients report.
fn log(gap: &Gap) {
    let seconds = gap.to.duration_since(gap.from).unwrap_or_default();
    tracing::warn!(
        from = fmt_http_date(gap.from),
        to = fmt_http_date(gap.to),
        seconds = seconds.as_secs_f64(),
        "messages of other nodes may not have arrived",
    );
}

/// Runs the handler for one gap after the other. An error or a panic of it ends nothing.
async fn tell(untold: Arc<Untold>, handler: OnGap, metrics: Arc<Metrics>) {
    loop {
        untold.news.notified().await;
        let Some(gap) = untold.gap.lock().take() else {
            continue;
        };
        let running = AssertUnwindSafe(async { handler(gap).await });
        match running.catch_unwind().await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => drop(error.report(&Place {
                metrics: &metrics,
                namespace: "",
                socket: None,
                what: "gap",
            })),
            Err(_) => {
                metrics.handler_panics.inc();
                tracing::error!("the handler of gaps panicked");
            }
        }
    }
}
