//! The settings of a server, and its construction.
//!
//! Building is asynchronous because a server on a bus has to be subscribed before it is
//! returned: otherwise the next emit of another node could be missed. All settings are checked
//! before the bus starts, so a failed build has no effect.

use std::{
    any::{Any, TypeId},
    convert::Infallible,
    future::{Future, ready},
    sync::{Arc, OnceLock, Weak},
    thread::available_parallelism,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::RwLock;
use roomcast_adapter::{
    Bus, Gap, Health, MemoryKeys, MemoryLogs, MemorySessions, NodeId, RedisBus, RedisConfig,
};
use roomcast_emitter::UrlError;
use tokio::sync::OnceCell;

use super::{
    catch_up,
    cluster::ClusterNode,
    error::{BuildError, Place},
    gaps::{self, Gaps, OnGap},
    handler::{
        Arguments, Call, Callback, Handler, Need, Outcome, States, on_hook, place::OnAuthorize,
    },
    live_namespace::LiveNamespace,
    namespace::{Handlers, Namespace, Pattern},
    packets::Parser,
    server::{Inner, Server},
    tasks::Tasks,
};
use crate::{
    metrics::Metrics,
    rate::Rate,
    transport::{
        client_address::TrustedProxies,
        client_files::ClientFiles,
        config::{AllowRequest, Config, Cookie, Limits},
        cors::Cors,
        engine::Engine,
    },
};

/// Time for handlers when a server closes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Configures a server. Every setting has Socket.IO's default.
///
/// ```no_run
/// # use std::time::Duration;
/// # use roomcast::{Cors, Limits, Namespace, Server};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let io = Server::builder()
///     .namespace(Namespace::new("/"))
///     .cors(Cors::origins(["https://app.example"]))
///     .ping_interval(Duration::from_secs(10))
///     .limits(Limits { connections: 50_000, ..Limits::default() })
///     .redis("redis://127.0.0.1")
///     .build()
///     .await?;
/// # drop(io);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    config: Config,
    parser: Parser,
    namespaces: Vec<Namespace>,
    lanes: Option<usize>,
    bus: Option<StartBus>,
    on_gap: Option<OnGap>,
    states: States,
    drain_timeout: Option<Duration>,
    allow_request: Option<Callback>,
    needs: Vec<Need>,
}

/// Starts the bus while the server is built, because it needs the name of the node, which is drawn
/// with the engine, and a bus over Redis also the server's limits.
type StartBus =
    Box<dyn FnOnce(NodeId, Limits) -> BoxFuture<'static, Result<Arc<dyn Bus>, BuildError>> + Send>;

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty => $($field:ident).+;)*) => {$(
        $(#[$doc])*
        pub fn $name(mut self, $name: $type) -> Self {
            self.config.$($field).+ = $name;
            self
        }
    )*};
}

impl Builder {
    setters! {
        /// Interval between the server's pings. Default 25 s.
        ping_interval: Duration => heartbeat.interval;
        /// Time for the answer to a ping. Default 20 s. Beyond: the connection is closed.
        ping_timeout: Duration => heartbeat.timeout;
        /// Time for an upgrade to WebSocket. Default 10 s.
        upgrade_timeout: Duration => upgrade_timeout;
        /// Time for a client to connect to its first namespace. Default 45 s.
        connect_timeout: Duration => connect_timeout;
        /// Largest message or polling body of a client, in bytes. Default 1,000,000.
        max_payload: usize => max_payload;
        /// Whether polling clients may upgrade to WebSocket. Default `true`.
        allow_upgrades: bool => allow_upgrades;
        /// Whether clients of Socket.IO 1 and 2 (Engine.IO revision 3) may connect.
        /// Default `false`.
        allow_eio3: bool => allow_eio3;
        /// Limits of everything that clients can fill.
        limits: Limits => limits;
    }

    /// Path of the server. Default `/socket.io`.
    pub fn path(mut self, path: &str) -> Self {
        self.config.path = path.trim_end_matches('/').to_owned();
        self
    }

