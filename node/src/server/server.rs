//! The server: its namespaces, and the handle that applications hold.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::Router;
use parking_lot::RwLock;
use roomcast_adapter::{Health, NodeId};
use roomcast_protocol::{args::IntoArgs, target::Rooms};
use tokio::{net::TcpListener, sync::OnceCell, time::timeout};

use super::{
    broadcast::{BroadcastOperator, Delivery},
    builder::Builder,
    client::Client,
    cluster::ClusterNode,
    error::EmitError,
    gaps::Gaps,
    live_namespace::LiveNamespace,
    namespace::{Handlers, Pattern},
    packets::Parser,
    serve::Serve,
    tasks::Tasks,
};
use crate::{
    close::CloseReason,
    transport::{
        connection::Connection,
        driver,
        engine::{Acceptor, ConnectionPermit, Engine},
        handshake::Handshake,
        routes::Routes,
    },
};

/// How long the others may take to learn that this node answers no more.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the bus may take to send what is queued and to close.
const BUS_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A Socket.IO server. Cheap to clone; it lives as long as a handle, its router or a connection.
///
/// ```ignore
/// let io = Server::builder().namespace(chat).build().await?;
/// let app = Router::new().route("/", get(index)).merge(io.router());
/// io.serve(listener, app).with_graceful_shutdown(signal()).await?;
/// ```
#[derive(Clone)]
pub struct Server(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) engine: Arc<Engine>,
    pub(crate) parser: Parser,
    cluster: ClusterNode,
    pub(super) live: RwLock<HashMap<Arc<str>, Arc<LiveNamespace>>>,
    patterns: Vec<(Pattern, Arc<Handlers>)>,
    pub(super) tasks: Tasks,
    /// Set while the server is a node of a cluster.
    _gaps: Option<Gaps>,
    closed: OnceCell<()>,
}

/// What a server is made of.
pub(super) struct Parts {
    pub(super) engine: Arc<Engine>,
    pub(super) parser: Parser,
    pub(super) cluster: ClusterNode,
    pub(super) namespaces: Vec<(Box<str>, Handlers)>,
    pub(super) patterns: Vec<(Pattern, Handlers)>,
    pub(super) tasks: Tasks,
    pub(super) gaps: Option<Gaps>,
}

impl Server {
    /// A server with Socket.IO's defaults, to be configured and built.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// The namespace of this name, to broadcast to it or to its rooms. If there is none, the
    /// operations answer so; in a cluster, a name that the pattern of a dynamic namespace matches
    /// may have clients on other nodes, and is reached there.
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

    /// Rooms of the main namespace.
    pub fn to(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").to(rooms)
    }

    /// Rooms of the main namespace; the same as [`to`](Self::to).
    pub fn in_(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.to(rooms)
    }

    /// The main namespace but these rooms.
    pub fn except(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.of("/").except(rooms)
    }

    /// Emits an event to everybody in the main namespace.
    pub async fn emit(&self, event: &str, args: impl IntoArgs) -> Result<Delivery, EmitError> {
        self.of("/").emit(event, args).await
    }

    /// The routes of the server, to be merged into an axum application. The application's other
    /// routes and layers are its own; limits and deadlines of HTTP too, unless it is served with
    /// [`serve`](Self::serve).
    pub fn router(&self) -> Router {
        let acceptor: Arc<dyn Acceptor> = Arc::new(AcceptInto(Arc::clone(&self.0)));
        Routes::new(Arc::clone(&self.0.engine), acceptor).router()
    }

    /// Serves an application, usually with [`router`](Self::router) merged into it, with the
    /// server's own limits on HTTP: the time for the head of a request above all.
    pub fn serve(&self, listener: TcpListener, app: Router) -> Serve {
        Serve::new(self.clone(), listener, app)
    }

    /// Refuses new connections from now on (status 503), closes those that are open so that their
    /// clients reconnect elsewhere, and waits for their handlers and for those of server-side
    /// events. In a cluster, other nodes stop waiting for answers of this one first, and the bus
    /// is closed last.
    ///
    /// It may be called several times; every call waits for the end. A handler must not wait for
    /// it, as it waits for the handler.
    pub async fn close(&self) {
        let closing = async || self.0.close().await;
        self.0.closed.get_or_init(closing).await;
    }

