//! The door for clients of Pakyow's realtime channels: plain WebSockets whose subscriptions the
//! application makes.
//!
//! ```text
//!  page ──► application ── POST /pakyow/subscribe ──► registry: digest ─► channels
//!  page ──► WebSocket ─► who is it? query, cookie, hook ─► digest ─► socket ─► joins its channels
//!  application ── POST /pakyow/push ──► broadcast into the room ─► frames of all its sockets
//!  page ── call-route ──► HTTP request to the application ──► reply under the id of the message
//! ```
//!
//! A client of the door is a socket of one namespace, a channel is a room of the same
//! name, and a push is a broadcast, so clients of other doors in the room receive it,
//! too. A client with the wrong pair is let in, has another digest, and receives nothing.
//!
//! With Pakyow's own processes, subscriptions and pushes are in their Redis; see `ruby`.
//!
//! Changes to the subscriptions of one digest take turns, so that the rooms of a socket and the
//! registry agree in the end.

mod application;
mod connect;
mod control;
mod form;
mod registry;
mod reload;
mod ruby;
mod settings;
mod subscriptions;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, OnceLock},
};

use http::HeaderValue;
use parking_lot::{Mutex, RwLock};
use prometheus::{IntCounterVec, Opts};
use roomcast::{
    EmitError, HandlerError, Limits, Namespace, RedisConfig, Server, Socket,
    bus::subscriber::ConfirmError, pakyow::SOCKET_CHANNEL, plain::Form,
};
use tokio::sync::{MutexGuard, Notify, Semaphore, SetOnce};

pub(crate) use self::settings::Settings;
use self::{
    application::Application,
    form::Frames,
    registry::{Registry, RegistryError},
    ruby::Ruby,
    settings::Occasion,
    subscriptions::{Change, MatchingPush},
};
use super::Place;
use crate::gateway::hooks::Hooks;

/// The events between nodes.
const JOIN: &str = "pakyow:join";
const LEAVE: &str = "pakyow:leave";
const PUSH_MATCHING: &str = "pakyow:push";

/// Digests share this number of turns.
/// A turn for each digest would be a table that has to be emptied. Two digests that
/// share one only wait for each other.
const TURNS: usize = 256;

/// The number of waiting routes of a socket for each one that may run.
/// Without a bound, a page could keep any number of messages here.
const WAITING: usize = 4;

/// A client of the door.
pub(crate) struct Visitor {
    digest: String,
    connection_id: String,
    /// The session of the application.
    cookie: Option<HeaderValue>,
    /// The routes that it may call at the same time.
    routes: Semaphore,
    /// Those, and the ones that may wait.
    calls: Arc<Semaphore>,
    /// Held while the application is notified of the connect, which comes before the disconnect.
    notices: Arc<tokio::sync::Mutex<()>>,
    /// Set when it has joined its channels.
    is_joined: SetOnce<()>,
    /// Its place among the open requests of its address.
    place: Mutex<Option<Place>>,
}

impl Visitor {
    fn new(digest: String, connection_id: String, settings: &Settings) -> Self {
        // More permits would be a panic.
        let routes = settings.routes_per_socket;
        let routes = routes.min(Semaphore::MAX_PERMITS / (1 + WAITING));
        Self {
            digest,
            connection_id,
            cookie: None,
            routes: Semaphore::new(routes),
            calls: Arc::new(Semaphore::new(routes * (1 + WAITING))),
            notices: Arc::default(),
            is_joined: SetOnce::new(),
            place: Mutex::default(),
        }
    }
}

/// The reason why a call was not carried out, or not completely.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Emit(#[from] EmitError),
    #[error("pushes of Pakyow's processes: {0}")]
    Unheard(#[from] ConfirmError),
    #[error("nodes with sockets of the digest did not confirm: {0}")]
    Silent(String),
    #[error("the message is invalid: {0}")]
    Message(String),
}

/// The sockets of a digest on this node.
#[derive(Clone, Default)]
struct Held {
    sockets: Vec<Socket>,
    /// The channels that they are subscribed to.
    channels: BTreeSet<String>,
}