    /// Proxies that are trusted to state the addresses of clients in headers. Default: none.
    pub fn trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.config.trusted_proxies = Arc::new(proxies);
        self
    }

    /// Transports that clients may use. Default: both.
    pub fn transports(mut self, polling: bool, websocket: bool) -> Self {
        self.config.polling = polling;
        self.config.websocket = websocket;
        self
    }

    /// Allows pages of other origins to poll. Default: none.
    pub fn cors(mut self, cors: Cors) -> Self {
        self.config.cors = Some(cors);
        self
    }

    /// Sets a cookie with the session's id on the first response. Default: none.
    pub fn cookie(mut self, cookie: Cookie) -> Self {
        self.config.cookie = Some(cookie);
        self
    }

    /// Whether poll responses from 1,024 bytes are compressed for clients that accept gzip. Default
    /// `true`.
    pub fn http_compression(mut self, enabled: bool) -> Self {
        self.config.compress_from = enabled.then_some(1024);
        self
    }

    /// Serves the client's bundles below the server's path, like `serveClient` of
    /// Socket.IO. Default: none, and a request for one is answered with status 404 and
    /// the remedy.
    pub fn client_files(mut self, files: ClientFiles) -> Self {
        self.config.client_files = Some(files);
        self
    }

    /// Accepts or rejects each handshake before a session is created, like `allowRequest`
    /// of Socket.IO. Takes the arguments of [`Namespace::authorize`]. The response to a
    /// rejected request has status 403 and the message of a [`Refused`](super::Refused),
    /// or else `internal error`.
    pub fn allow_request<Form, H>(mut self, handler: H) -> Self
    where
        Form: Arguments<OnAuthorize>,
        H: Handler<Form, Returned: Future<Output: Outcome> + Send + 'static>,
    {
        self.needs.extend(Form::needs());
        self.allow_request = Some(on_hook(handler));
        self
    }

    /// Keeps values of this type that a layer has put into the extensions of a request.
    /// [`Handshake::extension`](crate::Handshake::extension) returns them, also to the
    /// handlers of its sockets.
    pub fn keep_extension<T: Clone + Send + Sync + 'static>(mut self) -> Self {
        self.config.keep.push(|from, to| {
            if let Some(value) = from.get::<T>() {
                to.insert(value.clone());
            }
        });
        self
    }

    /// Encoding of packets. Default [`Parser::Json`]. Clients must use the same.
    pub fn parser(mut self, parser: Parser) -> Self {
        self.parser = parser;
        self
    }

    /// Adds a namespace. Clients cannot connect to others.
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespaces.push(namespace);
        self
    }

    /// Provides a value that handlers share. They take it as [`State<S>`](super::State),
    /// and [`Socket::state`](super::Socket::state) and [`Server::state`] return it. A
    /// second value of the same type replaces the first.
    pub fn state<S: Any + Send + Sync>(mut self, value: S) -> Self {
        self.states.insert(TypeId::of::<S>(), Arc::new(value));
        self
    }

    /// How long [`Server::close`] waits for running handlers. Default 30 s. Beyond: it
    /// returns while they still run.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = Some(timeout);
        self
    }

    /// Number of tasks that write to connections, and of shards of the room index. Default: the
    /// number of the runtime's worker threads, because more bring only costs. At most 64.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = Some(lanes);
        self
    }

    /// Makes the server a node of a cluster whose rooms span all servers on the bus. Default: no
    /// other nodes.
    pub fn bus(self, bus: impl Bus) -> Self {
        self.start_bus(|_| ready(Ok::<_, Infallible>(bus)))
    }

    /// The same for a bus that needs the name of the node, which is the prefix of the ids of its
    /// sockets. If `start` fails, [`build`](Self::build) fails with [`BuildError::Bus`].
    pub fn start_bus<F, Fut, B, E>(self, start: F) -> Self
    where
        F: FnOnce(NodeId) -> Fut + Send + 'static,
        Fut: Future<Output = Result<B, E>> + Send + 'static,
        B: Bus,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.starting(|node, _| start(node))
    }

    fn starting<F, Fut, B, E>(mut self, start: F) -> Self
    where
        F: FnOnce(NodeId, Limits) -> Fut + Send + 'static,
        Fut: Future<Output = Result<B, E>> + Send + 'static,
        B: Bus,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.bus = Some(Box::new(move |node, limits| {
            let starting = start(node, limits).map(|started| {
                let bus = started.map_err(|error| BuildError::Bus(error.into()))?;
                Ok(Arc::new(bus) as _)
            });
            starting.boxed()
        }));
        self
    }

    /// Makes the server a node of a cluster over Redis. Node.js servers with
    /// `@socket.io/redis-adapter` and emitters of any language can be part of it, all
    /// with their default settings. The URL is
    /// `redis://[user:password@]host[:port][/database]`, `unix:///path`,
    /// `redis+sentinel://host[:port],…/name` or `redis+cluster://host[:port],…`; `rediss`
    /// instead of `redis` for TLS. [`build`](Self::build) fails if Redis cannot be used.
    pub fn redis(self, url: &str) -> Self {
        match url.parse() {
            Ok(url) => self.redis_with(RedisConfig::new(url)),
            Err(error) => self.start_bus(|_| ready(Err::<RedisBus, UrlError>(error))),
        }
    }

    /// The same with settings other than the defaults. `json_depth` is replaced by that of the
    /// server's [`Limits`](crate::Limits), so that one limit applies to every path.
    pub fn redis_with(self, config: RedisConfig) -> Self {
        self.starting(async move |node, limits| {
            let json_depth = limits.json_depth;
            let config = RedisConfig {
                json_depth,
                ..config
            };
            RedisBus::connect(config, &node).await
        })
    }

    /// Runs after each gap, a time in which messages of other nodes may not have reached
    /// this one. Clients may have missed events, so an application can make them reload
    /// their state. While the handler runs, further gaps are merged into one. A second
    /// call replaces the first.
    pub fn on_gap<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Gap) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Outcome> + Send + 'static,
    {
        self.on_gap = Some(gaps::handler(handler));
        self
    }

    /// Builds the server on the current tokio runtime. When it resolves, messages between any two
    /// nodes are delivered.
    ///
    /// # Errors
    ///
    /// See [`BuildError`]. Settings are checked before anything is started.
    pub async fn build(self) -> Result<Server, BuildError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| BuildError::NoRuntime)?;
        check(&self.config)?;
        let states = Arc::new(self.states);
        // Handlers name the types of state that they take, so a value that is missing
        // is found here and not at the first event.
        let definitions = Definitions::check(self.namespaces, self.needs, &states)?;
        let metrics = Arc::new(Metrics::new());
        let mut config = self.config;
        config.allow_request = self.allow_request.map(|allow| {
            let (states, metrics) = (Arc::clone(&states), Arc::clone(&metrics));
            requests_allowed_by(allow, states, metrics)
        });
        let workers = runtime.metrics().num_workers();
        let cores = available_parallelism().map_or(workers, std::num::NonZero::get);
        let lanes = self
            .lanes
            .unwrap_or_else(|| workers.min(cores).max(1))
            .clamp(1, 64);
        let engine = Arc::new(Engine::new(config, metrics, lanes));
        let node = NodeId::new(&engine.ids.node_name());
        let bus = match self.bus {
            Some(start) => Some(start(node.clone(), engine.config.limits).await?),
            None => None,
        };
        let is_flowing = bus
            .as_ref()
            .is_none_or(|bus| bus.health() == Health::Flowing);
        // The bus may report a gap before the server exists, which then has no sockets
        // to catch up.
        let known = Arc::<OnceLock<Weak<Inner>>>::default();
        let gaps = match &bus {
            Some(bus) => {
                register(&engine.metrics, &**bus)?;
                let metrics = &engine.metrics;
                let on_gap = catch_up::before(self.on_gap, Arc::clone(&known));
                Some(Gaps::listen(&**bus, on_gap, &runtime, metrics))
            }
            None => None,
        };
        let tasks = Tasks::new(runtime, engine.config.limits.server_side_events);
        engine.start();
        let inner = Arc::new(Inner {
            engine,
            parser: self.parser,
            states,
            drain_timeout: self.drain_timeout.unwrap_or(DRAIN_TIMEOUT),
            cluster: ClusterNode {
                node,
                bus,
                logs: MemoryLogs::default(),
                sessions: MemorySessions::default(),
                keys: MemoryKeys::default(),
            },
            live: RwLock::default(),
            patterns: definitions.patterns,
            tasks,
            observers: Arc::default(),
            _gaps: gaps,
            closed: OnceCell::new(),
        });
        // It was not set before.
        let _ = known.set(Arc::downgrade(&inner));
        let named = definitions.named.into_iter();
        let namespaces: Vec<_> = named
            .map(|(name, handlers)| LiveNamespace::new(&inner, &name, handlers, None))
            .collect();
        for namespace in &namespaces {
            let name = Arc::clone(&namespace.name);
            inner.live.write().insert(name, Arc::clone(namespace));
        }
        // Once `build` has returned, messages between any two nodes are delivered, unless
        // the bus is interrupted, which it reports itself.
        for namespace in namespaces.iter().filter(|_| is_flowing) {
            namespace.listening().await;
        }
        let journals = namespaces.iter().filter_map(|n| n.journal.as_ref());
        for journal in journals.filter(|_| is_flowing) {
            journal.begun().await;
        }
        Ok(Server::from_inner(inner))
    }
}

