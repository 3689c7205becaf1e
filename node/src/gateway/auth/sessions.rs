//! The connected users of a node: their tokens expire, are refreshed and are revoked.
//!
//! ```text
//!            expires − notice              expires + leeway
//! connect ────────┬───────────────────────────────┬───────► token:expired, disconnect
//!                 └─► token:expiring {in}         │
//!                         token:refresh (token) ──┘ ack {expires}: both times move
//! ```
//!
//! One task checks all sessions once a second, so a socket needs no timer.
//!
//! **Why a user is replaced as a whole.** A refreshed token may change rights and
//! rooms. A handler that is running keeps the user with which it began, and the next
//! one gets the new one, so no check sees half of each.
//!
//! **Locks.** All times are in one table with one lock. Only [`Session`] takes the lock of
//! its user, for the moment of a copy, so there is no order in which to take the two. A
//! socket that ends is removed from the table by its own disconnect, so the table holds no
//! dead sockets.

mod revoking;

use std::{
    collections::{BTreeMap, HashMap},
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, core::Collector};
use roomcast::{Handshake, Namespace, Refused, Server, Socket};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

pub(crate) use revoking::RevokeError;
use revoking::{REVOCATIONS, REVOKE};

use super::{
    Settings, Source,
    jwks::Jwks,
    keys::{Failure, Key, KeyError, Rules, Verified, verify},
    revocations::{Revocation, Revocations},
    user::{TokenError, User},
};
use crate::gateway::{
    config::Config,
    reload::{Preparing, Reloadable, Swap},
    session::{self, SocketData, user_room},
};

/// How often sessions are checked.
const TICK: Duration = Duration::from_secs(1);

/// The user of a socket. Replaced when the client presents a fresh token.
#[derive(Debug)]
pub(crate) struct Session {
    // Times may be equal, so the table needs a distinct key for each session.
    key: u64,
    user: Mutex<Arc<User>>,
}

impl Session {
    /// The user, as its latest token describes it.
    pub(crate) fn user(&self) -> Arc<User> {
        Arc::clone(&self.user.lock())
    }

    fn set_user(&self, user: Arc<User>) {
        *self.user.lock() = user;
    }
}

/// The sessions of connected sockets, by the time at which something has to happen.
#[derive(Default)]
struct Due {
    /// By the time, in seconds since 1970, and the session's key.
    sockets: BTreeMap<(u64, u64), Socket>,
    /// The time of each session, by its key.
    times: HashMap<u64, u64>,
}

impl Due {
    fn has(&self, session: &Session) -> bool {
        self.times.contains_key(&session.key)
    }

    /// Sets the time of a session, in place of an earlier one.
    fn insert(&mut self, session: &Session, at: u64, socket: Socket) {
        self.remove(session);
        self.times.insert(session.key, at);
        self.sockets.insert((at, session.key), socket);
    }

    fn remove(&mut self, session: &Session) {
        if let Some(at) = self.times.remove(&session.key) {
            self.sockets.remove(&(at, session.key));
        }
    }

    /// Removes a session whose time has come, and returns its socket.
    fn pop(&mut self, now: u64) -> Option<Socket> {
        let first = self.sockets.first_entry();
        let ((_, key), socket) = first.filter(|first| first.key().0 <= now)?.remove_entry();
        self.times.remove(&key);
        Some(socket)
    }
}

/// The section `jwt` of the file.
struct Parts {
    settings: Settings,
    keys: Vec<Key>,
    jwks: Option<Jwks>,
    rules: Rules,
}

impl Parts {
    /// Reads the keys of the file. The set is read before.
    fn new(settings: Settings, jwks: Option<Jwks>) -> Result<Self, KeyError> {
        let keys = settings.keys.iter();
        let keys = keys.map(|key| Key::read(key, |name| env::var(name).ok()));
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        if keys.is_empty() && jwks.is_none() {
            return Err(KeyError::None);
        }
        Ok(Self {
            rules: Rules::from(&settings),
            settings,
            keys,
            jwks,
        })
    }

    fn verify(&self, token: &str, now: u64) -> Result<Verified, Failure> {
        let set = self.jwks.as_ref().map(Jwks::keys).unwrap_or_default();
        let keys = self.keys.iter().chain(set.iter());
        verify(token, keys, &self.rules, now)
    }
}

/// Verifies tokens and watches over the sessions that began with one.
pub(crate) struct Auth {
    /// Replaced as a whole by a reload.
    parts: RwLock<Arc<Parts>>,
    /// Seconds since 1970.
    now: fn() -> u64,
    next_key: AtomicU64,
    due: Mutex<Due>,
    revocations: Mutex<Revocations>,
    /// The namespaces that require tokens. Revocations travel in each of them, because a
    /// namespace is the widest group that servers of a cluster have.
    namespaces: Vec<String>,
    metrics: Metrics,
}

