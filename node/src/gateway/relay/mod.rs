//! The relay: any node accepts any request, so a balancer needs no sticky sessions.
//!
//! ```text
//! client ─▶ balancer ─▶ node A ── session of B ──▶ A: sender ─── link, sealed ───▶ B: receiver ─▶ session
//!                         ◀───────────────────────────────── response, streamed ──────────┘
//! ```
//!
//! The id of a session begins with the tag of its owner; the owner's lease in Redis has
//! the address of its relay listener. That is a separate listener and not the internal port,
//! because the internal port has one thread, on which polls of a whole cluster would delay probes
//! and metrics, and because an operator should not have to open metrics, API and drain to other
//! hosts.
//!
//! Polls and posts of all clients share one connection to each owner, because system
//! calls are most of their cost: a request of HTTP takes four more on each node, and
//! frames of many requests take one. A WebSocket has a separate connection, which begins as a
//! signed request, as a link does.
//!
//! - `key` signs requests that switch protocols: path, time, and the names of both nodes.
//! - `sender` passes requests on, within limits of number, bytes and time; `owner` has
//!   the ways to a node.
//! - `receiver` verifies signed requests, and refuses those that were received before.
//! - `link` is the connection, `seal` its cipher, `requests` its relaying end and
//!   `serving` the owner's.
//!
//! If the owner cannot be reached, has ended or refuses the relay, the client gets the
//! error that makes it open a new session; so it does at once if the link breaks. A
//! request is never relayed twice, because `Server::relayed_router` and
//! `Server::respond_to_relayed` relay nothing.

mod key;
mod link;
mod metrics;
mod options;
mod owner;
mod pipe;
mod receiver;
mod requests;
mod seal;
mod sender;
mod serving;
mod tls;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use roomcast::{Drain, Server, Tls};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use self::{
    key::Keys,
    metrics::Metrics,
    receiver::Receiver,
    sender::{Sender, Stage},
};
pub(crate) use self::{
    options::{ClusterKey, RelayOptions},
    tls::{NodeTls, authorities},
};
use super::config::Config;

/// In addition to the time between two pings: the owner and the network may be slow.
const SLACK: Duration = Duration::from_secs(10);

/// How long the listener may take to end after the server has closed.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a link begins.
const LINK_PATH: &str = "/roomcast-relay";

/// The protocol to which a connection switches there, in the header `upgrade`.
const LINK_PROTOCOL: &str = "roomcast-relay";

/// Bytes of bodies that are on their way between two nodes, or four of the largest if
/// that is more. Beyond: status 503.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The listener for other nodes, before there is a server.
pub(crate) struct Relay {
    keys: Arc<Keys>,
    listener: TcpListener,
    address: String,
    verifying: NodeTls,
    serving: Option<Tls>,
}

/// The limits of what one node relays.
#[derive(Clone, Copy, Debug)]
struct RelayLimits {
    /// Requests and WebSockets at a time.
    open: usize,
    /// Bytes of a body.
    payload: usize,
    /// Time for a body to arrive.
    body: Duration,
    /// Time for a response to begin. A poll without events is answered by a ping.
    response: Duration,
    /// Time in which the peer must take something.
    stall: Duration,
}

impl Relay {
    /// Takes over the listener for other nodes. It serves with these certificates if
    /// other nodes can verify them.
    pub(crate) fn new(
        config: &Config,
        listener: TcpListener,
        certificates: Option<&Tls>,
    ) -> Result<Self, String> {
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let address = config.relay.advertised(address)?;
        let verifying = NodeTls::new(&config.relay)?;
        let serving = certificates.filter(|_| verifying.is_on()).cloned();
        Ok(Self {
            keys: Arc::new(Keys::new(&config.relay.cluster_key.0)),
            address: match serving {
                Some(_) => NodeTls::stated(&address),
                None => address,
            },
            listener,
            verifying,
            serving,
        })
    }

    /// How the certificates of other nodes are verified, to be replaced by a reload.
    pub(crate) fn verifying(&self) -> NodeTls {
        self.verifying.clone()
    }

    /// Where other nodes reach this one.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Relays requests from now on, in both directions.
    pub(crate) fn start(self, config: &Config, server: &Server) -> io::Result<Relaying> {
        let limits = RelayLimits::of(config);
        let metrics = Metrics::new(server.registry()).map_err(io::Error::other)?;
        let local: SocketAddr = self.listener.local_addr()?;
        let receiver = Receiver::new(
            server.clone(),
            Arc::clone(&self.keys),
            limits,
            metrics.clone(),
        );
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let mut serving = server
            .serve(listener, receiver.router())
            .with_graceful_shutdown(async move {
                let _ = stopped.await;
            });
        if let Some(tls) = self.serving {
            serving = serving.with_tls(tls);
        }
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the relay's listener failed");
            }
        });
        let (stage, stages) = watch::channel(Stage::Open);
        let parts = (self.keys, self.verifying);
        Sender::start(server, parts, limits, metrics, stages);
        tracing::info!(address = %local, advertised = %self.address, "relaying between nodes");
        Ok(Relaying {
            stage,
            stop,
            serving,
            receiver,
        })
    }
}

impl RelayLimits {
    fn of(config: &Config) -> Self {
        let (limits, protocol) = (&config.limits, &config.protocol);
        Self {
            open: config.relay.open(),
            payload: protocol.max_payload.0,
            body: limits.body_timeout.0,
            response: protocol.ping_interval.0 + protocol.ping_timeout.0 + SLACK,
            stall: limits.stall_timeout.0,
        }
    }

    /// Bytes of bodies that wait to be passed on.
    fn bodies(&self) -> usize {
        MAX_BODY_BYTES.max(4 * (self.payload + 1))
    }
}

/// The running relay. Its listener serves as long as the server is not closed.
pub(crate) struct Relaying {
    stage: watch::Sender<Stage>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    receiver: Receiver,
}

impl Relaying {
    /// Ends relayed WebSockets evenly over the time of the drain, as the server does with its own.
    pub(crate) fn draining(&self, drain: Drain) {
        self.stage.send_replace(Stage::Draining(drain));
    }

    /// Ends all that this node relays. Their owners end the polls, after which clients
    /// poll at another node.
    pub(crate) fn closing(&self) {
        self.stage.send_replace(Stage::Closing);
    }

    /// Ends the listener, once the server is closed and the last responses are written.
    pub(crate) async fn end(self) {
        drop(self.stop);
        let ending = async { tokio::join!(self.serving, self.receiver.stop()) };
        drop(timeout(END_TIMEOUT, ending).await);
    }
}
