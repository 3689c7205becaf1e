//! The state that all connections of a server share: settings, clock, metrics, ids, the lanes, the
//! phase of the server's life, and the count of connections that its end waits for.
//!
//! ```text
//!              drain             grace is over              close
//! Accepting ──────────▶ Leaving ───────────────▶ Refusing ────────▶ Closing
//!     └───────────────────────────── close ────────────────────────────┘
//! ```
//!
//! Phases only go forward, and each part compares: handshakes are refused from
//! `Refusing` on, sessions end at `Closing`. A new connection takes its permit first and checks the
//! phase afterwards, while the end sets the phase first and counts the permits afterwards. So
//! either the connection sees the phase, or the end sees the connection.

use std::{
    cmp::Reverse,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, extract::ConnectInfo};
use futures_util::future::BoxFuture;
use http::{Extensions, HeaderMap, Request, Response};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::AbortHandle,
    time::sleep,
};

use super::{
    admission::Admission,
    client_address::ClientAddress,
    config::{Config, Limits},
    connection::{Carrier, Connection},
    connection_state::SHUTDOWN_LINGER,
    frame::Frame,
    handshake::Handshake,
    lane::Lane,
    websocket::{self, Opcode},
};
use crate::{clock::Clock, close::Limit, ids::Ids, metrics::Metrics};
use roomcast_emitter::vital::vital;
use roomcast_protocol::engine_io::open::{Revision, TransportName};

/// The least time between two looks for connections that hold too much.
/// A look goes over all connections, and those that were cut need a moment to give
/// memory back.
const BUDGET_PAUSE_MILLIS: u64 = 50;

/// Makes the protocol layer of a new connection and starts its driver.
pub(crate) trait Acceptor: Send + Sync {
    fn accept(&self, connection: &Arc<Connection>, handshake: Handshake, permit: ConnectionPermit);
}

pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ids: Ids,
    /// The ping of the heartbeat, which all connections share.
    pub(super) ping: Frame,
    /// The same for plain WebSockets.
    pub(super) websocket_ping: Frame,
    lanes: Box<[Lane]>,
    // Keyed, because clients choose the ids in their requests.
    hasher: RandomState,
    tasks: Mutex<Vec<AbortHandle>>,
    open: AtomicUsize,
    pub(crate) admission: Admission,
    /// The places of WebSockets whose upgrades are not finished.
    pub(super) probing: Arc<Semaphore>,
    /// The places of connections whose preamble is not complete.
    pub(super) preambles: Semaphore,
    /// When the budget of waiting bytes was last enforced, in milliseconds of the clock.
    enforced: AtomicU64,
    /// The log has named a proxy that is not trusted.
    has_named_proxy: AtomicBool,
    phase: watch::Sender<Phase>,
    empty: Notify,
    /// Takes requests of sessions that this server does not have.
    pub(crate) relay: OnceLock<Relay>,
}

/// Passes on a request of a session whose id begins with this tag of another node, and
/// resolves to the response. `None` if the session has ended.
pub(crate) type Relay =
    Box<dyn Fn(&str, Request<Body>) -> BoxFuture<'static, Option<Response<Body>>> + Send + Sync>;

/// The phases of a server's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Accepting,
    /// Balancers should send no more clients. Those that come are served, because a
    /// balancer notices late.
    Leaving,
    /// Handshakes get status 503; sessions go on.
    Refusing,
    /// No session continues.
    Closing,
}

/// The place of a connection that is being opened. Dropping it gives the place back.
pub(crate) struct ConnectionPermit {
    engine: Arc<Engine>,
    /// Taken when the connection takes over its place.
    place: Option<Place>,
}

/// The place of a connection in the counts, without the engine, because each connection
/// has both. It must be [given back](Engine::give_back).
#[derive(Default)]
pub(super) struct Place {
    /// Under which its address is counted. Boxed, because most servers count none.
    address: Option<Box<IpAddr>>,
}

impl ConnectionPermit {
    /// Hands over the place.
    pub(super) fn take(mut self) -> Place {
        self.place.take().unwrap_or_default()
    }
}