struct Metrics {
    loads: IntCounterVec,
    refused: IntCounterVec,
    expired: IntCounter,
    revocations: IntGauge,
}

impl Metrics {
    fn new() -> Self {
        let created = "the name of a metric is valid";
        let refused = Opts::new(
            "roomcast_tokens_refused_total",
            "Tokens that were not accepted, by reason.",
        );
        Self {
            loads: Jwks::loads(),
            refused: IntCounterVec::new(refused, &["reason"]).expect(created),
            expired: IntCounter::new(
                "roomcast_tokens_expired_total",
                "Sockets that were disconnected because their token had expired.",
            )
            .expect(created),
            revocations: IntGauge::new(
                "roomcast_revocations",
                "Users and tokens that are remembered as revoked.",
            )
            .expect(created),
        }
    }
}

impl Auth {
    /// Reads the keys. `namespaces` require tokens.
    pub(crate) async fn new(
        settings: Settings,
        namespaces: Vec<String>,
        asks_issuer: bool,
    ) -> Result<Arc<Self>, KeyError> {
        let metrics = Metrics::new();
        let loads = metrics.loads.clone();
        let jwks = match settings.jwks.clone() {
            Some(jwks) => Some(Jwks::start(jwks, loads, asks_issuer).await?),
            None => None,
        };
        Ok(Arc::new(Self {
            parts: RwLock::new(Arc::new(Parts::new(settings, jwks)?)),
            now: jsonwebtoken::get_current_timestamp,
            next_key: AtomicU64::new(0),
            due: Mutex::default(),
            revocations: Mutex::default(),
            namespaces,
            metrics,
        }))
    }

    /// Adds the metrics to those of the server, and starts the tasks. They end with the runtime.
    pub(crate) fn start(self: &Arc<Self>, server: &Server) {
        let metrics = &self.metrics;
        let collectors: [Box<dyn Collector>; 4] = [
            Box::new(metrics.loads.clone()),
            Box::new(metrics.refused.clone()),
            Box::new(metrics.expired.clone()),
            Box::new(metrics.revocations.clone()),
        ];
        for collector in collectors {
            let registered = server.registry().register(collector);
            registered.expect("each metric is registered once");
        }
        if let Some(jwks) = &self.parts().jwks {
            jwks.watch();
        }
        let auth = Arc::clone(self);
        tokio::spawn(async move { auth.watch_sessions().await });
        let (auth, server) = (Arc::clone(self), server.clone());
        tokio::spawn(async move { auth.learn_revocations(&server).await });
    }

    fn parts(&self) -> Arc<Parts> {
        Arc::clone(&self.parts.read())
    }

    /// Finds and verifies the token of a client that connects.
    pub(crate) async fn admit(&self, handshake: &Handshake) -> Result<SocketData, Refused> {
        let parts = self.parts();
        let places = parts.settings.token_from.iter();
        let token = { places }.find_map(|place: &Source| place.token(handshake));
        let user = match token {
            Some(token) => self.verify(&token).await,
            None => Err(TokenError::Missing),
        };
        let user = user.map_err(|error| self.refuse(&error))?;
        let session = Session {
            key: self.next_key.fetch_add(1, Ordering::Relaxed),
            user: Mutex::new(Arc::new(user)),
        };
        Ok(SocketData::of_session(Arc::new(session)))
    }

    /// Verifies a token and that it is not revoked.
    pub(crate) async fn verify(&self, token: &str) -> Result<User, TokenError> {
        let parts = self.parts();
        let verified = match parts.verify(token, (self.now)()) {
            Err(Failure::UnknownKey) => match &parts.jwks {
                // The issuer may have a new key, with which the token is signed.
                Some(jwks) if jwks.renew().await => parts.verify(token, (self.now)()),
                _ => Err(Failure::UnknownKey),
            },
            verified => verified,
        };
        let verified = verified.map_err(|failure| match failure {
            Failure::UnknownKey => TokenError::Invalid,
            Failure::Token(error) => error,
        })?;
        let user = User::new(verified, &parts.settings.claims)?;
        if self.revocations.lock().is_revoked(&user) {
            return Err(TokenError::Revoked);
        }
        Ok(user)
    }

    fn refuse(&self, error: &TokenError) -> Refused {
        let reason = error.code();
        self.metrics.refused.with_label_values(&[reason]).inc();
        Refused::new(error.to_string()).data(&json!({ "code": reason }))
    }

