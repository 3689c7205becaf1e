//! The server: its namespaces, and the handle that applications hold.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use axum::Router;
use parking_lot::RwLock;
use roomcast_emitter::{args::IntoArgs, target::Rooms};
use tokio::net::TcpListener;

use super::{
    broadcast::{BroadcastOperator, Delivery},
    builder::Builder,
    client::Client,
    cluster::Place,
    error::EmitError,
    namespace::{Handlers, Pattern},
    packets::Parser,
    serve::Serve,
    space::Space,
};
use crate::{
    close::CloseReason,
    transport::{
        connection::Connection,
        driver,
        handshake::Handshake,
        hub::{Acceptor, Hub, Seat},
        routes::Routes,
    },
};

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
    pub(crate) hub: Arc<Hub>,
    pub(crate) parser: Parser,
    place: Place,
    spaces: RwLock<HashMap<Arc<str>, Arc<Space>>>,
    patterns: Vec<(Pattern, Arc<Handlers>)>,
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
    /// operations answer so.
    pub fn of(&self, namespace: &str) -> BroadcastOperator {
        match self.0.spaces.read().get(namespace) {
            Some(space) => BroadcastOperator::new(Arc::clone(space)),
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
        Routes::new(Arc::clone(&self.0.hub), acceptor).router()
    }

    /// Serves an application, usually with [`router`](Self::router) merged into it, with the
    /// server's own limits on HTTP: the time for the head of a request above all.
    pub fn serve(&self, listener: TcpListener, app: Router) -> Serve {
        Serve::new(self.clone(), listener, app)
    }

    /// Refuses new connections from now on (status 503), closes those that are open so that their
    /// clients reconnect elsewhere, and waits for their handlers.
    pub async fn close(&self) {
        let hub = &self.0.hub;
        hub.begin_drain();
        hub.close_all(CloseReason::ServerShutdown);
        hub.wait_until_empty().await;
    }

    /// Whether the server accepts connections.
    pub fn is_ready(&self) -> bool {
        !self.0.hub.is_draining()
    }

    /// The number of connections that are open or being opened. A client has one, whatever its
    /// namespaces.
    pub fn connections(&self) -> usize {
        self.0.hub.open()
    }

    /// The metrics in the text format that Prometheus scrapes.
    pub fn metrics(&self) -> String {
        self.0.hub.metrics.encode()
    }

    /// The registry of the metrics, to be gathered together with an application's own.
    pub fn registry(&self) -> &prometheus::Registry {
        self.0.hub.metrics.registry()
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.0.hub
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
    pub(super) fn new(
        hub: &Arc<Hub>,
        parser: Parser,
        place: &Place,
        namespaces: Vec<(Box<str>, Handlers)>,
        patterns: Vec<(Pattern, Handlers)>,
    ) -> Arc<Self> {
        let patterns = patterns
            .into_iter()
            .map(|(p, handlers)| (p, Arc::new(handlers)))
            .collect();
        Arc::new_cyclic(|weak| {
            let space = |(name, handlers): (Box<str>, Handlers)| {
                let handlers = Arc::new(handlers);
                let place = place.clone();
                let space = Space::new(&name, handlers, None, hub, parser, place, weak.clone());
                (Arc::clone(&space.name), space)
            };
            let spaces = RwLock::new(namespaces.into_iter().map(space).collect());
            Self {
                hub: Arc::clone(hub),
                parser,
                place: place.clone(),
                spaces,
                patterns,
            }
        })
    }

    /// The namespace that a client asks for, made if a pattern matches. The client counts as its
    /// user until it [leaves](Space::leave).
    pub(super) fn enter(self: &Arc<Self>, name: &str) -> Option<Arc<Space>> {
        {
            let spaces = self.spaces.read();
            if let Some(space) = spaces.get(name) {
                space.users.fetch_add(1, Ordering::Relaxed);
                return Some(Arc::clone(space));
            }
        }
        let matching = |(pattern, handlers): &(Pattern, Arc<Handlers>)| {
            Some((pattern.matches(name)?, Arc::clone(handlers)))
        };
        let (params, handlers) = self.patterns.iter().find_map(matching)?;
        let mut spaces = self.spaces.write();
        let space = spaces.entry(name.into()).or_insert_with(|| {
            let server = Arc::downgrade(self);
            Space::new(
                name,
                handlers,
                Some(params),
                &self.hub,
                self.parser,
                self.place.clone(),
                server,
            )
        });
        space.users.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(space))
    }

    /// A user has left a dynamic namespace; the last one takes it along.
    pub(super) fn leave(&self, space: &Arc<Space>) {
        let mut spaces = self.spaces.write();
        if space.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            spaces.remove(&space.name);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.hub.stop();
    }
}

/// Makes a [`Client`] of each connection. Keeps the server alive for as long as its routes.
struct AcceptInto(Arc<Inner>);

impl Acceptor for AcceptInto {
    fn accept(&self, connection: &Arc<Connection>, handshake: Handshake, seat: Seat) {
        let client = Client::new(Arc::clone(&self.0), connection, handshake);
        driver::spawn(connection, client, seat);
    }
}

/// The address of a client, for routes that are served by [`Server::serve`].
pub(super) type PeerAddress = axum::extract::ConnectInfo<SocketAddr>;
