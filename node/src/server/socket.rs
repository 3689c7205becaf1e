//! A connected socket: one client in one namespace.
//!
//! ```text
//!   handlers ────┐               ┌─► emit: outbox of the connection
//!   other tasks ─┼─► any clone ──┼─► join, leave: room index of the namespace
//!   driver ──────┘               └─► disconnect: state ─► the driver is woken, and leaves
//! ```
//!
//! Clones can be used from any thread, and kept after the client has disconnected. So each call
//! checks the state. An emit to a socket that has left fails, even if its connection serves other
//! namespaces.
//!
//! **Why `disconnect()` only sets the state.** A handler may call it while one of its
//! packets is being handled. Only the driver takes the socket out of its namespace,
//! between two packets. It begins with `mark_gone`, which succeeds once, because
//! client, server and connection may end the socket at the same time.

use std::{
    any::Any,
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering, fence},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_adapter::{Description, JoinError, Member, SocketId};
use roomcast_protocol::{
    args::{Args, FromArgs, IntoArgs},
    event::is_reserved,
    target::{Flags, Rooms},
};
use serde::{Serialize, Serializer};

use super::{
    ack::Awaited,
    broadcast::BroadcastOperator,
    cluster::names,
    data::{Attached, Data},
    error::{AckError, EmitError},
    handler::state_of,
    journal::Journal,
    live_namespace::LiveNamespace,
    observe::Observation,
    packets,
    recovery::Recoverable,
    server::Server,
};
use crate::{
    close::{CloseReason, Limit},
    transport::{
        connection::{Batch, Connection},
        frame::Frame,
        handshake::Handshake,
        plain::Source,
    },
};

/// A client in a namespace. Cheap to clone. A clone may outlive the connection: operations on it
/// then fail with an error or do nothing.
///
/// ```
/// # use roomcast::{HandlerResult, Namespace, Socket};
/// async fn greet(socket: Socket) -> HandlerResult {
///     socket.join("lobby")?;
///     socket.emit("welcome", socket.id())?;
///     socket.to("lobby").emit("joined", socket.id()).await?;
///     Ok(())
/// }
///
/// Namespace::new("/").on_connect(greet);
/// ```
#[derive(Clone)]
pub struct Socket(pub(super) LocalSocket);

/// A socket of this node, as the room index holds it.
#[derive(Clone)]
pub(crate) struct LocalSocket(Arc<Inner>);

pub(crate) struct Inner {
    id: SocketId,
    namespace: Arc<LiveNamespace>,
    connection: Arc<Connection>,
    handshake: Handshake,
    pub(super) attached: Mutex<Attached>,
    /// In namespaces whose clients can come back.
    recoverable: Option<Box<Recoverable>>,
    /// The number of pending acknowledgements of the client.
    pending_acks: AtomicU32,
    state: AtomicU8,
}

/// The states of a socket. Only a connected one sends and receives.
///
/// ```text
/// CONNECTED ── disconnect() ──► LEAVING or CLOSING ── the driver sees it ──► GONE
///     └──────── packet of the client, panic, end of the connection ────────────┘
/// ```
const CONNECTED: u8 = 0;
/// The server has disconnected it, and its driver has been woken.
const LEAVING: u8 = 1;
/// The same, and the driver closes the whole connection.
const CLOSING: u8 = 2;
const GONE: u8 = 3;

/// Why a socket disconnected.
///
/// ```
/// # use roomcast::{DisconnectReason, Namespace, Socket};
/// Namespace::new("/").on_disconnect(async |socket: Socket, reason: DisconnectReason| {
///     // The words of Node's server, such as `transport close`.
///     println!("{} has gone: {reason}", socket.id());
/// });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The client left the namespace.
    ClientDisconnect,
    /// The server disconnected the socket.
    ServerDisconnect,
    /// A handler of the socket panicked.
    HandlerPanic,
    /// The whole connection ended.
    Connection(CloseReason),
}

