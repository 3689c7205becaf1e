//! The server: its namespaces, and the handle that applications hold.
//!
//! Ownership runs one way: handles, routes and connections keep [`Inner`] alive, and it keeps the
//! namespaces. A namespace refers back weakly. When the last owner is dropped, the lanes stop.
//!
//! ```text
//! close: no new connections ─► others stop asking ─► clients leave ─► handlers end ─► sessions ─► bus
//!                                  up to 1 s                      drain timeout     stored     up to 2 s
//! ```
//!
//! The bus is closed last, because handlers and sessions need it until then.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::Router;
use parking_lot::RwLock;
use roomcast_adapter::{Health, NodeId};
use roomcast_protocol::{
    args::{FromArgs, IntoArgs},
    target::Rooms,
};
use tokio::{net::TcpListener, sync::OnceCell, time::timeout};

use super::{
    ack::Answers,
    broadcast::{BroadcastOperator, Delivery},
    builder::Builder,
    client::Client,
    cluster::ClusterNode,
    error::{AckError, EmitError},
    gaps::Gaps,
    handler::{States, state_of},
    live_namespace::LiveNamespace,
    namespace::{Handlers, Pattern},
    observe::Observers,
    packets::Parser,
    remote_socket::Fetched,
    serve::Serve,
    socket::Socket,
    tasks::Tasks,
};
use crate::transport::{
    config::Limits,
    connection::Connection,
    driver,
    engine::{Acceptor, ConnectionPermit, Engine, Phase},
    handshake::Handshake,
    routes::Routes,
};

/// Time for other nodes to notice that this one no longer answers questions.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for the bus to send its queue and close.
const BUS_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A Socket.IO server. Cheap to clone. It lives as long as a handle, its router or a connection.
///
/// ```no_run
/// # use roomcast::{Namespace, Server, shutdown_signal};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let io = Server::builder().namespace(Namespace::new("/")).build().await?;
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await?;
/// let app = axum::Router::new().merge(io.router());
/// io.serve(listener, app).with_graceful_shutdown(shutdown_signal()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Server(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) engine: Arc<Engine>,
    pub(crate) parser: Parser,
    pub(super) states: Arc<States>,
    pub(super) drain_timeout: Duration,
    pub(super) cluster: ClusterNode,
    /// The namespaces that exist. Dynamic ones are created and removed.
    pub(super) live: RwLock<HashMap<Arc<str>, Arc<LiveNamespace>>>,
    pub(super) patterns: Vec<(Pattern, Arc<Handlers>)>,
    pub(super) tasks: Tasks,
    pub(super) observers: Arc<Observers>,
    /// Set while the server is a node of a cluster.
    pub(super) _gaps: Option<Gaps>,
    pub(super) closed: OnceCell<()>,
}

impl Server {
    /// Starts the configuration of a server, with Socket.IO's defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Selects a namespace, to broadcast to it or to its rooms.
    ///
    /// Operations on an unknown name fail with [`EmitError::UnknownNamespace`]. In a
    /// cluster, a name that matches a dynamic namespace may have clients on other nodes
    /// only, and reaches them.
    pub fn of(&self, namespace: &str) -> BroadcastOperator {
        let known = self.0.live.read().get(namespace).cloned();
        match known {
            Some(namespace) => BroadcastOperator::new(namespace),
            None if self.0.cluster.bus.is_some() => match self.0.enter(namespace) {
                Some(namespace) => BroadcastOperator::visiting(namespace),
                None => BroadcastOperator::unknown(namespace),
            },
            None => BroadcastOperator::unknown(namespace),
        }
    }

    /// Selects rooms of the main namespace.
    pub fn to(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.to(rooms)
    }

    /// Selects the main namespace except for these rooms.
    pub fn except(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").except(rooms)
    }

    /// Selects the sockets of the main namespace that are connected to this node.
    pub fn local(&self) -> BroadcastOperator {
        self.of("/").local()
    }

    /// Selects the main namespace. [`timeout`](BroadcastOperator::timeout) limits the wait for
    /// acknowledgements and for other nodes.
    pub fn timeout(&self, timeout: Duration) -> BroadcastOperator {
        self.of("/").timeout(timeout)
    }

    /// Emits an event to all sockets of the main namespace.
    pub async fn emit(&self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.of("/").emit(event, args).await
    }

