//! Hooks: an application in any language authorizes clients, answers events and is notified of
//! disconnects, over HTTP.
//!
//! ```text
//! client ─ event ─► fallback handler ─► turn of the socket ─► Backend ─ POST ─► application
//!    ▲                                                          │
//!    └── ack, joins, emits … ◄── operations: check, carry out ◄─┘ list of operations
//! ```
//!
//! All requests for one socket are sent in turn, in the order of their arrival: the
//! operations of its connect, its events, its disconnect. Sockets do not wait for each other. A
//! waiting event is a future of its connection like that of any handler, so the connection keeps
//! reading, writing and answering pings.

mod backend;
mod batch;
mod breaker;
mod metrics;
mod notices;
mod request;
mod rooms;
mod settings;
mod signature;
mod store;
mod table;
mod turns;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use roomcast::{
    Ack, DisconnectReason, Event, HandlerError, HandlerResult, Limits, Namespace, RedisConfig,
    Refused, Server, Socket, SocketId, emitter::entropy,
};
use tokio::time::timeout;
use tracing::debug;

pub(crate) use self::{
    backend::{Backend, Failure, Subject},
    request::Connecting,
    settings::{Settings, TEMPLATE, Target, default_concurrency, default_timeout, fits},
};

use self::{
    backend::read_list,
    metrics::Metrics,
    notices::Notice,
    request::Origin,
    rooms::Rooms,
    settings::Occasion,
    store::{Record, Store},
    table::{Hook, Table, check_access},
    turns::turn,
};
use super::{
    access::AccessTable,
    config::Config,
    log_client::{Client, FollowedClients, TARGET},
    operations::{self, Asks, Operation},
    reload::{Preparing, Reloadable, prepared},
    session::SocketData,
    traces::{self, Span},
};

/// How long a node that stops waits until backends have confirmed the disconnects.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason of a disconnect that the death of the socket's node has caused.
const NODE_LOST: &str = "node lost";

/// Notices of dead nodes are taken over while fewer than this number wait. The others
/// stay in Redis.
const MAX_ADOPTED: usize = 1000;

/// All hooks of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hooks(Arc<Inner>);