impl fmt::Display for DisconnectReason {
    /// The reason as in Node.js servers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientDisconnect => f.write_str("client namespace disconnect"),
            Self::ServerDisconnect | Self::HandlerPanic => {
                f.write_str("server namespace disconnect")
            }
            Self::Connection(CloseReason::ServerDisconnect) => {
                f.write_str("server namespace disconnect")
            }
            Self::Connection(reason) => reason.fmt(f),
        }
    }
}

impl Socket {
    pub(super) fn new(
        id: SocketId,
        namespace: Arc<LiveNamespace>,
        connection: Arc<Connection>,
        handshake: Handshake,
        data: Option<Arc<dyn Data>>,
        recoverable: Option<Box<Recoverable>>,
    ) -> Self {
        if connection.is_plain() {
            namespace.plain_sockets.fetch_add(1, Ordering::Relaxed);
        }
        Self(LocalSocket(Arc::new(Inner {
            id,
            namespace,
            connection,
            handshake,
            attached: Mutex::new(data.into()),
            recoverable,
            pending_acks: AtomicU32::new(0),
            state: AtomicU8::new(CONNECTED),
        })))
    }

    /// The id of the socket, which is also the name of its private room.
    pub fn id(&self) -> &SocketId {
        &self.0.id
    }

    /// The id of the connection, which a client's sockets of all namespaces share. It is
    /// the session id of Engine.IO.
    pub fn connection_id(&self) -> &str {
        self.0.connection.id().as_str()
    }

    /// The name of the namespace.
    pub fn namespace_name(&self) -> &str {
        &self.0.namespace.name
    }

    /// A parameter of a dynamic namespace: `7` for `id` if `/org-{id}` matched `/org-7`.
    pub fn param(&self, name: &str) -> Option<&str> {
        let params = &self.0.namespace.params;
        params
            .iter()
            .find(|(known, _)| **known == *name)
            .map(|(_, value)| &**value)
    }

    /// The client's first request, and the `auth` of its connect packet.
    pub fn handshake(&self) -> &Handshake {
        &self.0.handshake
    }

