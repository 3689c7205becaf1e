//! Facts about the process in addition to the server: whether its workers make progress, and
//! how many log lines it had to drop.
//!
//! `/livez` shows that the process runs; these facts show whether it works. A worker that
//! is blocked by a handler of the application cannot serve clients, although the thread
//! of the internal port still responds. So a beat on the workers is listened to from
//! that thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts};
use roomcast::{Health, Server};
use tokio::time::sleep;
use tracing_appender::non_blocking::ErrorCounter;

#[cfg(target_os = "linux")]
use super::process::Process;
use super::{admin::Figures, clock};

/// Time between two beats of the workers.
const BEAT: Duration = Duration::from_secs(1);

/// Without a beat for this long, every worker is taken to be blocked.
const STALLED: Duration = Duration::from_secs(5);

/// The commit that the program was built from, if the build knew it.
pub(super) const REVISION: &str = match option_env!("ROOMCAST_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The server and the process around it, as the internal port sees them.
pub(crate) struct Vitals {
    server: Server,
    heart: Arc<Heart>,
    dropped_lines: ErrorCounter,
    log_lines_dropped: IntCounter,
    ready: IntGauge,
}

impl Vitals {
    /// Must be called in the runtime that carries the connections.
    pub(crate) fn start(
        server: Server,
        dropped_lines: ErrorCounter,
    ) -> Result<Self, prometheus::Error> {
        let log_lines_dropped = IntCounter::new(
            "roomcast_log_lines_dropped_total",
            "log lines dropped because standard error took no more",
        )?;
        let ready = IntGauge::new(
            "roomcast_ready",
            "1 while /readyz returns 200: the node accepts clients and messages flow",
        )?;
        let build_info = IntGaugeVec::new(
            Opts::new("roomcast_build_info", "Always 1, labelled with the build"),
            &["version", "revision"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION])
            .set(1);
        let registry = server.registry();
        registry.register(Box::new(log_lines_dropped.clone()))?;
        registry.register(Box::new(ready.clone()))?;
        registry.register(Box::new(build_info))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(Process::new()?))?;
        let heart = Arc::new(Heart::new());
        tokio::spawn(Arc::clone(&heart).beat());
        Ok(Self {
            server,
            heart,
            dropped_lines,
            log_lines_dropped,
            ready,
        })
    }
}

impl Figures for Vitals {
    fn obstacle(&self) -> Option<String> {
        if let Some(silence) = self.heart.silence(STALLED) {
            let seconds = silence.as_secs();
            return Some(format!(
                "stalled: no worker has made progress for {seconds} s"
            ));
        }
        match self.server.health() {
            Health::Flowing => None,
            Health::Interrupted(reason) => Some(format!("interrupted: {reason}")),
        }
    }

    fn metrics(&self, is_ready: bool) -> String {
        self.ready.set(i64::from(is_ready));
        let dropped = u64::try_from(self.dropped_lines.dropped_lines()).unwrap_or(u64::MAX);
        // The writer of the log has its own counter, which the metric follows.
        let counted = self.log_lines_dropped.get();
        self.log_lines_dropped
            .inc_by(dropped.saturating_sub(counted));
        self.server.metrics()
    }
}

/// Beats on a worker, and is listened to from the thread of the internal port.
struct Heart {
    start: Instant,
    /// Milliseconds from the start to the last beat.
    last: AtomicU64,
}

impl Heart {
    #[expect(
        clippy::disallowed_methods,
        reason = "the internal port judges the workers by a clock that is not theirs"
    )]
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    async fn beat(self: Arc<Self>) {
        loop {
            self.last.store(self.millis(), Ordering::Relaxed);
            sleep(BEAT).await;
        }
    }

    /// How long ago the last beat was, if at least `too_long`.
    fn silence(&self, too_long: Duration) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed);
        let silence = Duration::from_millis(self.millis().saturating_sub(last));
        (silence >= too_long).then_some(silence)
    }

    fn millis(&self) -> u64 {
        clock::millis(self.start.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn blocked_workers_are_noticed_and_so_is_that_they_go_on() {
        let workers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let heart = Arc::new(Heart::new());
        workers.spawn(Arc::clone(&heart).beat());
        let (release, released) = mpsc::channel::<()>();
        workers.spawn(async move {
            let _ = released.recv();
        });
        let too_long = BEAT * 3 / 2;
        while heart.silence(too_long).is_none() {
            thread::sleep(Duration::from_millis(10));
        }
        drop(release);
        while heart.silence(too_long).is_some() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}