struct Inner {
    /// Replaced as a whole by a reload.
    table: RwLock<Arc<Table>>,
    /// Whether there were any at the start. Without one, namespaces have no handlers for them.
    has_handlers: bool,
    access: AccessTable,
    /// Replaced hooks may have disconnects that their backends have not confirmed.
    replaced: parking_lot::Mutex<Vec<Arc<Hook>>>,
    limits: Limits,
    /// The beginning of all ids of requests, and the number of the next.
    // Random, so that ids of a restarted node differ from those before.
    prefix: String,
    next: AtomicU64,
    server: OnceLock<Server>,
    rooms: Rooms,
    metrics: Metrics,
    /// The clients whose hooks are logged.
    followed: FollowedClients,
    /// Where disconnects outlive the node.
    store: Option<Arc<Store>>,
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
        let store = redis.map(|redis| Arc::new(Store::new(redis, &metrics)));
        let table = Table::new(settings, &metrics, store.as_ref(), &[])?;
        let table = Arc::new(table);
        check_access(&table, access)?;
        Ok(Self(Arc::new(Inner {
            has_handlers: !table.0.is_empty(),
            table: RwLock::new(table),
            access: access.clone(),
            replaced: parking_lot::Mutex::default(),
            limits,
            prefix: entropy::name::<12>(),
            next: AtomicU64::new(0),
            server: OnceLock::new(),
            rooms: Rooms::default(),
            metrics,
            followed: FollowedClients::default(),
            store,
        })))
    }

    /// Builds a backend that another part of the gateway calls, with the limits and the
    /// metrics of a hook.
    pub(crate) fn backend(&self, name: &str, settings: &Settings) -> Result<Backend, String> {
        let secret = settings.secret()?;
        Backend::new(name, settings, secret.as_deref(), &self.0.metrics)
    }

    /// Must be called when the server is built, before it accepts clients.
    pub(crate) fn started(&self, server: &Server) -> Result<(), prometheus::Error> {
        drop(self.0.server.set(server.clone()));
        self.start_parts(&self.table());
        self.0.metrics.register(server.registry())
    }

    /// Starts the tasks that the hooks need in addition to requests. Without such hooks, nothing
    /// costs anything.
    fn start_parts(&self, table: &Table) {
        let Some(server) = self.0.server.get() else {
            return;
        };
        let has = |occasion| table.0.iter().any(|hook| hook.is_on(occasion));
        if let Some(store) = &self.0.store
            && (has(Occasion::Disconnect) || has(Occasion::Rooms))
        {
            store.start(server.node().to_string(), self.clone());
        }
        self.watch_rooms(server, table);
    }

    /// Sends the events of a namespace that have no handler to its hooks. A namespace
    /// without hooks may get some by a reload.
    pub(crate) fn with_events(&self, namespace: Namespace) -> Namespace {
        if !self.0.has_handlers {
            return namespace;
        }
        let hooks = self.clone();
        namespace.fallback(move |socket: Socket, event: Event, ack: Ack| {
            let hooks = hooks.clone();
            async move {
                let (namespace, name) = (socket.namespace_name(), event.name());
                let begun = traces::begin(&Span::Event {
                    namespace,
                    event: name,
                });
                let called = begun.during(hooks.event(&socket, &event, ack));
                if !hooks.0.followed.is_followed(&socket) {
                    return called.await;
                }
                let client = Client(&socket);
                debug!(target: TARGET, ?client, event = name, "calls the hook");
                let called = called.await;
                let error = called.as_ref().err();
                debug!(target: TARGET, ?client, event = name, ?error, "the hook is done");
                called
            }
        })
    }

    /// The clients whose hooks are logged.
    pub(crate) fn followed(&self) -> &FollowedClients {
        &self.0.followed
    }

    /// Whether [`connected`](Self::connected) and [`disconnected`](Self::disconnected)
    /// must be called.
    pub(crate) fn has_handlers(&self) -> bool {
        self.0.has_handlers
    }

    /// Whether Redis knows the sockets of the namespace before they disconnect.
    fn stores_disconnects(&self, namespace: &str) -> bool {
        self.0.store.is_some() && self.table().one(namespace, Occasion::Disconnect).is_some()
    }

    /// Asks the application whether a client may connect. Its operations, except for the
    /// user and the data, are carried out when the client has connected.
    pub(crate) async fn connect(
        &self,
        namespace: &str,
        client: Connecting<'_>,
        id: &SocketId,
        data: SocketData,
    ) -> Result<SocketData, HandlerError> {
        let table = self.table();
        let Some(hook) = table.one(namespace, Occasion::Connect) else {
            return Ok(data);
        };
        let backend = &hook.backend;
        // A client is refused if the application does not respond.
        let fail = |failure: &Failure| HandlerError::from(failure.refused());
        let request = self.next_id();
        let subject = Subject::request(&request);
        let origin = self.origin(backend, &request, namespace);
        let handshake = client.handshake;
        let body = request::connect(origin, &backend.selection, id.as_str(), client, &data)
            .map_err(|error| noted(backend, subject, Failure::Request(error.into())))
            .map_err(|failure| fail(&failure))?;
        let forwarded = backend.selection.forward(handshake);
        let span = Span::Connect { namespace };
        let called = backend.call(subject, body, forwarded, read_list);
        let called = traces::begin(&span).during(called).await;
        let list = called.map_err(|failure| fail(&failure))?;
        let shown = data.session.as_ref().and(data.user.as_deref());
        // The user of a verified token is not the application's to change.
        let checked = operations::check(list, Asks::Connect, &self.0.limits)
            .and_then(|checked| {
                shown.map_or(Ok(()), |user| checked.keeps_user(user))?;
                Ok(checked)
            })
            .map_err(|problem| fail(&noted(backend, subject, problem.into())))?;
        let mut data = checked.admit(data)?;
        // The socket does not exist yet, so joins and emits wait until it has
        // connected.
        data.keep(checked);
        Ok(data)
    }

    /// Carries out the operations with which the application accepted the client, and stores the
    /// disconnect that another node has to send if this one dies.
    pub(crate) async fn connected(&self, socket: &Socket) {
        let namespace = socket.namespace_name();
        let checked = socket.data::<SocketData>().and_then(|data| data.take());
        if checked.is_none() && !self.stores_disconnects(namespace) {
            return;
        }
        // The first turn of the socket, so that its events come after the operations of
        // its connect.
        let _turn = turn(socket).await;
        let table = self.table();
        let hook = table.one(namespace, Occasion::Connect);
        if let (Some(checked), Some(hook)) = (checked, hook) {
            let report = checked
                .carry_out(&socket.namespace(), Some(socket), &mut None)
                .await;
            note(&hook.backend, Subject::default(), &report);
        }
        // After the operations, so that the record has the rooms that they joined.
        self.keep(socket);
    }

    /// Stores the disconnects that the death of this node would cause, as the socket is now.
    fn keep(&self, socket: &Socket) {
        let Some(store) = &self.0.store else {
            return;
        };
        let table = self.table();
        for hook in table.all(socket.namespace_name(), Occasion::Disconnect) {
            if let Some(disconnect) = self.disconnect(hook, socket, NODE_LOST) {
                store.put(&disconnect.record(&hook.backend.name));
            }
        }
    }

    /// Calls the hook whose pattern fits the event best, and carries out its response.
    async fn event(&self, socket: &Socket, event: &Event, ack: Ack) -> HandlerResult {
        let table = self.table();
        let hooks = table.all(socket.namespace_name(), Occasion::Event);
        // One hook gets the event, because only one can acknowledge it.
        let fitting = hooks.filter_map(|hook| Some((hook.fit(event.name())?, hook)));
        let Some((_, hook)) = fitting.max_by_key(|(fit, _)| *fit) else {
            return Err(Refused::new("no hook handles this event").into());
        };
        let backend = &hook.backend;
        if let Some(batches) = &hook.batches
            && batches.takes(&ack)
        {
            return Ok(batches.event(self, socket, event, ack).await?);
        }
        let _turn = turn(socket).await;
        let request = self.next_id();
        let subject = Subject {
            request: Some(&request),
            event: Some(event.name()),
        };
        let origin = self.origin(backend, &request, socket.namespace_name());
        let wants_ack = ack.is_wanted();
        let body = request::event(origin, &backend.selection, socket, event, wants_ack)
            .map_err(|error| noted(backend, subject, Failure::Request(error)).refused())?;
        let forwarded = backend.selection.forward(socket.handshake());
        let called = backend.call(subject, body, forwarded, read_list).await;
        let list = called.map_err(|failure| failure.refused())?;
        let answered = self
            .answer(backend, subject, socket, list, &mut Some(ack))
            .await;
        Ok(answered?)
    }

    /// Carries out the response to an event. Fails only if the client has no acknowledgement
    /// yet, because it gets the failure as one.
    async fn answer(
        &self,
        backend: &Backend,
        subject: Subject<'_>,
        socket: &Socket,
        list: Vec<Operation>,
        ack: &mut Option<Ack>,
    ) -> Result<(), Refused> {
        let checked = operations::check(list, Asks::Event, &self.0.limits)
            .map_err(|problem| noted(backend, subject, problem.into()).refused())?;
        let is_other = checked.changes_asker();
        let report = checked
            .carry_out(&socket.namespace(), Some(socket), ack)
            .await;
        // The record has the rooms and the data that the application sees if this node
        // dies.
        if is_other && self.stores_disconnects(socket.namespace_name()) {
            self.keep(socket);
        }
        match note(backend, subject, &report) {
            Some(failure) if ack.is_some() => Err(failure.refused()),
            _ => Ok(()),
        }
    }

    /// Sends the disconnect to the hooks that name it.
    pub(crate) async fn disconnected(&self, socket: &Socket, reason: DisconnectReason) {
        // After the events of the socket that are still running.
        let _turn = turn(socket).await;
        let table = self.table();
        for hook in table.all(socket.namespace_name(), Occasion::Disconnect) {
            let Some(disconnect) = self.disconnect(hook, socket, &reason.to_string()) else {
                continue;
            };
            if let Some(store) = &self.0.store {
                store.put(&disconnect.record(&hook.backend.name));
            }
            hook.notices.push(disconnect);
        }
    }

    fn disconnect(&self, hook: &Hook, socket: &Socket, reason: &str) -> Option<Notice> {
        let (backend, namespace) = (&hook.backend, socket.namespace_name());
        // The same on every node that sends it.
        let id = format!("{}-{}", socket.id(), backend.name);
        let origin = self.origin(backend, &id, namespace);
        match request::disconnect(origin, &backend.selection, socket, reason.to_owned()) {
            Ok(body) => Some(Notice {
                namespace: namespace.to_owned(),
                body,
                forwarded: backend.selection.forward(socket.handshake()),
                server: socket.server(),
                limits: self.0.limits,
                asks: Asks::Disconnect,
                id,
            }),
            Err(error) => {
                noted(
                    backend,
                    Subject::request(&id),
                    Failure::Request(error.into()),
                );
                None
            }
        }
    }

    /// Whether there is room for more notices of dead nodes.
    fn may_claim(&self) -> bool {
        let table = self.table();
        let mut hooks = table.0.iter();
        hooks.all(|hook| hook.notices.pending() < MAX_ADOPTED)
    }

    /// Delivers a disconnect of a node that has died, or a change of a room.
    fn adopt(&self, record: Record) {
        let table = self.table();
        let mut hooks = table.0.iter();
        match hooks.find(|hook| *hook.backend.name == *record.hook) {
            Some(hook) => hook.notices.push(Notice {
                forwarded: record.forwarded(),
                namespace: record.namespace.clone(),
                id: record.id.clone(),
                asks: match record.is_room {
                    true => Asks::Nobody,
                    false => Asks::Disconnect,
                },
                body: record.into_body(),
                server: self.0.server.get().cloned(),
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
                    "a disconnect or a change of a room was not delivered: this node has no hook of its name"
                );
                if let Some(store) = &self.0.store {
                    store.remove(id);
                }
            }
        }
    }

    /// Must be called before the connections are closed: they wait for their events.
    pub(crate) fn stopping(&self) {
        for hook in &self.table().0 {
            hook.hurry(self);
        }
    }

    /// Waits for the backends to confirm disconnects before the process ends, but not for long: one
    /// that fails must not turn a graceful stop into another.
    pub(crate) async fn flush(&self) {
        self.leave_rooms().await;
        let mut hooks = self.0.replaced.lock().clone();
        hooks.extend(self.table().0.iter().cloned());
        let all = async {
            for hook in &hooks {
                hook.notices.flush().await;
            }
        };
        if timeout(FLUSH_TIMEOUT, all).await.is_err() {
            for hook in &hooks {
                hook.notices.abandon();
            }
        }
        if let Some(store) = &self.0.store {
            store.finish().await;
        }
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.0.table.read())
    }

    /// Builds the table that replaces the one in force.
    fn replacement(&self, settings: &BTreeMap<String, Settings>) -> Result<Arc<Table>, String> {
        let table = Table::new(
            settings,
            &self.0.metrics,
            self.0.store.as_ref(),
            &self.table().0,
        )?;
        check_access(&table, &self.0.access)?;
        Ok(Arc::new(table))
    }

    /// Activates a table. Hooks that it does not keep send the collected events, and their
    /// notices are delivered to the end.
    fn replace(&self, table: &Arc<Table>) {
        let earlier = std::mem::replace(&mut *self.0.table.write(), Arc::clone(table));
        self.start_parts(table);
        let mut replaced = self.0.replaced.lock();
        // Each reload adds some, so those that are done are dropped here.
        replaced.retain(|hook| hook.notices.pending() > 0);
        for hook in &earlier.0 {
            if !table.0.iter().any(|kept| Arc::ptr_eq(kept, hook)) {
                hook.backend.retire();
                hook.hurry(self);
                replaced.push(Arc::clone(hook));
            }
        }
    }

    /// Numbers make ids of one node unique, and the prefix makes them unique among
    /// nodes.
    fn next_id(&self) -> String {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.0.prefix)
    }

    /// The name of this node.
    fn node(&self) -> &str {
        let server = self.0.server.get();
        server.map_or("", |server| server.node().as_str())
    }

    fn origin<'a>(&'a self, backend: &'a Backend, id: &'a str, namespace: &'a str) -> Origin<'a> {
        Origin {
            hook: &backend.name,
            id,
            node: self.node(),
            namespace,
        }
    }
}