/// The namespaces of a server, by name and by pattern.
struct Definitions {
    named: Vec<(Box<str>, Arc<Handlers>)>,
    patterns: Vec<(Pattern, Arc<Handlers>)>,
}

impl Definitions {
    /// Checks the names, and that the shared state for all handlers exists.
    fn check(
        namespaces: Vec<Namespace>,
        mut needs: Vec<Need>,
        states: &Arc<States>,
    ) -> Result<Self, BuildError> {
        let mut defined = Self {
            named: Vec::new(),
            patterns: Vec::new(),
        };
        for Namespace {
            name,
            is_pattern,
            mut handlers,
        } in namespaces
        {
            if !name.starts_with('/') {
                return Err(BuildError::NamespaceWithoutSlash(name));
            }
            if let (Some(journal), Some(recovery)) = (&handlers.journal, &handlers.recovery)
                && journal.age < recovery.max_disconnection
            {
                return Err(BuildError::Journal {
                    namespace: name,
                    problem: "below `recovery.max_disconnection`: clients could not come back so late",
                });
            }
            if let (Some(journal), Some(recovery)) = (&handlers.journal, &handlers.recovery)
                && recovery.at_least_once
                && journal.age < recovery.max_disconnection * 3 / 2
            {
                return Err(BuildError::Journal {
                    namespace: name,
                    problem: "below 1.5 times `recovery.max_disconnection`, which `recovery.at_least_once` needs",
                });
            }
            needs.append(&mut handlers.needs);
            handlers.states = Arc::clone(states);
            let handlers = Arc::new(handlers);
            if is_pattern {
                defined.patterns.push((Pattern::parse(&name)?, handlers));
            } else if defined.named.iter().any(|(known, _)| *known == name) {
                return Err(BuildError::DuplicateNamespace(name));
            } else {
                defined.named.push((name, handlers));
            }
        }
        match needs.iter().find(|(id, _)| !states.contains_key(id)) {
            Some((_, name)) => Err(BuildError::MissingState(name)),
            None => Ok(defined),
        }
    }
}