    /// The current transport: `polling`, `websocket`, or `stream` for a [plain](crate::plain) one.
    pub fn transport(&self) -> &'static str {
        self.0.connection.transport().as_str()
    }

    /// Returns `true` until either side disconnects the socket or its connection ends.
    pub fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    /// The server of the socket, or `None` while the server is being dropped.
    pub fn server(&self) -> Option<Server> {
        self.0.namespace.server.upgrade().map(Server::from_inner)
    }

    /// Selects the whole namespace, including this socket.
    pub fn namespace(&self) -> BroadcastOperator {
        BroadcastOperator::new(Arc::clone(&self.0.namespace))
    }

    /// Returns shared state of this type, if [`Builder::state`](super::Builder::state) provided it.
    pub fn state<S: Any + Send + Sync>(&self) -> Option<Arc<S>> {
        state_of(&self.0.namespace.handlers.states)
    }

    /// The socket as other nodes see it.
    pub(super) fn describe(&self) -> Description {
        Description {
            id: self.id().clone(),
            rooms: self.rooms(),
            data: self.data_json(),
            handshake: self.handshake().to_json(),
        }
    }

    /// Joins all of these rooms, or none of them if that would exceed a limit.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn join(&self, rooms: impl Rooms) -> Result<(), JoinError> {
        if !self.is_connected() {
            return Err(JoinError::Disconnected);
        }
        // Before the socket is in the rooms, so that no message to them is missing when it comes
        // back.
        let place = self.place_of_joins();
        let is_observed = self.0.namespace.observers.is_any();
        let before = (is_observed || place.is_some()).then(|| self.rooms());
        let joined = self.0.namespace.adapter.join(&self.0, &rooms);
        if let (Ok(()), Some(before)) = (&joined, before) {
            let mut rooms = names(&rooms);
            rooms.retain(|room| !before.iter().any(|known| **known == **room));
            if let Some(place) = place {
                self.session_joined(&rooms, place);
            }
            if is_observed && !rooms.is_empty() {
                let (socket, rooms) = (self, &*rooms);
                self.observed(Observation::Joined { socket, rooms });
            }
        }
        let limit = match joined {
            Err(JoinError::TooManyRooms { .. }) => Limit::Rooms,
            Err(JoinError::NameTooLong { .. }) => Limit::RoomName,
            _ => {
                self.session_changed();
                return joined;
            }
        };
        self.0.namespace.engine.metrics.limit_reached(limit);
        joined
    }

    /// Joins rooms, and resolves once later emits of any node reach this socket. After
    /// [`join`](Self::join) alone, this node may not be subscribed to the room for a moment.
    ///
    /// After [`EmitError::Bus`] the socket is in the rooms nevertheless, and broadcasts of this
    /// node reach it.
    pub async fn join_confirmed(&self, rooms: impl Rooms) -> Result<(), EmitError> {
        let names = names(&rooms);
        self.join(names.as_slice())?;
        Ok(self.0.namespace.confirm(names).await?)
    }

    /// Leaves rooms. A socket cannot leave its private room.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn leave(&self, rooms: impl Rooms) {
        let is_observed = self.0.namespace.observers.is_any();
        let before = is_observed.then(|| self.rooms());
        self.session_leaves(&rooms);
        self.0.namespace.adapter.leave(&self.0, &rooms);
        if self.0.is_plain() {
            self.connection().unfollow(&rooms);
        }
        self.session_changed();
        if let Some(before) = before {
            let mut rooms = names(&rooms);
            let own = self.id().as_str();
            rooms.retain(|room| **room != *own && before.iter().any(|known| **known == **room));
            if !rooms.is_empty() {
                let (socket, rooms) = (self, &*rooms);
                self.observed(Observation::Left { socket, rooms });
            }
        }
    }

    /// Leaves all rooms except for the private room.
    pub fn leave_all(&self) {
        let rooms = self.rooms();
        self.leave(rooms.as_slice());
    }

    /// The rooms of the socket. Its private room is first. In a handler of the
    /// disconnect, the rooms that it was in.
    pub fn rooms(&self) -> Vec<String> {
        if let Some(rooms) = self.last_rooms() {
            return rooms;
        }
        let rooms = self.0.namespace.adapter.rooms_of(&self.0);
        rooms.iter().map(|room| String::from(&**room)).collect()
    }

    /// Emits an event to this client. The packet is in the outbox when this returns,
    /// unless it goes through the journal, see
    /// [`Recovery::unicasts`](super::Recovery::unicasts).
    pub fn emit(&self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        self.emit_with(event, args, Flags::default())
    }

    /// Emits an event and waits for the client's acknowledgement until it disconnects. Set a
    /// [`timeout`](Self::timeout), because a client may never answer.
    pub async fn emit_with_ack<T: FromArgs>(
        &self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<T, AckError> {
        self.ask(event, args, Flags::default()).await
    }

    /// Limits the wait for an acknowledgement.
    pub fn timeout(&self, timeout: Duration) -> SocketOperator<'_> {
        self.operator().timeout(timeout)
    }

    /// Allows dropping the next packet if the transport cannot be written right now.
    pub fn volatile(&self) -> SocketOperator<'_> {
        self.operator().volatile()
    }

    /// Has no effect; accepted because ported code calls it.
    pub fn compress(&self, compress: bool) -> SocketOperator<'_> {
        self.operator().compress(compress)
    }

    /// Selects all other sockets of the namespace.
    pub fn broadcast(&self) -> BroadcastOperator {
        self.namespace().except(&self.0.id)
    }

    /// Selects the other sockets in these rooms.
    pub fn to(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.broadcast().to(rooms)
    }

    /// The same as [`to`](Self::to).
    pub fn in_(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.to(rooms)
    }

    /// Selects the other sockets of the namespace except for those in these rooms.
    pub fn except(&self, rooms: impl Rooms) -> BroadcastOperator {
        self.broadcast().except(rooms)
    }

    /// Selects the other sockets of this node.
    pub fn local(&self) -> BroadcastOperator {
        self.broadcast().local()
    }

    /// Disconnects the client from the namespace. With `close`, disconnects it from all namespaces
    /// and closes the connection. Official clients reconnect after neither.
    pub fn disconnect(&self, close: bool) {
        self.begin_leaving(if close { CLOSING } else { LEAVING });
    }

    fn begin_leaving(&self, state: u8) {
        let moved =
            self.0
                .state
                .compare_exchange(CONNECTED, state, Ordering::AcqRel, Ordering::Acquire);
        if moved.is_ok() {
            self.0.connection.wake();
        }
    }

    fn operator(&self) -> SocketOperator<'_> {
        SocketOperator {
            socket: self,
            flags: Flags::default(),
        }
    }

    fn emit_with(&self, event: &str, args: impl IntoArgs, flags: Flags) -> Result<(), EmitError> {
        if !flags.volatile
            && let Some(journal) = self.journal_of_unicasts()
        {
            check_event(event)?;
            let namespace = &self.0.namespace;
            let args = namespace.encode(args)?;
            if !self.is_connected() && !self.may_return() {
                return Err(EmitError::Disconnected);
            }
            namespace.unicast_journaled(journal, self, event, args);
            namespace.engine.metrics.events_sent.inc();
            return Ok(());
        }
        let frame = self.event(event, None, args)?;
        self.send(&frame, flags.volatile)?;
        self.0.namespace.engine.metrics.events_sent.inc();
        Ok(())
    }

    /// The journal, if events to this socket alone are kept there.
    fn journal_of_unicasts(&self) -> Option<&Journal> {
        let namespace = &self.0.namespace;
        let recovery = namespace.recovery.as_ref()?;
        self.recoverable().filter(|_| recovery.options.unicasts)?;
        namespace.journal.as_deref()
    }

    /// Sends an event that could not go through the journal.
    pub(super) fn send_event(&self, event: &str, args: Args) -> Result<(), EmitError> {
        let frame = self.event(event, None, args)?;
        self.send(&frame, false)
    }

    /// Emits an event and waits for its acknowledgement. The count of pending acknowledgements goes
    /// up before anything is sent, so that a client cannot exceed it, and down when the answer
    /// arrives or this future is dropped.
    async fn ask<T: FromArgs>(
        &self,
        event: &str,
        args: impl IntoArgs,
        flags: Flags,
    ) -> Result<T, AckError> {
        // Checked first, so that nothing is encoded or registered for a reserved name.
        check_event(event)?;
        if self.0.is_plain() {
            return Err(AckError::Plain);
        }
        let args = args.into_args().map_err(EmitError::Args)?;
        if !self.0.begin_ack() {
            let limit = self.0.namespace.engine.config.limits.pending_acks;
            return Err(AckError::TooManyPending { limit });
        }
        let (awaited, answer) = self.0.namespace.acks.one(self);
        let pending = PendingAck {
            socket: self,
            awaited,
        };
        let frame = self.event(event, Some(pending.awaited.id), args)?;
        self.send(&frame, flags.volatile)?;
        self.0.namespace.engine.metrics.events_sent.inc();
        let answer = match flags.timeout {
            None => answer.await,
            Some(limit) => tokio::time::timeout(limit, answer)
                .await
                .map_err(|_| AckError::TimedOut(limit))?,
        };
        T::from_args(&answer.map_err(|_| AckError::Disconnected)?).map_err(AckError::Decode)
    }

    fn event(&self, event: &str, id: Option<u64>, args: impl IntoArgs) -> Result<Frame, EmitError> {
        check_event(event)?;
        let namespace = &self.0.namespace;
        let args = args.into_args()?;
        if let Some(listener) = &namespace.handlers.any_outgoing {
            listener(self, event, &args);
        }
        if namespace.observers.is_any_of_events() {
            let (socket, args) = (self, &args);
            self.observed(Observation::Emitted {
                socket,
                event,
                args,
            });
        }
        let frame = namespace.parser.event(&namespace.name, id, event, &args)?;
        Ok(if self.0.is_plain() {
            frame.of_event(Source {
                name: event.into(),
                args,
                room: None,
                position: None,
            })
        } else {
            frame
        })
    }

    /// Sends text unchanged to the client of a [plain connection](crate::plain): a WebSocket
    /// receives a separate message, and a stream yields it. It keeps its place between events.
    ///
    /// # Errors
    ///
    /// [`EmitError::NotPlain`] if the client speaks Socket.IO, and [`EmitError::Disconnected`].
    pub fn send_text(&self, text: &str) -> Result<(), EmitError> {
        if !self.0.is_plain() {
            return Err(EmitError::NotPlain);
        }
        self.send(&Frame::text(text.as_bytes()), false)
    }

    /// Queues a frame. Fails once the socket has left its namespace, even if the connection stays.
    pub(super) fn send(&self, frame: &Frame, volatile: bool) -> Result<(), EmitError> {
        if !self.is_connected() {
            return Err(EmitError::Disconnected);
        }
        self.0
            .connection
            .send(frame, volatile)
            .map_err(|_| EmitError::Disconnected)
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.0.connection
    }

    pub(super) fn observed(&self, observation: Observation<'_>) {
        self.0.namespace.observers.notify(observation);
    }

    pub(super) fn recoverable(&self) -> Option<&Recoverable> {
        self.0.recoverable()
    }

    pub(super) fn live(&self) -> &Arc<LiveNamespace> {
        &self.0.namespace
    }

    // The rest is for the connection's driver.

    /// Returns the way in which the application has disconnected the socket, if it has.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        match self.0.state.load(Ordering::Acquire) {
            LEAVING => Some(Verdict::Leave),
            CLOSING => Some(Verdict::Close),
            _ => None,
        }
    }

    /// Marks the socket as gone. Returns `false` if it was marked before.
    pub(super) fn mark_gone(&self) -> bool {
        self.0.state.swap(GONE, Ordering::AcqRel) != GONE
    }

    /// The packet that disconnects the client from the namespace.
    pub(super) fn disconnect_packet(&self) -> Frame {
        let dialect = self
            .0
            .namespace
            .parser
            .dialect(self.0.connection.revision());
        packets::disconnect(dialect, &self.0.namespace.name)
    }

    /// Adds the socket to its namespace, so that broadcasts reach it.
    pub(super) fn insert(&self) {
        self.0.namespace.adapter.insert(self.0.clone());
        self.0.namespace.sockets.inc();
    }

    pub(super) fn local_socket(&self) -> &LocalSocket {
        &self.0
    }

    /// Removes the socket from its namespace.
    pub(super) fn remove(&self) {
        let namespace = &self.0.namespace;
        if namespace.adapter.remove(&self.0) {
            namespace.sockets.dec();
        }
        if self.0.is_plain() {
            namespace.plain_sockets.fetch_sub(1, Ordering::Relaxed);
        }
        namespace.acks.disconnected(self);
        self.session_left();
        namespace.leave();
    }

    /// Compares by identity: a client that reconnects gets another socket.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }
}