    /// Emits an event to all sockets of the main namespace and collects their acknowledgements.
    pub async fn emit_with_ack<T: FromArgs>(
        &self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<Answers<T>, AckError> {
        self.of("/").emit_with_ack(event, args).await
    }

    /// Emits an event to the servers of all other nodes.
    pub async fn server_side_emit(
        &self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<usize, EmitError> {
        self.of("/").server_side_emit(event, args).await
    }

    /// Returns the sockets of the main namespace, of all nodes, with their rooms and data.
    pub async fn fetch_sockets(&self) -> Result<Fetched, EmitError> {
        self.of("/").fetch_sockets().await
    }

    /// Makes all sockets of the main namespace join rooms.
    pub async fn sockets_join(&self, rooms: impl Rooms) -> Result<(), EmitError> {
        self.of("/").sockets_join(rooms).await
    }

    /// Makes all sockets of the main namespace leave rooms.
    pub async fn sockets_leave(&self, rooms: impl Rooms) -> Result<(), EmitError> {
        self.of("/").sockets_leave(rooms).await
    }

    /// Disconnects all sockets of the main namespace. With `close`, closes their connections.
    pub async fn disconnect_sockets(&self, close: bool) -> Result<(), EmitError> {
        self.of("/").disconnect_sockets(close).await
    }

    /// Returns the socket of the main namespace with this id, if it is connected to this node.
    pub fn socket(&self, id: &str) -> Option<Socket> {
        self.of("/").socket(id)
    }

    /// Returns the names of the namespaces that exist on this node, sorted.
    pub fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.live.read().keys().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }

    /// Returns the routes of the server, to be merged into an axum application. The application
    /// keeps its own routes and layers. It also sets its own HTTP limits and deadlines, unless
    /// [`serve`](Self::serve) runs it.
    pub fn router(&self) -> Router {
        Routes::new(Arc::clone(&self.0.engine), self.acceptor()).router()
    }

    pub(super) fn acceptor(&self) -> Arc<dyn Acceptor> {
        Arc::new(AcceptInto(Arc::clone(&self.0)))
    }

    /// Serves an application, usually with [`router`](Self::router) merged into it. Applies the
    /// server's HTTP limits, above all the time for the head of a request.
    pub fn serve(&self, listener: TcpListener, app: Router) -> Serve {
        Serve::new(self.clone(), listener, app)
    }

    /// Shuts the server down. New connections get status 503. Open ones are closed in a
    /// way that makes clients reconnect elsewhere. Then it waits for running handlers,
    /// including those of server-side events, up to the [drain
    /// timeout](Builder::drain_timeout). In a cluster, other nodes first stop waiting for
    /// answers of this one, and the bus is closed last. All clients reconnect at the same time,
    /// unless you call [`drain`](Self::drain) first.
    ///
    /// Further calls wait for the same end. A handler must not await this, because it waits for the
    /// handler.
    pub async fn close(&self) {
        let closing = async || self.0.close().await;
        self.0.closed.get_or_init(closing).await;
    }

    /// Returns `true` if a load balancer should send clients here: the server accepts connections,
    /// and messages of other nodes [reach](Self::health) it.
    pub fn is_ready(&self) -> bool {
        self.0.engine.phase() == Phase::Accepting && self.health() == Health::Flowing
    }

    /// Returns whether messages flow between this node and the others. Without a bus they do.
    pub fn health(&self) -> Health {
        let bus = self.0.cluster.bus.as_ref();
        bus.map_or(Health::Flowing, |bus| bus.health())
    }

    /// Returns shared state of this type, if [`Builder::state`] provided it.
    pub fn state<S: Any + Send + Sync>(&self) -> Option<Arc<S>> {
        state_of(&self.0.states)
    }

    /// The name of this node in the cluster. Every start draws a new one.
    pub fn node(&self) -> &NodeId {
        &self.0.cluster.node
    }

    /// Returns the nodes of the cluster as they were last seen, this one included. Over Redis, a
    /// crashed node is listed until its lease expires, for about 6 s. While Redis is unreachable,
    /// the nodes are those that were seen last. Node.js servers have no names and are not listed.
    pub fn nodes(&self) -> Vec<NodeId> {
        let ClusterNode { node, bus, .. } = &self.0.cluster;
        let mut nodes = bus.as_ref().map_or_else(Vec::new, |bus| bus.nodes());
        if !nodes.contains(node) {
            nodes.push(node.clone());
        }
        nodes
    }

    /// The number of connections that are open or being opened. A client has one for all its
    /// namespaces.
    pub fn connections(&self) -> usize {
        self.0.engine.open()
    }

    /// Replaces [`Limits::connections`](crate::Limits::connections). Connections that are
    /// open stay, even if they are more.
    pub fn set_max_connections(&self, limit: usize) {
        self.0.engine.set_max_connections(limit);
    }

    /// Replaces the limits that can change while the server runs: `connections`,
    /// `connections_per_address`, `ipv6_prefix`, `connect_rate`, `event_rate`,
    /// `byte_rate` and `rate_policy`. The others are ignored. Connections that are open
    /// stay, even if they are more; connections opened while addresses were not limited are not
    /// counted for any address.
    pub fn set_limits(&self, limits: &Limits) {
        self.0.engine.set_limits(limits);
    }

    /// The metrics in Prometheus's text format.
    pub fn metrics(&self) -> String {
        self.0.engine.metrics.encode()
    }

    /// The registry of the metrics, to be gathered together with the application's own.
    pub fn registry(&self) -> &prometheus::Registry {
        self.0.engine.metrics.registry()
    }

    pub(super) fn observers(&self) -> &Arc<Observers> {
        &self.0.observers
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Inner {
    async fn close(&self) {
        let ClusterNode { node, bus, .. } = &self.cluster;
        self.engine.enter(Phase::Closing);
        if let Some(bus) = bus
            && timeout(RETIRE_TIMEOUT, bus.retire(node)).await.is_err()
        {
            tracing::warn!("other nodes may wait for answers of this one until their timeout");
        }
        super::drain::close_all(&self.engine);
        let handlers = async {
            self.engine.wait_until_empty().await;
            self.tasks.finish().await;
        };
        if timeout(self.drain_timeout, handlers).await.is_err() {
            let seconds = self.drain_timeout.as_secs_f64();
            tracing::warn!(seconds, "handlers still run after the drain timeout");
        }
        // After the connections, because the end of each changes a session.
        let live: Vec<_> = self.live.read().values().cloned().collect();
        for recovery in live
            .iter()
            .filter_map(|namespace| namespace.recovery.as_ref())
        {
            recovery.flush().await;
            recovery.abandon();
        }
        if let Some(bus) = bus
            && timeout(BUS_CLOSE_TIMEOUT, bus.close(node)).await.is_err()
        {
            tracing::warn!("the bus did not close in time");
        }
    }

    /// Returns the namespace that a client requests. Creates it if a pattern matches. The client
    /// counts as its user until it [leaves](LiveNamespace::leave).
    pub(super) fn enter(self: &Arc<Self>, name: &str) -> Option<Arc<LiveNamespace>> {
        {
            let live = self.live.read();
            if let Some(namespace) = live.get(name) {
                namespace.users.fetch_add(1, Ordering::Relaxed);
                return Some(Arc::clone(namespace));
            }
        }
        let matching = |(pattern, handlers): &(Pattern, Arc<Handlers>)| {
            Some((pattern.matches(name)?, Arc::clone(handlers)))
        };
        let (params, handlers) = self.patterns.iter().find_map(matching)?;
        let mut live = self.live.write();
        let namespace = live
            .entry(name.into())
            .or_insert_with(|| LiveNamespace::new(self, name, handlers, Some(params)));
        namespace.users.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(namespace))
    }

    /// A user has left a dynamic namespace. The last one removes it.
    pub(super) fn leave(&self, namespace: &Arc<LiveNamespace>) {
        // No client enters between the count and the removal, because entering takes
        // this lock, too.
        let mut live = self.live.write();
        if namespace.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            live.remove(&namespace.name);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

/// Creates a [`Client`] for each connection. Keeps the server alive as long as its routes.
struct AcceptInto(Arc<Inner>);

impl Acceptor for AcceptInto {
    fn accept(&self, connection: &Arc<Connection>, handshake: Handshake, permit: ConnectionPermit) {
        let client = Client::new(Arc::clone(&self.0), connection, handshake);
        driver::spawn(connection, client, permit);
    }
}
