//! A namespace of a running server: its handlers, sockets, rooms and pending acknowledgements.
//!
//! One that a pattern matched exists while it has users, which are clients and operations
//! of the application. Their number changes under the lock of the server's table, so that
//! a namespace is not removed while a client is about to connect to it.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicUsize, Ordering},
};

use prometheus::IntGauge;
use roomcast_adapter::{Adapter, Attachment, BusHandle, Log, LogLimits, MemoryKeys, RoomLimits};
use roomcast_protocol::args::{Args, ArgsError, IntoArgs};

use super::{
    ack::{self, Acks},
    catch_up::Arrived,
    error::Place,
    journal::Journal,
    namespace::Handlers,
    observe::Observers,
    packets::Parser,
    recovery::LiveRecovery,
    server::Inner,
    socket::{LocalSocket, Socket},
};
use crate::{metrics::HasRooms, transport::engine::Engine};

pub(crate) struct LiveNamespace {
    pub(crate) name: Arc<str>,
    pub(crate) handlers: Arc<Handlers>,
    /// The values of the parameters of a dynamic namespace.
    pub(crate) params: Vec<(Box<str>, Box<str>)>,
    pub(crate) adapter: Adapter<LocalSocket>,
    pub(crate) acks: Acks,
    pub(crate) parser: Parser,
    pub(crate) engine: Arc<Engine>,
    /// Those of the server.
    pub(super) observers: Arc<Observers>,
    /// The namespace on the bus, if the server has one. Dropping it detaches the namespace.
    pub(super) bus: Option<Arc<dyn BusHandle>>,
    /// The log of its rooms, if it keeps a history and the bus has one.
    pub(super) log: Option<Arc<dyn Log>>,
    /// The idempotency keys of a server without a bus.
    pub(super) keys: MemoryKeys,
    /// The ids that have arrived.
    pub(super) arrived: Arrived,
    /// The journal of its broadcasts, if it keeps one.
    pub(super) journal: Option<Arc<Journal>>,
    /// The sessions of its clients, if they can be recovered.
    pub(super) recovery: Option<LiveRecovery>,
    /// The number of its sockets. Kept here, since looking up a labelled series takes a lock.
    pub(crate) sockets: IntGauge,
    /// The number of those whose connection is plain. While there is none, frames keep no event.
    pub(super) plain_sockets: AtomicUsize,
    /// The label of its metrics.
    label: Box<str>,
    /// Refers to itself, for handlers that it starts.
    pub(super) me: Weak<Self>,
    /// Weak, because connections and handles keep the server alive.
    pub(crate) server: Weak<Inner>,
    /// Clients that are connected or connecting. Changes under the lock of the server's table, so
    /// that a dynamic namespace is not removed under a client that is about to connect.
    pub(super) users: AtomicUsize,
    pub(super) is_dynamic: bool,
}

impl LiveNamespace {
    /// Creates the namespace and attaches it to the bus. `params` are those of a dynamic namespace.
    ///
    /// The bus gets a weak reference before the namespace exists. A message that arrives until then
    /// is dropped: there is no socket yet that could receive it.
    pub(super) fn new(
        server: &Arc<Inner>,
        name: &str,
        handlers: Arc<Handlers>,
        params: Option<Vec<(Box<str>, Box<str>)>>,
    ) -> Arc<Self> {
        let (engine, cluster) = (&server.engine, &server.cluster);
        let limits = &engine.config.limits;
        let room_limits = RoomLimits {
            rooms_per_socket: limits.rooms_per_socket,
            name_bytes: limits.room_name_bytes,
        };
        engine.metrics.namespaces.inc();
        let is_dynamic = params.is_some();
        Arc::new_cyclic(|me: &Weak<Self>| {
            let label = engine.metrics.label_of(name, me.clone());
            let listener: Weak<Self> = Weak::clone(me);
            let bus = cluster.bus.as_ref().map(|bus| {
                bus.attach(Attachment {
                    node: &cluster.node,
                    namespace: name,
                    is_dynamic,
                    listener,
                })
            });
            let limits = LogLimits {
                history: handlers.history,
                journal: handlers.journal,
            };
            let is_logged = limits != LogLimits::default();
            let log = is_logged.then(|| match &bus {
                Some(bus) => bus.log(limits),
                None => {
                    let listener: Weak<Self> = Weak::clone(me);
                    Some(cluster.logs.open(name, limits, listener))
                }
            });
            let log = log.flatten();
            let journal = log.clone().filter(|_| limits.journal.is_some());
            // The journal finds its beginning in a task, because nothing here may wait.
            let journal = journal.map(|log| {
                let journal = Arc::new(Journal::new(log, handlers.recovery.is_some()));
                let recovery = handlers.recovery.as_ref();
                let at_least_once = recovery.is_some_and(|recovery| recovery.at_least_once);
                let begin = Arc::clone(&journal).begin(at_least_once);
                drop(server.tasks.runtime().spawn(begin));
                journal
            });
            let recovery = handlers.recovery.filter(|_| journal.is_some());
            let recovery = recovery.and_then(|options| {
                let sessions = match &bus {
                    Some(bus) => bus.sessions()?,
                    None => cluster.sessions.of(name),
                };
                Some(LiveRecovery::start(options, sessions, me.clone(), server))
            });
            // Clients of other nodes, or of this one before a restart, may have answers left.
            let first_ack = match bus.is_some() || recovery.is_some() {
                true => engine.ids.pick(0..=ack::MAX_ID),
                false => 0,
            };
            Self {
                name: name.into(),
                handlers,
                log,
                keys: cluster.keys.clone(),
                is_dynamic,
                params: params.unwrap_or_default(),
                adapter: Adapter::new(engine.lanes(), room_limits, bus.clone()),
                acks: Acks::new(first_ack),
                parser: server.parser,
                sockets: engine.metrics.sockets_of(&label),
                label,
                engine: Arc::clone(engine),
                observers: Arc::clone(&server.observers),
                bus,
                me: Weak::clone(me),
                server: Arc::downgrade(server),
                users: AtomicUsize::new(0),
                plain_sockets: AtomicUsize::new(0),
                arrived: Arrived::default(),
                journal,
                recovery,
            }
        })
    }

    /// Encodes a message to several nodes. It nests no deeper than this node reads, because other
    /// nodes refuse deeper messages, as they do from a client.
    pub(super) fn encode(&self, args: impl IntoArgs) -> Result<Args, ArgsError> {
        let args = args.into_args()?;
        args.check_depth(self.engine.config.limits.json_depth)?;
        Ok(args)
    }

    /// Names a place in which a handler has failed.
    pub(super) fn place<'a>(&'a self, socket: Option<&'a Socket>, what: &'a str) -> Place<'a> {
        Place {
            metrics: &self.engine.metrics,
            namespace: &self.name,
            socket: socket.map(|socket| socket.id().as_str()),
            what,
        }
    }

    /// A client has left, or was refused.
    pub(super) fn leave(self: &Arc<Self>) {
        if self.is_dynamic
            && let Some(server) = self.server.upgrade()
        {
            server.leave(self);
        } else {
            self.users.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl HasRooms for LiveNamespace {
    fn room_count(&self) -> usize {
        self.adapter.room_count()
    }
}

impl Drop for LiveNamespace {
    fn drop(&mut self) {
        self.engine.metrics.namespaces.dec();
        let me: Weak<dyn HasRooms> = self.me.clone();
        self.engine.metrics.gone(&self.label, &me);
    }
}
