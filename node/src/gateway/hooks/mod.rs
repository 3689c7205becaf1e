//! Hooks: an application in any language decides about connects, answers events and hears of
//! disconnects, by HTTP.
//!
//! ```text
//! client ─ event ─► fallback handler ─► turn of the socket ─► Backend ─ POST ─► application
//!    ▲                                                          │
//!    └── ack, joins, emits … ◄── operations: check, carry out ◄─┘ list of operations
//! ```
//!
//! Everything that happens for one socket takes turns, in the order in which it arrived: the
//! operations of its connect, its events, its disconnect. Sockets do not wait for each other. A
//! waiting event is a future of its connection like that of any handler, so the connection goes on
//! reading, writing and answering pings.

mod backend;
mod breaker;
mod disconnects;
mod metrics;
mod request;
mod settings;
mod signature;
mod store;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use roomcast::{
    Ack, DisconnectReason, Event, HandlerError, HandlerResult, Handshake, Limits, Namespace,
    RedisConfig, Refused, Server, Socket, SocketId, emitter::entropy,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::timeout,
};

pub(crate) use settings::{Settings, TEMPLATE};

use self::{
    backend::{Backend, Failure},
    disconnects::{Disconnect, Disconnects},
    metrics::Metrics,
    request::Origin,
    settings::{Occasion, Pattern},
    store::{Record, Store},
};
use super::{
    access::AccessTable,
    operations::{self, Asks},
    session::SocketData,
};

/// How long a node that stops waits until backends have confirmed the disconnects.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason of a disconnect that the death of the socket's node has caused.
const NODE_LOST: &str = "node lost";

/// Disconnects of dead nodes are taken over while fewer than this number wait. The others stay in Redis.
const MAX_ADOPTED: usize = 1000;

/// All hooks of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hooks(Arc<Inner>);

struct Inner {
    hooks: Vec<Hook>,
    limits: Limits,
    /// The beginning of all ids of requests, and the number of the next.
    prefix: String,
    next: AtomicU64,
    node: OnceLock<String>,
    metrics: Metrics,
    /// Where disconnects outlive the node.
    store: Option<Arc<Store>>,
}

struct Hook {
    backend: Arc<Backend>,
    disconnects: Arc<Disconnects>,
    namespaces: Vec<String>,
    on: Vec<Occasion>,
    events: Vec<Pattern>,
}

impl Hook {
    fn is_for(&self, namespace: &str, occasion: Occasion) -> bool {
        self.on.contains(&occasion) && self.namespaces.iter().any(|name| name == namespace)
    }

    /// How well it fits the event.
    fn fit(&self, event: &str) -> Option<usize> {
        self.events.iter().filter_map(|p| p.fit(event)).max()
    }
}

impl Hooks {
    /// Builds the hooks of the file. The error names the hook, or the namespace that lacks one.
    pub(crate) fn new(
        settings: &BTreeMap<String, Settings>,
        limits: Limits,
        access: &AccessTable,
        redis: Option<RedisConfig>,
    ) -> Result<Self, String> {
        let metrics = Metrics::new().map_err(|error| error.to_string())?;
        let hear = |settings: &Settings| settings.on.contains(&Occasion::Disconnect);
        let redis = redis.filter(|_| settings.values().any(hear));
        let store = redis.map(|redis| Arc::new(Store::new(redis, &metrics)));
        let mut hooks = Vec::new();
        for (name, settings) in settings {
            let backend = Backend::new(name, settings, &metrics)
                .map_err(|problem| format!("hooks.{name}: {problem}"))?;
            let backend = Arc::new(backend);
            hooks.push(Hook {
                disconnects: Arc::new(Disconnects::new(
                    Arc::clone(&backend),
                    &metrics,
                    store.clone(),
                )),
                backend,
                namespaces: settings.namespaces.clone(),
                on: settings.on.clone(),
                events: settings.events.clone(),
            });
        }
        check_unique(&hooks)?;
        check_access(&hooks, access)?;
        Ok(Self(Arc::new(Inner {
            hooks,
            limits,
            prefix: entropy::name::<12>(),
            next: AtomicU64::new(0),
            node: OnceLock::new(),
            metrics,
            store,
        })))
    }