impl Reloadable for Hooks {
    /// The first hooks need a restart.
    fn keys(&self) -> &'static [&'static str] {
        match self.0.has_handlers {
            true => &["hooks"],
            false => &[],
        }
    }

    fn prepare<'a>(&'a self, config: &'a Config) -> Preparing<'a> {
        if !self.0.has_handlers {
            return prepared(Ok(|| {}));
        }
        let hooks = self.clone();
        let table = self.replacement(&config.settings.hooks);
        prepared(table.map(|table| move || hooks.replace(&table)))
    }
}

fn noted(backend: &Backend, subject: Subject<'_>, failure: Failure) -> Failure {
    backend.note(subject, &failure);
    failure
}

/// Counts and logs the failure of a list of operations.
fn note(backend: &Backend, subject: Subject<'_>, report: &operations::Report) -> Option<Failure> {
    if let Some(error) = report.missed_nodes() {
        let hook = &*backend.name;
        tracing::warn!(hook, %error, "other nodes may have missed operations of a hook");
    }
    let (index, error) = report.failure()?;
    let error = error.to_string();
    Some(noted(backend, subject, Failure::Operation { index, error }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::access::Access;

    fn sections(toml: &str) -> BTreeMap<String, Settings> {
        toml::from_str(toml).unwrap()
    }

    #[tokio::test]
    async fn a_reload_keeps_hooks_that_have_not_changed_and_adds_others() {
        let secret = std::env::temp_dir().join(format!("roomcast-hook-{}", std::process::id()));
        std::fs::write(&secret, "a secret of 16 bytes").unwrap();
        let app = format!("[app]\nurl = \"http://a/\"\nsecret_file = {secret:?}\n");
        let more = "[more]\nurl = \"http://b/\"\non = [\"event\"]\nevents = [\"more\"]\n";
        let access = ["/", "/quiet"].map(|name| (name.to_owned(), Access::Open));
        let settings = sections(&format!("{app}{more}"));
        let hooks = Hooks::new(&settings, Limits::default(), &access.into(), None).unwrap();
        let before = hooks.table();
        let changed = sections(&format!("{app}{more}timeout = \"1s\"\n"));
        let after = hooks.replacement(&changed).unwrap();
        let is_kept = |after: &Table| {
            let pairs = before.0.iter().zip(&after.0);
            pairs.map(|(one, other)| Arc::ptr_eq(one, other)).collect()
        };
        let kept: Vec<bool> = is_kept(&after);
        assert_eq!(kept, [true, false]);
        std::fs::write(&secret, "another secret of 16 bytes").unwrap();
        let kept: Vec<bool> = is_kept(&hooks.replacement(&settings).unwrap());
        assert_eq!(kept, [false, true], "the secret is another");
        std::fs::remove_file(&secret).unwrap();
        let added = sections(&format!("{more}namespaces = [\"/\", \"/quiet\"]\n"));
        let added = hooks.replacement(&added).unwrap();
        assert!(added.one("/quiet", Occasion::Event).is_some());
    }
}
