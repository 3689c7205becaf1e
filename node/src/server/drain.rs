//! Moves the clients of a server to others before it stops.
//!
//! Clients that lose their connection at the same time reconnect at the same time, each with a
//! handshake and its joins, which is more than the remaining nodes can handle in addition to their
//! traffic. A drain spreads the closes, and thereby the reconnects.
//!
//! Each connection has its own due time, so a late turn of the timer closes all connections that
//! are due, and a busy machine keeps the rate. The transport's `engine` has a diagram of the
//! phases.

use std::time::Duration;

use tokio::time::sleep;

use super::server::Server;
use crate::{
    close::CloseReason,
    transport::{
        connection::Connection,
        engine::{Engine, Phase},
    },
};

/// Time between two checks of due connections.
const TICK: Duration = Duration::from_millis(10);

/// Maximum time between two closes. A server with few clients drains in less time, because so
/// few reconnects are no burden.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Time between two log lines about the progress.
const REPORT_MILLIS: u64 = 5_000;

/// The times of a drain; see [`Server::drain`].
///
/// ```
/// # use std::time::Duration;
/// # use roomcast::Drain;
/// let drain = Drain { over: Duration::from_secs(60), ..Drain::default() };
/// # drop(drain);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Time for balancers to notice that the server is not [ready](Server::is_ready).
    /// Until then, new clients are accepted. Default 3 s: two health checks, one second
    /// apart, and a margin.
    pub grace: Duration,
    /// Time over which the connections are closed, at an even rate of at least 20 per
    /// second. Default 10 s. Zero closes them all at once.
    pub over: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(3),
            over: Duration::from_secs(10),
        }
    }
}

impl Server {
    /// Moves all clients to other servers, before [`close`](Self::close).
    ///
    /// From now on the server is not [ready](Self::is_ready). After the grace period, which a
    /// server without connections skips, new connections get status 503, and the open ones are
    /// closed at an even rate. Their transports are closed and not their namespaces, so that
    /// official clients reconnect by themselves (`transport close`). Returns when every connection
    /// has been closed; handlers may still run. To skip the rest of the drain, drop the future and
    /// call `close`.
    ///
    /// The listener must keep accepting meanwhile, because each poll may be a separate connection:
    ///
    /// ```no_run
    /// # use roomcast::{Drain, Namespace, Server, shutdown_signal};
    /// # async fn run(io: Server, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    /// let drained = io.clone();
    /// io.serve(listener, io.router())
    ///     .with_graceful_shutdown(async move {
    ///         shutdown_signal().await;
    ///         drained.drain(Drain::default()).await;
    ///     })
    ///     .await
    /// # }
    /// ```
    pub async fn drain(&self, drain: Drain) {
        let engine = self.engine();
        engine.enter(Phase::Leaving);
        if engine.open() > 0 {
            sleep(drain.grace).await;
        }
        engine.enter(Phase::Refusing);
        close_evenly(engine, drain.over).await;
    }
}

/// Closes the connections one after the other, the last one after this time.
async fn close_evenly(engine: &Engine, over: Duration) {
    // A connection that is missing here was opened after handshakes are refused, and closes itself.
    let all = engine.all();
    let pace = Pace::new(all.len(), over);
    if pace.total > 0 {
        let seconds = pace.over.as_secs_f32();
        tracing::info!(
            connections = pace.total,
            seconds,
            "closing all connections evenly"
        );
    }
    let begin = engine.clock.now().as_millis();
    let (mut closed, mut reported) = (0, begin);
    let mut left = all.into_iter();
    loop {
        let now = engine.clock.now().as_millis();
        let due = pace.due(Duration::from_millis(now.saturating_sub(begin)));
        for connection in left.by_ref().take(due.saturating_sub(closed)) {
            close(engine, &connection);
            closed += 1;
        }
        let remaining = left.len();
        engine
            .metrics
            .draining
            .set(i64::try_from(remaining).unwrap_or(i64::MAX));
        if remaining == 0 {
            return;
        }
        if now >= reported + REPORT_MILLIS {
            tracing::info!(closed, remaining, "draining");
            reported = now;
        }
        sleep(TICK).await;
    }
}

/// The schedule of due connections.
struct Pace {
    total: usize,
    over: Duration,
}

impl Pace {
    fn new(total: usize, over: Duration) -> Self {
        let longest = LONGEST_PAUSE.saturating_mul(u32::try_from(total).unwrap_or(u32::MAX));
        let over = over.min(longest);
        Self { total, over }
    }

    /// The number of connections that should be closed after this time.
    fn due(&self, elapsed: Duration) -> usize {
        if elapsed >= self.over {
            return self.total;
        }
        let due = self.total as u128 * elapsed.as_nanos() / self.over.as_nanos();
        usize::try_from(due).unwrap_or(self.total)
    }
}

/// Closes the connections that a drain has left, or all if there was no drain.
pub(super) fn close_all(engine: &Engine) {
    for connection in engine.all() {
        close(engine, &connection);
    }
    engine.metrics.draining.set(0);
}

fn close(engine: &Engine, connection: &Connection) {
    if !connection.is_closed() {
        engine.metrics.drained.inc();
    }
    // The deadline of a connection that is closing already becomes that of a shutdown.
    connection.close(CloseReason::ServerShutdown);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_due_at_an_even_rate() {
        let pace = Pace::new(5000, Duration::from_secs(10));
        let due = |millis| pace.due(Duration::from_millis(millis));
        assert_eq!([due(0), due(1), due(2), due(5000)], [0, 0, 1, 2500]);
        assert_eq!([due(9_999), due(10_000), due(60_000)], [4999, 5000, 5000]);
    }

    #[test]
    fn few_connections_take_less_time_than_they_may() {
        let pace = Pace::new(4, Duration::from_secs(3600));
        assert_eq!(pace.over, Duration::from_millis(200));
        assert_eq!(pace.due(Duration::from_millis(150)), 3);
    }

    #[test]
    fn all_are_due_at_once_over_no_time() {
        assert_eq!(Pace::new(7, Duration::ZERO).due(Duration::ZERO), 7);
        assert_eq!(Pace::new(0, Duration::MAX).due(Duration::ZERO), 0);
    }
}