    /// Must be called when the server is built, before it accepts clients.
    pub(crate) fn started(&self, server: &Server) -> Result<(), prometheus::Error> {
        let node = server.node().to_string();
        if let Some(store) = &self.0.store {
            let (room, adopting, server) = (self.clone(), self.clone(), server.clone());
            let may_claim = move || {
                let mut hooks = room.0.hooks.iter();
                hooks.all(|hook| hook.disconnects.pending() < MAX_ADOPTED)
            };
            store.start(node.clone(), may_claim, move |record| {
                adopting.adopt(record, &server);
            });
        }
        drop(self.0.node.set(node));
        self.0.metrics.register(server.registry())
    }

    /// Sends the events of a namespace that have no handler of their own to its hooks, if there are any.
    pub(crate) fn with_events(&self, namespace: Namespace, name: &str) -> Namespace {
        if self.one(name, Occasion::Event).is_none() {
            return namespace;
        }
        let hooks = self.clone();
        namespace.fallback(move |socket: Socket, event: Event, ack: Ack| {
            let hooks = hooks.clone();
            async move { hooks.event(&socket, &event, ack).await }
        })
    }

    /// Whether [`disconnected`](Self::disconnected) must be called for the sockets of the namespace.
    pub(crate) fn hears_disconnects(&self, namespace: &str) -> bool {
        self.one(namespace, Occasion::Disconnect).is_some()
    }

    /// Whether [`connected`](Self::connected) must be called for the sockets of the namespace, because
    /// Redis knows them before they disconnect.
    pub(crate) fn stores_disconnects(&self, namespace: &str) -> bool {
        self.0.store.is_some() && self.hears_disconnects(namespace)
    }

    /// Asks the application whether a client may connect. Its operations, except for the user and the
    /// data, are carried out when the client has connected.
    pub(crate) async fn connect(
        &self,
        namespace: &str,
        handshake: &Handshake,
        id: &SocketId,
        data: SocketData,
    ) -> Result<SocketData, HandlerError> {
        let Some(hook) = self.one(namespace, Occasion::Connect) else {
            return Ok(data);
        };
        let backend = &hook.backend;
        let fail = |failure: &Failure| HandlerError::from(failure.refused());
        let request = self.next_id();
        let origin = self.origin(backend, &request, namespace);
        let body = request::connect(origin, &backend.selection, id.as_str(), handshake, &data)
            .map_err(|error| noted(backend, Failure::Request(error.into())))
            .map_err(|failure| fail(&failure))?;
        let forwarded = backend.selection.forward(handshake);
        let called = backend.call(body, forwarded).await;
        let list = called.map_err(|failure| fail(&failure))?;
        let shown = data.session.as_ref().and(data.user.as_deref());
        let checked = operations::check(list, Asks::Connect, &self.0.limits)
            .and_then(|checked| {
                shown.map_or(Ok(()), |user| checked.keeps_user(user))?;
                Ok(checked)
            })
            .map_err(|problem| fail(&noted(backend, problem.into())))?;
        let mut data = checked.admit(data)?;
        data.keep(checked);
        Ok(data)
    }

    /// Carries out the operations with which the application has let the client in, and stores what
    /// another node has to send if this one dies.
    pub(crate) async fn connected(&self, socket: &Socket) {
        let namespace = socket.namespace_name();
        let checked = socket.data::<SocketData>().and_then(|data| data.take());
        if checked.is_none() && !self.stores_disconnects(namespace) {
            return;
        }
        let _turn = turn(socket).await;
        let hook = self.one(namespace, Occasion::Connect);
        if let (Some(checked), Some(hook)) = (checked, hook) {
            let report = checked
                .carry_out(&socket.namespace(), Some(socket), &mut None)
                .await;
            note(&hook.backend, &report);
        }
        self.keep(socket);
    }

