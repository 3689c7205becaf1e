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
//! A client of the door is a socket of one namespace, a channel is a room of the same name, and a push
//! is a broadcast, so clients of other doors in the room hear it, too. Whoever connects with the wrong
//! pair is let in, has another digest, and hears nothing.
//!
//! Changes to the subscriptions of one digest take turns, so that the rooms of a socket and the
//! registry agree in the end.

mod application;
mod connect;
mod control;
mod form;
mod registry;
mod settings;
mod subscriptions;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, OnceLock, atomic::AtomicUsize},
};

use http::HeaderValue;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts};
use roomcast::{
    EmitError, Limits, Namespace, RedisConfig, Server, Socket, pakyow::SOCKET_CHANNEL, plain::Form,
};
use tokio::sync::{MutexGuard, Semaphore, SetOnce};

pub(crate) use self::settings::Settings;
use self::{
    application::Application,
    form::Frames,
    registry::{Bounds, Registry, RegistryError},
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
const TURNS: usize = 256;

/// A client of the door.
pub(crate) struct Visitor {
    digest: String,
    connection_id: String,
    /// The session of the application.
    cookie: Option<HeaderValue>,
    /// The routes that it may call at the same time.
    routes: Semaphore,
    /// Those that run or wait.
    calls: AtomicUsize,
    /// Held while the application learns of the connect, which comes before the disconnect.
    notices: Arc<tokio::sync::Mutex<()>>,
    /// Set when it hears its channels.
    is_joined: SetOnce<()>,
    /// Its place among the open requests of its address.
    place: Mutex<Option<Place>>,
}

impl Visitor {
    fn new(digest: String, connection_id: String, settings: &Settings) -> Self {
        Self {
            digest,
            connection_id,
            cookie: None,
            routes: Semaphore::new(settings.routes_per_socket),
            calls: AtomicUsize::new(0),
            notices: Arc::default(),
            is_joined: SetOnce::new(),
            place: Mutex::default(),
        }
    }
}

/// Why a call was not carried out, or not completely.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Emit(#[from] EmitError),
    #[error("nodes with sockets of the digest did not confirm: {0}")]
    Silent(String),
    #[error("the message is invalid: {0}")]
    Message(String),
}

/// The door. Cheap to share.
pub(crate) struct Pakyow {
    settings: Settings,
    limits: Limits,
    registry: Registry,
    application: Application,
    /// The sockets of this node by digest.
    sockets: Mutex<HashMap<String, Vec<Socket>>>,
    turns: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
    server: OnceLock<Server>,
    messages: IntCounterVec,
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
        let bounds = Bounds {
            lifetime: settings.lifetime.0,
            grace: settings.grace.0,
            channels: settings.max_channels,
        };
        let messages = Opts::new(
            "roomcast_pakyow_messages_total",
            "messages of Pakyow clients, by outcome",
        );
        Ok(Arc::new(Self {
            application: Application::new(settings, hooks)?,
            registry: Registry::new(bounds, redis),
            settings: settings.clone(),
            limits,
            sockets: Mutex::default(),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            server: OnceLock::new(),
            form: Arc::new(Frames),
            messages: IntCounterVec::new(messages, &["outcome"])
                .map_err(|error| error.to_string())?,
        }))
    }

    /// Must be called when the server is built, before it accepts clients.
    pub(crate) fn started(self: &Arc<Self>, server: &Server) -> Result<(), prometheus::Error> {
        drop(self.server.set(server.clone()));
        if self.registry.lapses() {
            let pakyow = Arc::clone(self);
            drop(tokio::spawn(async move { pakyow.renew_always().await }));
        }
        server.registry().register(Box::new(self.messages.clone()))
    }

    /// The namespace whose sockets the clients are.
    pub(crate) fn namespace(&self) -> &str {
        &self.settings.namespace
    }

    /// Adds what other nodes ask of this one.
    pub(crate) fn with_events(self: &Arc<Self>, namespace: Namespace) -> Namespace {
        let (joins, leaves, pushes) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        namespace
            .on_server_side(JOIN, move |change: Change| {
                let pakyow = Arc::clone(&joins);
                async move { pakyow.join_here(&change).await }
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
        self.add(digest, socket);
        let joined = match self.registry.open(digest, &self.node()).await {
            Ok(mut channels) => {
                channels.push(format!("{SOCKET_CHANNEL}{digest}"));
                socket.join_confirmed(channels.as_slice()).await
            }
            Err(error) => {
                tracing::warn!(%error, "a Pakyow client is sent away: its subscriptions are unknown");
                return socket.disconnect(true);
            }
        };
        drop(turn);
        // It is set once, and nobody else sets it.
        let _ = visitor.is_joined.set(());
        if let Err(error) = joined {
            tracing::warn!(%error, "a Pakyow client may miss messages of other nodes");
        }
        let notices = Arc::clone(&visitor.notices).lock_owned().await;
        let visitor = Arc::clone(visitor);
        let pakyow = Arc::clone(self);
        tokio::spawn(async move {
            let _until_it_is_told = notices;
            pakyow.application.notify(Occasion::Join, &visitor).await;
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
        let is_last = self.remove(digest, socket);
        if is_last && let Err(error) = self.registry.close(digest, &self.node()).await {
            tracing::warn!(%error, "the subscriptions of a Pakyow client end later");
        }
        drop(turn);
        drop(visitor.place.lock().take());
        let _after_the_connect = visitor.notices.lock().await;
        self.application.notify(Occasion::Leave, visitor).await;
    }

    fn add(&self, digest: &str, socket: &Socket) {
        let mut sockets = self.sockets.lock();
        let known = sockets.entry(digest.to_owned()).or_default();
        known.push(socket.clone());
    }

    /// Returns whether it was the last one of the digest.
    fn remove(&self, digest: &str, socket: &Socket) -> bool {
        let mut sockets = self.sockets.lock();
        let is_last = sockets.get_mut(digest).is_some_and(|known| {
            known.retain(|known| known.id() != socket.id());
            known.is_empty()
        });
        if is_last {
            sockets.remove(digest);
        }
        is_last
    }

    /// Waits for the turn of a digest.
    async fn turn(&self, digest: &str) -> MutexGuard<'_, ()> {
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