    /// Whether clients should be sent here: the server accepts connections, and the messages of
    /// other nodes [reach](Self::health) it.
    pub fn is_ready(&self) -> bool {
        !self.0.engine.is_draining() && self.health() == Health::Flowing
    }

    /// Whether messages flow between this node and the others; they do where there are no others.
    pub fn health(&self) -> Health {
        let bus = self.0.cluster.bus.as_ref();
        bus.map_or(Health::Flowing, |bus| bus.health())
    }

    /// The name by which other nodes know this one, made anew at every start.
    pub fn node(&self) -> &NodeId {
        &self.0.cluster.node
    }

    /// The number of connections that are open or being opened. A client has one, whatever its
    /// namespaces.
    pub fn connections(&self) -> usize {
        self.0.engine.open()
    }

    /// The metrics in the text format that Prometheus scrapes.
    pub fn metrics(&self) -> String {
        self.0.engine.metrics.encode()
    }

    /// The registry of the metrics, to be gathered together with an application's own.
    pub fn registry(&self) -> &prometheus::Registry {
        self.0.engine.metrics.registry()
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
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            engine,
            parser,
            cluster,
            namespaces,
            patterns,
            tasks,
            gaps,
        } = parts;
        let patterns = patterns
            .into_iter()
            .map(|(p, handlers)| (p, Arc::new(handlers)))
            .collect();
        Arc::new_cyclic(|weak| {
            let namespace = |(name, handlers): (Box<str>, Handlers)| {
                let handlers = Arc::new(handlers);
                let namespace = LiveNamespace::new(
                    &name,
                    handlers,
                    None,
                    &engine,
                    parser,
                    &cluster,
                    weak.clone(),
                );
                (Arc::clone(&namespace.name), namespace)
            };
            let live = RwLock::new(namespaces.into_iter().map(namespace).collect());
            Self {
                engine,
                parser,
                cluster,
                live,
                patterns,
                tasks,
                _gaps: gaps,
                closed: OnceCell::new(),
            }
        })
    }

    async fn close(&self) {
        let ClusterNode { node, bus } = &self.cluster;
        self.engine.begin_drain();
        if let Some(bus) = bus
            && timeout(RETIRE_TIMEOUT, bus.retire(node)).await.is_err()
        {
            tracing::warn!("other nodes may wait for answers of this one until their time is over");
        }
        self.engine.close_all(CloseReason::ServerShutdown);
        self.engine.wait_until_empty().await;
        self.tasks.finish().await;
        if let Some(bus) = bus
            && timeout(BUS_CLOSE_TIMEOUT, bus.close(node)).await.is_err()
        {
            tracing::warn!("the bus did not close in time");
        }
    }

    /// The namespace that a client asks for, made if a pattern matches. The client counts as its
    /// user until it [leaves](LiveNamespace::leave).
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
        let namespace = live.entry(name.into()).or_insert_with(|| {
            let server = Arc::downgrade(self);
            LiveNamespace::new(
                name,
                handlers,
                Some(params),
                &self.engine,
                self.parser,
                &self.cluster,
                server,
            )
        });
        namespace.users.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(namespace))
    }

    /// A user has left a dynamic namespace; the last one takes it along.
    pub(super) fn leave(&self, namespace: &Arc<LiveNamespace>) {
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

/// Makes a [`Client`] of each connection. Keeps the server alive for as long as its routes.
struct AcceptInto(Arc<Inner>);

impl Acceptor for AcceptInto {
    fn accept(&self, connection: &Arc<Connection>, handshake: Handshake, permit: ConnectionPermit) {
        let client = Client::new(Arc::clone(&self.0), connection, handshake);
        driver::spawn(connection, client, permit);
    }
}

/// The address of a client, for routes that are served by [`Server::serve`].
pub(super) type PeerAddress = axum::extract::ConnectInfo<SocketAddr>;