    /// Stores the disconnects that the death of this node would cause, as the socket is now.
    fn keep(&self, socket: &Socket) {
        let Some(store) = &self.0.store else {
            return;
        };
        for hook in self.all(socket.namespace_name(), Occasion::Disconnect) {
            if let Some(disconnect) = self.disconnect(hook, socket, NODE_LOST) {
                store.put(&disconnect.record(&hook.backend.name));
            }
        }
    }

    async fn event(&self, socket: &Socket, event: &Event, ack: Ack) -> HandlerResult {
        let hooks = self.all(socket.namespace_name(), Occasion::Event);
        let fitting = hooks.filter_map(|hook| Some((hook.fit(event.name())?, hook)));
        let Some((_, hook)) = fitting.max_by_key(|(fit, _)| *fit) else {
            return Err(Refused::new("no hook handles this event").into());
        };
        let backend = &hook.backend;
        let _turn = turn(socket).await;
        let request = self.next_id();
        let origin = self.origin(backend, &request, socket.namespace_name());
        let wants_ack = ack.is_wanted();
        let body = request::event(origin, &backend.selection, socket, event, wants_ack)
            .map_err(|error| noted(backend, Failure::Request(error)).refused())?;
        let forwarded = backend.selection.forward(socket.handshake());
        let called = backend.call(body, forwarded).await;
        let list = called.map_err(|failure| failure.refused())?;
        let checked = operations::check(list, Asks::Event, &self.0.limits)
            .map_err(|problem| noted(backend, problem.into()).refused())?;
        let mut ack = Some(ack);
        let is_other = checked.changes_asker();
        let report = checked
            .carry_out(&socket.namespace(), Some(socket), &mut ack)
            .await;
        if is_other && self.stores_disconnects(socket.namespace_name()) {
            self.keep(socket);
        }
        match note(backend, &report) {
            // The client has its acknowledgement if the list had sent it before.
            Some(failure) if ack.is_some() => Err(failure.refused().into()),
            _ => Ok(()),
        }
    }

    /// Sends the disconnect to the hooks that name it.
    pub(crate) async fn disconnected(&self, socket: &Socket, reason: DisconnectReason) {
        let _turn = turn(socket).await;
        for hook in self.all(socket.namespace_name(), Occasion::Disconnect) {
            let Some(disconnect) = self.disconnect(hook, socket, &reason.to_string()) else {
                continue;
            };
            if let Some(store) = &self.0.store {
                store.put(&disconnect.record(&hook.backend.name));
            }
            hook.disconnects.push(disconnect);
        }
    }

    fn disconnect(&self, hook: &Hook, socket: &Socket, reason: &str) -> Option<Disconnect> {
        let (backend, namespace) = (&hook.backend, socket.namespace_name());
        // The same on every node that sends it.
        let id = format!("{}-{}", socket.id(), backend.name);
        let origin = self.origin(backend, &id, namespace);
        match request::disconnect(origin, &backend.selection, socket, reason.to_owned()) {
            Ok(body) => Some(Disconnect {
                namespace: namespace.to_owned(),
                body,
                forwarded: backend.selection.forward(socket.handshake()),
                server: socket.server(),
                limits: self.0.limits,
                id,
            }),
            Err(error) => {
                noted(backend, Failure::Request(error.into()));
                None
            }
        }
    }

    /// Delivers a disconnect of a node that has died.
    fn adopt(&self, record: Record, server: &Server) {
        let mut hooks = self.0.hooks.iter();
        match hooks.find(|hook| *hook.backend.name == *record.hook) {
            Some(hook) => hook.disconnects.push(Disconnect {
                forwarded: record.forwarded(),
                namespace: record.namespace.clone(),
                id: record.id.clone(),
                body: record.into_body(),
                server: Some(server.clone()),
                limits: self.0.limits,
            }),
            None => {
                let (hook, id) = (&record.hook, &record.id);
                let labels = [hook.as_str()];
                let lost = &self.0.metrics.disconnects_lost;
                lost.with_label_values(&labels).inc();
                tracing::error!(
                    hook,
                    id,
                    "a disconnect was not delivered: this node has no hook of its name"
                );
                if let Some(store) = &self.0.store {
                    store.remove(id);
                }
            }
        }
    }

