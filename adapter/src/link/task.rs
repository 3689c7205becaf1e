//! The life of a link: connect, listen until the connection is lost, wait, begin again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use roomcast_emitter::{
    backoff::Backoff,
    endpoint::{Address, CONNECT_TIMEOUT, ConnectError, Connection, Endpoint, Purpose},
};
use tokio::time::{self, Instant};

use super::{
    DownReason, LinkEvent, LinkState, Shared, Sink, SubscriberConfig, predecessor::Predecessor,
    session::Session,
};

/// A connection that held at least this long may be replaced at once, a shorter one may not: what
/// ends it would end the next one, too.
const HELD: Duration = Duration::from_secs(1);

/// Where a link connects to.
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    /// A node of a cluster; if none is given, what the endpoint chooses.
    pub(super) address: Option<Address>,
}

impl Server {
    async fn connect(&self) -> Result<Connection, ConnectError> {
        match &self.address {
            Some(address) => self.endpoint.connect_to(address, Purpose::Subscriber).await,
            None => self.endpoint.connect(Purpose::Subscriber).await,
        }
    }
}

pub(super) struct Task<S> {
    server: Server,
    pub(super) config: SubscriberConfig,
    pub(super) shared: Arc<Shared>,
    /// To be called when another server may have the names.
    pub(super) moved: Box<dyn Fn() + Send>,
    pub(super) sink: S,
    /// The connection before, which the server may still hold for open.
    predecessor: Predecessor,
    /// Numbers of probes go on across connections, so that no old one is taken for a new one.
    pub(super) next_probe: u64,
}

impl<S: Sink> Task<S> {
    pub(super) fn new(
        server: Server,
        config: SubscriberConfig,
        shared: Arc<Shared>,
        moved: Box<dyn Fn() + Send>,
        sink: S,
    ) -> Self {
        Self {
            server,
            config,
            shared,
            moved,
            sink,
            predecessor: Predecessor::default(),
            next_probe: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let (reason, held) = match self.server.connect().await {
                Ok(connection) => self.listen(connection).await,
                Err(error) => (
                    DownReason::Unreachable(error.to_string().into()),
                    Duration::ZERO,
                ),
            };
            self.shared.set_down(reason);
            (self.moved)();
            if held >= HELD {
                backoff.reset();
            } else {
                time::sleep(backoff.next_delay()).await;
            }
        }
    }

    /// Uses a connection until it is lost; answers why it was, and how long it held.
    async fn listen(&mut self, mut connection: Connection) -> (DownReason, Duration) {
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let bury = self.predecessor.bury(&mut connection);
        if time::timeout(CONNECT_TIMEOUT, bury).await.is_err() {
            let reason = DownReason::Unreachable("Redis does not answer".into());
            return (reason, began.elapsed());
        }
        let (stream, unread) = connection.into_parts();
        let reason = Session::new(self).run(stream, &unread).await;
        self.shared.subscriptions.lock().lost();
        self.sink.event(LinkEvent::Down {
            reason: reason.clone(),
        });
        (reason, began.elapsed())
    }
}

impl Shared {
    pub(super) fn set_down(&self, reason: DownReason) {
        // A link that was closed stays so.
        self.state.send_if_modified(|state| match state {
            LinkState::Down {
                reason: DownReason::Stopped,
            } => false,
            state => {
                *state = LinkState::Down { reason };
                true
            }
        });
    }
}