/// An acknowledgement that counts against the client's limit until the answer removes it from the
/// table or this is dropped.
struct PendingAck<'a> {
    socket: &'a Socket,
    awaited: Awaited<'a>,
}

impl Drop for PendingAck<'_> {
    fn drop(&mut self) {
        if self.awaited.withdraw() {
            self.socket.0.end_ack();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Leave,
    Close,
}

pub(super) fn check_event(event: &str) -> Result<(), EmitError> {
    if is_reserved(event) {
        Err(EmitError::ReservedEvent(event.into()))
    } else {
        Ok(())
    }
}

impl Inner {
    fn is_connected(&self) -> bool {
        self.state.load(Ordering::Relaxed) == CONNECTED
    }

    pub(super) fn namespace(&self) -> &LiveNamespace {
        &self.namespace
    }

    pub(super) fn recoverable(&self) -> Option<&Recoverable> {
        self.recoverable.as_deref()
    }

    /// Whether the client does not use Socket.IO.
    pub(super) fn is_plain(&self) -> bool {
        self.connection.is_plain()
    }

    /// Counts one more pending acknowledgement. Returns `false` at the limit.
    pub(super) fn begin_ack(&self) -> bool {
        let engine = &self.namespace.engine;
        let limit = u32::try_from(engine.config.limits.pending_acks).unwrap_or(u32::MAX);
        if self.pending_acks.fetch_add(1, Ordering::Relaxed) < limit {
            // Pairs with the fence in `owes_acks`: a socket that leaves now sees this count, or the
            // event is refused because the socket has left.
            fence(Ordering::SeqCst);
            return true;
        }
        self.end_ack();
        engine.metrics.limit_reached(Limit::PendingAcks);
        false
    }

    /// Whether acknowledgements may be pending for a socket that has been marked as gone.
    pub(super) fn owes_acks(&self) -> bool {
        fence(Ordering::SeqCst);
        self.pending_acks.load(Ordering::Relaxed) > 0
    }

    /// An acknowledgement has arrived, or is no longer awaited.
    pub(super) fn end_ack(&self) {
        self.pending_acks.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deref for LocalSocket {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl From<LocalSocket> for Socket {
    fn from(local: LocalSocket) -> Self {
        Self(local)
    }
}

impl Member for LocalSocket {
    type Frame = Frame;
    type Batch = Batch;

    fn id(&self) -> &SocketId {
        &self.id
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Sockets of one lane are in one shard, so that a broadcast wakes each lane once.
    fn shard(&self) -> usize {
        self.connection.lane_index()
    }

    fn deliver(&self, frame: &Frame, volatile: bool, batch: &mut Batch) {
        if self.is_connected() {
            self.connection.deliver(frame, volatile, batch);
        }
    }

    fn flush(batch: Batch) {
        batch.flush();
    }
}

impl PartialEq for Socket {
    fn eq(&self, other: &Self) -> bool {
        self.same(other)
    }
}

impl Eq for Socket {}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Socket");
        debug
            .field("id", &self.0.id)
            .field("namespace", &self.0.namespace.name);
        debug.finish_non_exhaustive()
    }
}

impl Serialize for Socket {
    /// Serializes the id, so that a handler can return the socket or send it to others.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.id.serialize(serializer)
    }
}

/// An emit to one socket with modifiers.
///
/// ```
/// # use std::time::Duration;
/// # use roomcast::{HandlerResult, Namespace, Socket};
/// Namespace::new("/").on("delete", async |socket: Socket| -> HandlerResult<&str> {
///     let asked = socket.timeout(Duration::from_secs(5));
///     let is_sure: bool = asked.emit_with_ack("are you sure?", ()).await?;
///     Ok(if is_sure { "deleted" } else { "kept" })
/// });
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use = "nothing is emitted until `emit` or `emit_with_ack` is called"]
pub struct SocketOperator<'a> {
    socket: &'a Socket,
    flags: Flags,
}

impl SocketOperator<'_> {
    /// Limits the wait for an acknowledgement.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.flags.timeout = Some(timeout);
        self
    }

    /// Allows dropping the packet if the transport cannot be written right now.
    pub fn volatile(mut self) -> Self {
        self.flags.volatile = true;
        self
    }

    /// Has no effect; accepted because ported code calls it.
    pub fn compress(mut self, compress: bool) -> Self {
        self.flags.compress = Some(compress);
        self
    }

    /// Emits the event. When this returns, the packet is in the outbox or was dropped as volatile.
    pub fn emit(self, event: &str, args: impl IntoArgs) -> Result<(), EmitError> {
        self.socket.emit_with(event, args, self.flags)
    }

    /// Emits the event and waits for the client's acknowledgement.
    pub async fn emit_with_ack<T: FromArgs>(
        self,
        event: &str,
        args: impl IntoArgs,
    ) -> Result<T, AckError> {
        self.socket.ask(event, args, self.flags).await
    }
}