    /// Waits for the backends to confirm disconnects before the process ends, but not for long: one
    /// that fails must not turn a graceful stop into another.
    pub(crate) async fn flush(&self) {
        let all = async {
            for hook in &self.0.hooks {
                hook.disconnects.flush().await;
            }
        };
        if timeout(FLUSH_TIMEOUT, all).await.is_err() {
            for hook in &self.0.hooks {
                hook.disconnects.abandon();
            }
        }
        if let Some(store) = &self.0.store {
            store.finish().await;
        }
    }

    fn all(&self, namespace: &str, occasion: Occasion) -> impl Iterator<Item = &Hook> {
        let hooks = self.0.hooks.iter();
        hooks.filter(move |hook| hook.is_for(namespace, occasion))
    }

    fn one(&self, namespace: &str, occasion: Occasion) -> Option<&Hook> {
        self.all(namespace, occasion).next()
    }

    fn next_id(&self) -> String {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.0.prefix)
    }

    fn origin<'a>(&'a self, backend: &'a Backend, id: &'a str, namespace: &'a str) -> Origin<'a> {
        Origin {
            hook: &backend.name,
            id,
            node: self.0.node.get().map_or("", String::as_str),
            namespace,
        }
    }
}

fn noted(backend: &Backend, failure: Failure) -> Failure {
    backend.note(&failure);
    failure
}

/// Counts and logs what a list of operations has failed at.
fn note(backend: &Backend, report: &operations::Report) -> Option<Failure> {
    if let Some(error) = report.missed_nodes() {
        let hook = &*backend.name;
        tracing::warn!(hook, %error, "other nodes may have missed operations of a hook");
    }
    let (index, error) = report.failure()?;
    let error = error.to_string();
    Some(noted(backend, Failure::Operation { index, error }))
}

/// Each namespace whose access is a hook has one that decides.
fn check_access(hooks: &[Hook], access: &AccessTable) -> Result<(), String> {
    for namespace in access.keys().filter(|name| access[*name].asks_hook()) {
        if !hooks
            .iter()
            .any(|hook| hook.is_for(namespace, Occasion::Connect))
        {
            return Err(format!(
                "a hook decides who may connect to {namespace}, but no section [hooks.NAME] has {namespace} \
                 in `namespaces` and \"connect\" in `on`"
            ));
        }
    }
    Ok(())
}

/// Two hooks of one namespace must not claim the same.
fn check_unique(hooks: &[Hook]) -> Result<(), String> {
    for (index, one) in hooks.iter().enumerate() {
        for other in &hooks[..index] {
            let is_shared = |namespace: &&String| other.namespaces.contains(*namespace);
            let Some(namespace) = one.namespaces.iter().find(is_shared) else {
                continue;
            };
            let both = |occasion| one.on.contains(&occasion) && other.on.contains(&occasion);
            let (a, b) = (&other.backend.name, &one.backend.name);
            if both(Occasion::Connect) {
                return Err(format!(
                    "hooks.{a} and hooks.{b} both decide about connects to {namespace}"
                ));
            }
            let is_same = one
                .events
                .iter()
                .any(|pattern| other.events.contains(pattern));
            if both(Occasion::Event) && is_same {
                return Err(format!(
                    "hooks.{a} and hooks.{b} name the same `events` of {namespace}"
                ));
            }
        }
    }
    Ok(())
}

/// The turns of one socket.
#[derive(Default)]
struct Turns(Arc<Mutex<()>>);

/// Waits until everything that the socket did before is done. The order is that of the first polls,
/// which is the order of the packets.
async fn turn(socket: &Socket) -> OwnedMutexGuard<()> {
    let turns = match socket.attached::<Turns>() {
        Some(turns) => turns,
        None => {
            // Only the connection's own task polls its handlers, so nothing comes in between.
            socket.attach(Turns::default());
            socket.attached().unwrap_or_default()
        }
    };
    Arc::clone(&turns.0).lock_owned().await
}