    /// A client has connected: it joins the room of its user and those that its token names.
    pub(crate) fn connected(&self, socket: &Socket) {
        let Some(session) = session::of(socket) else {
            return;
        };
        let user = session.user();
        let mut rooms = vec![user_room(&user.id)];
        rooms.extend(user.rooms.iter().cloned());
        if let Err(error) = socket.join(rooms.as_slice()) {
            tracing::warn!(user = user.id, %error, "a client cannot join the rooms of its token");
        }
        self.schedule(socket, &session, false);
        // Another node may have revoked the token since it was verified.
        if self.revocations.lock().is_revoked(&user) {
            self.end(socket, "token:revoked");
        }
    }

    /// A client has disconnected.
    pub(crate) fn disconnected(&self, socket: &Socket) {
        let Some(session) = session::of(socket) else {
            return;
        };
        self.due.lock().remove(&session);
    }

    /// Puts a session into the table, at its notice or at its end.
    fn schedule(&self, socket: &Socket, session: &Session, is_notified: bool) {
        let parts = self.parts();
        let mut due = self.due.lock();
        // A socket that has ended may have removed its session already.
        if !due.has(session) && !socket.is_connected() {
            return;
        }
        // Under the lock, so that the time of the latest token is the one that stays.
        let expires = session.user().expires;
        let at = match is_notified {
            true => expires.saturating_add(parts.settings.leeway.as_secs()),
            false => expires.saturating_sub(parts.settings.expiry_notice.as_secs()),
        };
        due.insert(session, at, socket.clone());
    }

    /// The client presents a fresh token. It must be of the same user.
    pub(crate) async fn refresh(&self, socket: &Socket, token: &str) -> Result<Value, Refused> {
        let session = session::of(socket).ok_or_else(|| self.refuse(&TokenError::Missing))?;
        let fresh = self.verify(token).await;
        let earlier = session.user();
        // The room, the limits and the presence of the socket are those of its user.
        let fresh = fresh.and_then(|user| match user.id == earlier.id {
            true => Ok(Arc::new(user)),
            false => Err(TokenError::OtherUser),
        });
        let fresh = fresh.map_err(|error| self.refuse(&error))?;
        session.set_user(Arc::clone(&fresh));
        // Only rooms that the earlier token named are left: the client may have joined
        // others itself.
        let left = earlier
            .rooms
            .iter()
            .filter(|room| !fresh.rooms.contains(room));
        let left: Vec<_> = left.cloned().collect();
        socket.leave(left.as_slice());
        if let Err(error) = socket.join(fresh.rooms.as_slice()) {
            tracing::warn!(user = fresh.id, %error, "a client cannot join the rooms of its token");
        }
        self.schedule(socket, &session, false);
        Ok(json!({ "expires": fresh.expires }))
    }

    async fn watch_sessions(&self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = (self.now)();
            while let Some(socket) = self.next_due(now) {
                self.act(&socket, now);
            }
            let mut revocations = self.revocations.lock();
            revocations.prune(now);
            let count = i64::try_from(revocations.len()).unwrap_or(i64::MAX);
            self.metrics.revocations.set(count);
        }
    }

    fn next_due(&self, now: u64) -> Option<Socket> {
        self.due.lock().pop(now)
    }

    /// The time of a notice or of an end has come.
    fn act(&self, socket: &Socket, now: u64) {
        let Some(session) = session::of(socket) else {
            return;
        };
        // It has disconnected meanwhile, or presented a fresh token, which has its own time.
        if !socket.is_connected() || self.due.lock().has(&session) {
            return;
        }
        let expires = session.user().expires;
        if expires.saturating_add(self.parts().settings.leeway.as_secs()) <= now {
            self.metrics.expired.inc();
            self.end(socket, "token:expired");
        } else {
            let seconds = expires.saturating_sub(now);
            // Fails only if the client has disconnected.
            drop(socket.emit("token:expiring", json!({ "in": seconds })));
            self.schedule(socket, &session, true);
        }
    }

    /// Sends the client the reason, then disconnects it from the namespace.
    /// The connection stays, because other namespaces of it may need no token.
    fn end(&self, socket: &Socket, event: &str) {
        // Fails only if the client has disconnected.
        drop(socket.emit(event, ()));
        socket.disconnect(false);
    }
}

impl Reloadable for Arc<Auth> {
    fn keys(&self) -> &'static [&'static str] {
        &["jwt"]
    }

    /// Files of keys are read again even if the section is the same. Connected clients
    /// stay until their tokens expire, at the times that were in force when they
    /// presented them.
    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        Box::pin(async move {
            let parts = self.prepared(&config.settings.jwt).await;
            let parts = parts.map_err(|error| error.to_string())?;
            let auth = Self::clone(self);
            let swap: Swap = Box::new(move || {
                let earlier = std::mem::replace(&mut *auth.parts.write(), Arc::clone(&parts));
                if let Some(jwks) = &parts.jwks
                    && !earlier
                        .jwks
                        .as_ref()
                        .is_some_and(|earlier| jwks.is(earlier))
                {
                    jwks.watch();
                }
            });
            Ok(swap)
        })
    }
}