/// The door. Cheap to share.
pub(crate) struct Pakyow {
    namespace: String,
    /// A reload may replace them, and the application.
    settings: RwLock<Arc<Settings>>,
    application: RwLock<Arc<Application>>,
    limits: Limits,
    registry: Registry,
    /// The Redis of Pakyow's own processes, if there are any.
    ruby: Option<Ruby>,
    /// By digest.
    sockets: Mutex<HashMap<String, Held>>,
    turns: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
    server: OnceLock<Server>,
    messages: IntCounterVec,
    /// Counts messages from the Redis of Pakyow's processes.
    published: IntCounterVec,
    hooks: Hooks,
    /// The settings were replaced.
    is_reloaded: Notify,
    /// How all clients see events.
    form: Arc<dyn Form>,
}

impl Pakyow {
    pub(crate) fn new(
        settings: &Settings,
        limits: Limits,
        hooks: &Hooks,
        redis: Option<RedisConfig>,
    ) -> Result<Arc<Self>, String> {
        let counter = |name, help| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["outcome"]);
            counter.map_err(|error| error.to_string())
        };
        let messages = counter(
            "roomcast_pakyow_messages_total",
            "messages of Pakyow clients, by outcome",
        )?;
        let published = counter(
            "roomcast_pakyow_registry_messages_total",
            "messages from the Redis of Pakyow's processes, by outcome",
        )?;
        let registry = settings.registry.as_ref();
        let ruby = registry.map(|settings| Ruby::new(settings, redis.as_ref(), published.clone()));
        let ruby = ruby.transpose()?;
        let registry = match &ruby {
            Some(ruby) => ruby.registry(settings.bounds()),
            None => Registry::new(settings.bounds(), redis),
        };
        let application = Application::new(settings, hooks)?;
        Ok(Arc::new(Self {
            namespace: settings.namespace.clone(),
            settings: RwLock::new(Arc::new(settings.clone())),
            application: RwLock::new(Arc::new(application)),
            limits,
            registry,
            ruby,
            sockets: Mutex::default(),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            server: OnceLock::new(),
            messages,
            published,
            hooks: hooks.clone(),
            is_reloaded: Notify::new(),
            form: Arc::new(Frames),
        }))
    }

    /// Must be called when the server is built, before it accepts clients.
    pub(crate) fn started(self: &Arc<Self>, server: &Server) -> Result<(), prometheus::Error> {
        drop(self.server.set(server.clone()));
        if self.registry.lapses() {
            let pakyow = Arc::clone(self);
            drop(tokio::spawn(async move { pakyow.renew_always().await }));
        }
        if let Some(ruby) = &self.ruby {
            ruby.start(self, server);
            server
                .registry()
                .register(Box::new(self.published.clone()))?;
        }
        server.registry().register(Box::new(self.messages.clone()))
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read())
    }

    fn application(&self) -> Arc<Application> {
        Arc::clone(&self.application.read())
    }

    /// The namespace whose sockets the clients are.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Adds the events between nodes.
    pub(crate) fn with_events(self: &Arc<Self>, namespace: Namespace) -> Namespace {
        let (joins, leaves, pushes) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        namespace
            .on_server_side(JOIN, move |change: Change| {
                let pakyow = Arc::clone(&joins);
                async move { Ok::<_, HandlerError>(pakyow.join_here(&change).await?) }
            })
            .on_server_side(LEAVE, move |change: Change| {
                let pakyow = Arc::clone(&leaves);
                async move { pakyow.leave_here(&change).await }
            })
            .on_server_side(PUSH_MATCHING, move |push: MatchingPush| {
                let pakyow = Arc::clone(&pushes);
                async move { pakyow.push_here(&push).await }
            })
    }

    /// A socket of the namespace has connected. It joins its channels if it came through this door.
    pub(crate) async fn connected(self: &Arc<Self>, socket: &Socket) {
        let Some(visitor) = socket.handshake().extension::<Arc<Visitor>>() else {
            return;
        };
        let digest = &visitor.digest;
        let turn = self.turn(digest).await;
        // Before the registry is read: a subscription that is made from now on finds
        // the socket.
        self.add(digest, socket);
        let joined = match self.registry.open(digest, &self.node()).await {
            Ok(channels) => {
                let mut channels = self.usable(channels);
                self.note(digest, |known| known.extend(channels.iter().cloned()));
                // The private channel, by which `push_to` reaches the digest on any
                // node.
                channels.push(format!("{SOCKET_CHANNEL}{digest}"));
                self.join(std::slice::from_ref(socket), &channels).await
            }
            Err(error) => {
                tracing::warn!(%error, "a Pakyow client is disconnected: its subscriptions are unknown");
                // A client without its channels would look connected and receive
                // nothing. The stock client reconnects by itself.
                return socket.disconnect(true);
            }
        };
        drop(turn);
        // It is set once, and only here.
        let _ = visitor.is_joined.set(());
        if let Err(error) = joined {
            tracing::warn!(%error, "a Pakyow client may miss messages of other nodes");
        }
        let notices = Arc::clone(&visitor.notices).lock_owned().await;
        let visitor = Arc::clone(visitor);
        let pakyow = Arc::clone(self);
        // The application may take its time, and the socket's messages must not wait
        // for it.
        tokio::spawn(async move {
            let _until_it_is_notified = notices;
            let application = pakyow.application();
            application.notify(Occasion::Join, &visitor).await;
        });
    }

    /// A socket of the namespace has disconnected. The last one of a digest takes its subscriptions
    /// with it.
    pub(crate) async fn disconnected(&self, socket: &Socket) {
        let Some(visitor) = socket.handshake().extension::<Arc<Visitor>>() else {
            return;
        };
        let digest = &visitor.digest;
        let turn = self.turn(digest).await;
        // Several sockets may share a digest, for example while a page reconnects.
        let is_last = self.remove(digest, socket);
        if is_last && let Err(error) = self.registry.close(digest, &self.node()).await {
            tracing::warn!(%error, "the subscriptions of a Pakyow client end later");
        }
        drop(turn);
        drop(visitor.place.lock().take());
        let _after_the_connect = visitor.notices.lock().await;
        self.application().notify(Occasion::Leave, visitor).await;
    }

    fn add(&self, digest: &str, socket: &Socket) {
        let mut sockets = self.sockets.lock();
        let held = sockets.entry(digest.to_owned()).or_default();
        held.sockets.push(socket.clone());
    }

    /// Returns whether it was the last one of the digest.
    fn remove(&self, digest: &str, socket: &Socket) -> bool {
        let mut sockets = self.sockets.lock();
        let is_last = sockets.get_mut(digest).is_some_and(|held| {
            held.sockets.retain(|known| known.id() != socket.id());
            held.sockets.is_empty()
        });
        if is_last {
            sockets.remove(digest);
        }
        is_last
    }

    /// The sockets of a digest on this node, and their channels.
    fn held(&self, digest: &str) -> Held {
        let sockets = self.sockets.lock();
        sockets.get(digest).cloned().unwrap_or_default()
    }

    fn has_sockets_of(&self, digest: &str) -> bool {
        self.sockets.lock().contains_key(digest)
    }

    /// The digests with sockets on this node.
    fn digests(&self) -> Vec<String> {
        self.sockets.lock().keys().cloned().collect()
    }

    /// Changes the known channels of a digest, if it has sockets.
    fn note(&self, digest: &str, change: impl FnOnce(&mut BTreeSet<String>)) {
        if let Some(held) = self.sockets.lock().get_mut(digest) {
            change(&mut held.channels);
        }
    }

    /// Waits for the turn of a digest.
    async fn turn(&self, digest: &str) -> MutexGuard<'_, ()> {
        // Keyed, because clients choose the input of digests.
        let hash = self.hasher.hash_one(digest);
        let index = hash % TURNS as u64;
        self.turns[usize::try_from(index).unwrap_or_default()]
            .lock()
            .await
    }

    fn server(&self) -> Option<&Server> {
        self.server.get()
    }

    /// The name of this node.
    fn node(&self) -> String {
        self.server()
            .map_or_else(String::new, |server| server.node().to_string())
    }
}