/// The decision about handshakes, for the transport.
fn requests_allowed_by(
    allow: Callback,
    states: Arc<States>,
    metrics: Arc<Metrics>,
) -> AllowRequest {
    Arc::new(move |handshake| {
        let deciding = allow(&mut Call {
            handshake: Some(&handshake),
            ..Call::new(&states)
        });
        let metrics = Arc::clone(&metrics);
        Box::pin(async move {
            let place = Place {
                metrics: &metrics,
                namespace: "",
                socket: None,
                what: "allow_request",
            };
            let decided = deciding.await.map(drop);
            decided.map_err(|failed| failed.report(&place).message.into_owned())
        })
    })
}

/// Adds the metrics of the bus to the server's registry.
fn register(metrics: &Metrics, bus: &dyn Bus) -> Result<(), BuildError> {
    for collector in bus.collectors() {
        let registered = metrics.registry().register(collector);
        registered.map_err(BuildError::BusMetrics)?;
    }
    Ok(())
}

fn check(config: &Config) -> Result<(), BuildError> {
    let path = &config.path;
    if !(path.is_empty() || path.starts_with('/')) || path.contains(['{', '}', '*']) {
        return Err(BuildError::Path(path.as_str().into()));
    }
    if !config.polling && !config.websocket {
        return Err(BuildError::NoTransport);
    }
    let limits = &config.limits;
    let is_zero = |rate: Option<Rate>| rate.is_some_and(|r| r.per_second == 0 || r.burst == 0);
    let zeros = [
        ("ping_interval", config.heartbeat.interval.is_zero()),
        ("ping_timeout", config.heartbeat.timeout.is_zero()),
        ("upgrade_timeout", config.upgrade_timeout.is_zero()),
        ("connect_timeout", config.connect_timeout.is_zero()),
        ("limits.header_timeout", limits.header_timeout.is_zero()),
        ("limits.body_timeout", limits.body_timeout.is_zero()),
        ("limits.response_timeout", limits.response_timeout.is_zero()),
        ("max_payload", config.max_payload == 0),
        ("limits.json_depth", limits.json_depth == 0),
        (
            "limits.namespaces_per_connection",
            limits.namespaces_per_connection == 0,
        ),
        ("limits.events_in_flight", limits.events_in_flight == 0),
        ("limits.outbox_bytes", limits.outbox_bytes == 0),
        ("limits.stall_timeout", limits.stall_timeout.is_zero()),
        ("limits.fragments", limits.fragments == 0),
        ("limits.connections", limits.connections == 0),
        ("limits.sockets", limits.sockets == 0),
        (
            "limits.connections_per_address",
            limits.connections_per_address == Some(0),
        ),
        ("limits.connect_rate", is_zero(limits.connect_rate)),
        ("limits.event_rate", is_zero(limits.event_rate)),
        ("limits.byte_rate", is_zero(limits.byte_rate)),
    ];
    let zeros = zeros.map(|(setting, is_wrong)| (setting, is_wrong, "zero"));
    let others = [
        (
            "limits.json_depth",
            limits.json_depth > roomcast_protocol::args::json::MAX_DEPTH,
            "above 500",
        ),
        (
            "limits.inbox_bytes",
            limits.inbox_bytes < config.max_payload,
            "below `max_payload`: a client's largest body would never fit",
        ),
        (
            "limits.ipv6_prefix",
            !(1..=128).contains(&limits.ipv6_prefix),
            "not between 1 and 128",
        ),
    ];
    for (setting, is_wrong, problem) in zeros.into_iter().chain(others) {
        if is_wrong {
            return Err(BuildError::Setting { setting, problem });
        }
    }
    Ok(())
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}