impl Auth {
    /// Reads everything that a section names. A set at the same URL is kept: it is reloaded by
    /// itself, and an unreachable issuer must not stop the reload of other keys.
    async fn prepared(&self, settings: &Settings) -> Result<Arc<Parts>, KeyError> {
        let earlier = self.parts();
        let jwks = match (&settings.jwks, &earlier.jwks) {
            (None, _) => None,
            (Some(same), Some(jwks)) if same.url.is_some() && jwks.settings() == same => {
                Some(jwks.clone())
            }
            (Some(changed), _) => {
                Some(Jwks::read(changed.clone(), self.metrics.loads.clone()).await?)
            }
        };
        Ok(Arc::new(Parts::new(settings.clone(), jwks)?))
    }
}

/// Adds the events of `auth` for clients and for other nodes to a namespace.
pub(crate) fn with_sessions(namespace: Namespace, auth: &Arc<Auth>) -> Namespace {
    let refreshing = Arc::clone(auth);
    let revoking = Arc::clone(auth);
    let asked = Arc::clone(auth);
    namespace
        .on("token:refresh", move |socket: Socket, token: String| {
            let auth = Arc::clone(&refreshing);
            async move { auth.refresh(&socket, &token).await }
        })
        .on_server_side(REVOKE, move |revocations: Vec<Revocation>| {
            let auth = Arc::clone(&revoking);
            async move { drop(auth.take(&revocations)) }
        })
        .on_server_side(REVOCATIONS, move || {
            let auth = Arc::clone(&asked);
            async move { auth.revocations.lock().all() }
        })
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, get_current_timestamp};
    use roomcast::MemoryBus;

    use super::*;
    use crate::gateway::auth::{KeySettings, keys::tests as keys};

    async fn auth() -> Arc<Auth> {
        let file = env::temp_dir().join(format!("roomcast-secret-{}", std::process::id()));
        std::fs::write(&file, keys::SECRET).unwrap();
        let key = KeySettings {
            id: None,
            algorithm: Algorithm::HS256,
            secret_file: Some(file),
            secret_env: None,
            public_key_file: None,
        };
        let settings = Settings {
            keys: vec![key],
            ..Settings::default()
        };
        Auth::new(settings, vec!["/".to_owned()], true)
            .await
            .unwrap()
    }

    /// A node with its own memory of revocations.
    async fn node(bus: &MemoryBus) -> (Arc<Auth>, Server) {
        let auth = auth().await;
        let namespace = with_sessions(Namespace::new("/"), &auth);
        let builder = Server::builder().namespace(namespace).bus(bus.clone());
        let server = builder.build().await.unwrap();
        auth.start(&server);
        (auth, server)
    }

    fn token(user: &str, id: &str) -> String {
        let now = get_current_timestamp();
        let claims = json!({ "sub": user, "jti": id, "iat": now - 5, "exp": now + 60 });
        let key = EncodingKey::from_secret(keys::SECRET).unwrap();
        keys::token(Algorithm::HS256, None, &key, &claims)
    }

    /// Waits, within the test's patience, until a node refuses the token.
    async fn refused(auth: &Auth, token: &str) {
        let refused = async {
            while auth.verify(token).await != Err(TokenError::Revoked) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), refused)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_revocation_holds_on_all_nodes_and_on_those_that_start_later() {
        let bus = MemoryBus::new();
        let (ada, server) = node(&bus).await;
        let (bob, _other) = node(&bus).await;
        let (one, two, three) = (token("ada", "1"), token("ada", "2"), token("bob", "3"));
        for auth in [&ada, &bob] {
            assert!(auth.verify(&one).await.is_ok());
        }
        ada.revoke_token(&server, "1", None).await.unwrap();
        refused(&ada, &one).await;
        refused(&bob, &one).await;
        assert!(bob.verify(&two).await.is_ok(), "another token of the user");
        ada.revoke_user(&server, "ada").await.unwrap();
        refused(&bob, &two).await;
        assert!(bob.verify(&three).await.is_ok(), "another user");
        let (late, _late) = node(&bus).await;
        refused(&late, &one).await;
        refused(&late, &two).await;
        assert!(late.verify(&three).await.is_ok());
    }

    #[tokio::test]
    async fn without_a_key_there_is_nothing_to_verify_with() {
        let built = Auth::new(Settings::default(), vec!["/".to_owned()], true).await;
        assert!(matches!(built, Err(KeyError::None)));
    }
}