impl Engine {
    pub(crate) fn new(config: Config, metrics: Arc<Metrics>, lanes: usize) -> Self {
        let shortest = config
            .heartbeat
            .interval
            .min(config.heartbeat.timeout)
            .min(config.connect_timeout);
        // A deadline is late by a tick at most, which is small compared with every interval.
        let tick = (shortest / 16).clamp(Duration::from_millis(5), Duration::from_millis(500));
        let admission = Admission::new(&config.limits);
        Self {
            probing: Arc::new(Semaphore::new(places(config.limits.unfinished_upgrades))),
            preambles: Semaphore::new(places(config.limits.handshakes)),
            config,
            clock: Clock::start(),
            metrics,
            ids: Ids::new(),
            ping: Frame::packet("2").uncounted(),
            websocket_ping: websocket_ping().uncounted(),
            lanes: (0..lanes.max(1)).map(|_| Lane::new(tick)).collect(),
            hasher: RandomState::new(),
            tasks: Mutex::default(),
            open: AtomicUsize::new(0),
            admission,
            enforced: AtomicU64::new(0),
            has_named_proxy: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Accepting),
            empty: Notify::new(),
            relay: OnceLock::new(),
        }
    }

    /// Returns the address of the client of a first request. Counts an ignored address in a header,
    /// because either a balancer is missing among the trusted proxies or a client pretends to be
    /// one.
    pub(super) fn client(
        &self,
        extensions: &Extensions,
        headers: &HeaderMap,
    ) -> Option<ClientAddress> {
        let proxies = &self.config.trusted_proxies;
        let connection = extensions.get::<ConnectInfo<SocketAddr>>();
        if let Some(&ConnectInfo(peer)) = connection
            && proxies.ignores(peer, headers)
        {
            self.metrics.forwarded_ignored.inc();
            if !self.has_named_proxy.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %peer,
                    "a client's address in a header is ignored because the sender is no trusted \
                     proxy; if it is a balancer, name it as one, or all clients have its address"
                );
            }
        }
        if let Some(client) = extensions.get::<ClientAddress>() {
            return Some(*client);
        }
        let peer = ClientAddress::direct(connection?.0, false);
        Some(proxies.client(peer, headers))
    }

    /// Starts the tasks of the lanes on the current runtime; [`stop`](Self::stop) ends them.
    pub(crate) fn start(self: &Arc<Self>) {
        let start = |index: usize| {
            let engine: Arc<Self> = Arc::clone(self);
            let lane = async move { engine.lanes[index].run(&engine).await };
            tokio::spawn(vital("lane", lane)).abort_handle()
        };
        *self.tasks.lock() = (0..self.lanes.len()).map(start).collect();
    }

    /// Ends the tasks of the lanes. Afterwards, open connections are neither written nor timed.
    pub(crate) fn stop(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn lane(&self, index: usize) -> &Lane {
        &self.lanes[index]
    }

    /// A connection stays in its lane, so nothing has to be moved between tables.
    pub(super) fn lane_index(&self, id: &str) -> usize {
        let hash = self.hasher.hash_one(id);
        usize::try_from(hash % self.lanes.len() as u64).expect("smaller than a usize")
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Connection>> {
        self.lanes[self.lane_index(id)].sessions().find(id)
    }

    /// The number of connections that are open or being opened.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Takes a place for a connection that is about to be opened. Returns the limit if
    /// all are taken. The caller checks the phase afterwards, and the end waits for
    /// permits after it has begun, so that no connection slips in between.
    pub(super) fn acquire_permit(
        self: &Arc<Self>,
        address: Option<IpAddr>,
    ) -> Result<ConnectionPermit, Limit> {
        let before = self.open.fetch_add(1, Ordering::SeqCst);
        let mut permit = ConnectionPermit {
            engine: Arc::clone(self),
            place: Some(Place::default()),
        };
        if before >= self.admission.connections() {
            return Err(Limit::Connections);
        }
        if let Some(address) = address {
            let entered = self.admission.addresses().enter(address);
            let address = entered.map_err(|()| Limit::ConnectionsPerAddress)?;
            permit.place = Some(Place { address });
        }
        Ok(permit)
    }

    /// Ends a connection in the counts.
    pub(super) fn give_back(&self, place: Place) {
        if let Some(address) = place.address {
            self.admission.addresses().leave(*address);
        }
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.empty.notify_waiters();
        }
    }

    /// Replaces the limit of connections for those that are opened from now on.
    pub(crate) fn set_max_connections(&self, limit: usize) {
        self.admission.set_connections(limit);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.metrics.connection_limit.set(limit);
    }

    /// Applies the limits that can be replaced.
    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.admission.set(limits);
        self.set_max_connections(limits.connections);
    }

    pub(super) fn opened(&self, transport: TransportName, revision: Revision) {
        let metrics = match transport {
            TransportName::Polling => &self.metrics.transports.polling,
            TransportName::WebSocket => &self.metrics.transports.websocket,
        };
        match revision {
            Revision::V3 => metrics.opened_v3.inc(),
            Revision::V4 => metrics.opened_v4.inc(),
        }
        metrics.connections.inc();
    }

    pub(crate) fn opened_plain(&self, carrier: Carrier) {
        let metrics = &self.metrics.transports;
        if carrier == Carrier::Stream {
            metrics.streams.inc();
            metrics.opened_streams.inc();
        } else {
            metrics.websocket.connections.inc();
            metrics.opened_plain.inc();
        }
    }

    /// Whether more waits for clients that do not read than the whole server may hold.
    pub(super) fn is_over_budget(&self) -> bool {
        let waiting = usize::try_from(self.metrics.outbox_bytes.get()).unwrap_or(0);
        waiting > self.config.limits.outbox_total_bytes
    }

    /// Closes connections of clients that do not read, those with the most waiting bytes
    /// first, until the rest is within the budget. Called by lanes, which hold no lock.
    pub(super) fn enforce_budget(&self) {
        if !self.is_over_budget() {
            return;
        }
        let now = self.clock.now().as_millis();
        let last = self.enforced.load(Ordering::Relaxed);
        let next = last + BUDGET_PAUSE_MILLIS;
        if now < next || !self.enforced_by_this(last, now) {
            return;
        }
        let stuck = self.all().into_iter();
        let stuck = stuck.filter_map(|open| Some((open.stuck_bytes()?, open)));
        let mut stuck: Vec<_> = stuck.collect();
        // The largest first, so that as few clients as possible are cut.
        stuck.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        for (_, connection) in stuck {
            if !self.is_over_budget() {
                return;
            }
            connection.cut(Limit::OutboxTotal);
        }
    }

    /// Lets one lane of several enforce the budget.
    fn enforced_by_this(&self, last: u64, now: u64) -> bool {
        let order = Ordering::Relaxed;
        let exchanged = self.enforced.compare_exchange(last, now, order, order);
        exchanged.is_ok()
    }

    /// The number of sockets that are open: HTTP connections, and sessions whose
    /// transport is a WebSocket.
    pub(super) fn sockets(&self) -> usize {
        let gauge = |value: i64| usize::try_from(value).unwrap_or(0);
        let transports = &self.metrics.transports;
        let polling = gauge(transports.polling.connections.get());
        let streams = gauge(transports.streams.get());
        let http = gauge(self.metrics.http_connections.get());
        let upgrades = places(self.config.limits.unfinished_upgrades);
        let probing = upgrades - self.probing.available_permits();
        http + probing + self.open().saturating_sub(polling + streams)
    }

    /// Enters a phase. A server never returns to an earlier one.
    pub(crate) fn enter(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let is_later = next > *phase;
            *phase = next.max(*phase);
            is_later
        });
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether new connections are refused.
    pub(super) fn refuses(&self) -> bool {
        self.phase() >= Phase::Refusing
    }

    /// Resolves some time after the server has begun to close: a client that has not sent
    /// the rest of its request by then does not delay it.
    pub(super) async fn close_lingered(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as this.
        drop(phase.wait_for(|phase| *phase == Phase::Closing).await);
        sleep(SHUTDOWN_LINGER).await;
    }

    /// Every connection, also those that are being closed.
    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        let lanes = self.lanes.iter();
        lanes.flat_map(|lane| lane.sessions().all()).collect()
    }

    /// Waits until no connection is left and their handlers have ended.
    pub(crate) async fn wait_until_empty(&self) {
        loop {
            let empty = self.empty.notified();
            if self.open() == 0 {
                return;
            }
            empty.await;
        }
    }
}

/// The places that a semaphore has for a limit.
fn places(limit: usize) -> usize {
    limit.min(Semaphore::MAX_PERMITS)
}

/// The ping frame of WebSocket, without a payload.
fn websocket_ping() -> Frame {
    let mut ping = Vec::new();
    websocket::append_frame(&mut ping, Opcode::Ping, &[]);
    Frame::raw(&ping)
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.engine.give_back(place);
        }
    }
}
