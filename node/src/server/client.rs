//! One connection as Socket.IO sees it: its decoder, its namespaces and its handlers at work.
//!
//! Used by the connection's driver alone, so it needs no lock.
//!
//! ```text
//!           CONNECT                      accepted
//! unknown ──────────► connecting ─────────────────────────► socket ──┬─ DISCONNECT of the client
//!    ▲                    │      (at once if nothing decides    │    ├─ disconnect() of the server
//!    │    CONNECT_ERROR   │       or has to be subscribed)      │    ├─ panic of a handler
//!    ├────────────────────┘                                     │    └─ end of the connection
//!    └──────────────────────────────────────────────────────────┘ `leave`: on_disconnect, rooms left
//! ```
//!
//! Each namespace of the client goes through these states on its own. A handler is polled
//! in the turn in which its packet was read. If it has to wait, it becomes a [`Task`] of
//! [`InFlight`]. After the end of the connection, the client lives on until its last task
//! is done.
//!
//! **Why the state is kept in three places.** `sockets` has the active namespaces. A namespace
//! whose authorizers run is a task of `in_flight`, because authorizers are futures. Namespaces that
//! the server has left are remembered there by name until the client's next CONNECT, because
//! packets that crossed the disconnect must not look like those of a faulty client.
//!
//! A `disconnect()` of the application is only a request, which it stores in the socket before it
//! wakes the driver. The driver carries it out in its turn. So a socket never leaves while one of
//! its packets is being handled.

use std::{borrow::Cow, future::Future, net::SocketAddr, pin::Pin, sync::Arc, task::Poll};

use futures_util::FutureExt as _;
use roomcast_adapter::SocketId;
use smallvec::SmallVec;

use super::{
    error::{Failed, HandlerError, Refused},
    handler::{Admission, Call},
    in_flight::{Admitted, Done, Held, InFlight, Task},
    live_namespace::LiveNamespace,
    observe::Observation,
    packets,
    rates::Rates,
    recovery::{Restored, Restoring, is_ack_id},
    server::Inner as Server,
    socket::{DisconnectReason, Socket, Verdict},
};
use crate::{
    close::{CloseReason, Limit},
    line_limit::LineLimit,
    metrics::Metrics,
    transport::{
        connection::Connection,
        driver::{Protocol, Turn},
        handshake::{Handshake, Request},
    },
};
use roomcast_protocol::{
    engine_io::open::Revision,
    id::EngineId,
    socket_io::{
        connect::{Dialect, split_query},
        decode::{DecodeError, Decoder, Limits},
        msgpack,
        packet::{Packet, PacketKind},
    },
};

/// The longest query that a client of revision 2 may append to a namespace.
/// Later revisions put the credentials into the packet's data, whose size the limit of
/// messages bounds.
const CONNECT_QUERY_BYTES: usize = 2048;

/// The name of the disconnect handler, also in reports of its errors.
const DISCONNECT: &str = "disconnect";

pub(crate) struct Client {
    pub(super) server: Arc<Server>,
    request: Arc<Request>,
    dialect: Dialect,
    decoder: Decoder,
    // Most clients use one namespace, which needs no allocation this way.
    sockets: SmallVec<[Socket; 1]>,
    /// Exists while something waits.
    in_flight: Option<Box<InFlight>>,
    /// Exists since the client sent something while rates were limited.
    pub(super) rates: Option<Box<Rates>>,
}

impl Client {
    pub(super) fn new(server: Arc<Server>, connection: &Connection, handshake: Handshake) -> Self {
        let dialect = server.parser.dialect(connection.revision());
        Self {
            server,
            request: handshake.into_request(),
            dialect,
            decoder: Decoder::default(),
            sockets: SmallVec::new(),
            in_flight: None,
            rates: None,
        }
    }

    /// The limits of the decoder. They are read from the settings each time, so that clients carry
    /// no copies.
    fn limits(&self) -> Limits {
        let limits = &self.server.engine.config.limits;
        Limits {
            json_depth: limits.json_depth,
            attachments: limits.attachments,
            event_name_bytes: limits.event_name_bytes,
            // Clients of revision 2 put their credentials in a query after the name.
            namespace_bytes: match self.dialect {
                Dialect::V2 => limits.namespace_bytes + CONNECT_QUERY_BYTES,
                _ => limits.namespace_bytes,
            },
        }
    }

    /// Handles one packet. An error closes the connection, as Node's server does for
    /// packets that no client sends.
    fn handle(&mut self, turn: &mut Turn<'_, '_>, packet: &Packet<'_>) -> Result<(), CloseReason> {
        // Measured before anything else, so that packets which are refused count, too.
        let over = self.over_rate(packet);
        if packet.kind == PacketKind::Connect {
            if let Some(over) = over
                && self.exceed(turn, None, packet, over)?
            {
                let (nsp, _) = split_query(&packet.nsp);
                self.count_refused(nsp, over.limit.label());
                packets::connect_error(turn, self.dialect, nsp, &over.refused());
                return Ok(());
            }
            self.connect(turn, packet);
            return Ok(());
        }
        let Some(socket) = self.socket(&packet.nsp) else {
            if packet.kind == PacketKind::Disconnect && self.withdraw_connect(&packet.nsp) {
                return Ok(());
            }
            // Of an event that it received over its former connection, while it is coming back. The event is sent again.
            if packet.kind == PacketKind::Ack && packet.id.is_some_and(is_ack_id) {
                return Ok(());
            }
            // The server has disconnected it. The client may not have noticed yet, and packets that
            // it sent before must not close its connection.
            let has_left = |in_flight: &InFlight| in_flight.has_left(&packet.nsp);
            if self.is_known(&packet.nsp) || self.in_flight.as_deref().is_some_and(has_left) {
                return Ok(());
            }
            return Err(refused("unknown_namespace"));
        };
        match packet.kind {
            PacketKind::Event => {
                self.server.engine.metrics.events_received.inc();
                if let Some(over) = over
                    && self.exceed(turn, Some(&socket), packet, over)?
                {
                    let name = packet.event.as_ref().map_or("", |event| &*event.name);
                    let refused = Err(Failed::Handler(over.refused().into()));
                    self.answer(turn, &socket, name, packet.id, refused);
                    return Ok(());
                }
                let engine = &self.server.engine;
                let limits = &engine.config.limits;
                // An event over the limit is held and not refused, because the client
                // is within its rights: the handlers are slow. Held bytes pause
                // reading, see `is_ready`.
                if let Some(in_flight) = &mut self.in_flight
                    && let Some(limit) = in_flight.has_to_wait(packet, limits)
                {
                    engine.metrics.limit_reached(limit);
                    in_flight.hold(socket, packet);
                } else {
                    self.event(turn, socket, packet);
                }
            }
            PacketKind::Ack => {
                if let Some(over) = over {
                    // The server requested it, so it is never dropped.
                    self.exceed(turn, Some(&socket), packet, over)?;
                }
                if let Some(id) = packet.id
                    && !socket.acknowledges(id)
                {
                    socket.live().acks.answer(&socket, id, packet.to_args());
                }
            }
            PacketKind::Disconnect => {
                let main = packet.nsp == "/";
                self.leave(turn, &socket, DisconnectReason::ClientDisconnect);
                // In revision 2 the main namespace is the connection.
                if main && self.dialect == Dialect::V2 {
                    return Err(CloseReason::TransportClose);
                }
            }
            PacketKind::Connect | PacketKind::ConnectError => {
                return Err(refused("unexpected_packet"));
            }
        }
        Ok(())
    }

    /// The connected socket of a namespace. A client has few, so they are searched one by one.
    fn socket(&self, nsp: &str) -> Option<Socket> {
        let known = |socket: &&Socket| socket.namespace_name() == nsp && socket.is_connected();
        self.sockets.iter().find(known).cloned()
    }

    /// Whether there is a socket of the namespace, which may be about to leave.
    fn is_known(&self, nsp: &str) -> bool {
        self.sockets.iter().any(|s| s.namespace_name() == nsp)
    }

    /// Begins to connect a client to a namespace.
    fn connect(&mut self, turn: &mut Turn<'_, '_>, packet: &Packet<'_>) {
        let (nsp, auth) = match self.dialect {
            Dialect::V2 => split_query(&packet.nsp),
            _ => (
                &*packet.nsp,
                (!packet.data.is_empty()).then(|| packet.data.to_string()),
            ),
        };
        self.replace_connect(turn, nsp);
        let in_flight = self.in_flight.as_ref();
        let metrics = &self.server.engine.metrics;
        // Undecided connects count, too. Otherwise a client could start any number of
        // authorizers.
        let in_use = self.sockets.len() + in_flight.map_or(0, |i| i.connecting());
        if in_use >= self.server.engine.config.limits.namespaces_per_connection {
            metrics.limit_reached(Limit::Namespaces);
            self.count_refused(nsp, "namespaces");
            let refused = Refused::new("too many namespaces on one connection");
            packets::connect_error(turn, self.dialect, nsp, &refused);
            return;
        }
        // The client counts as a user of a dynamic namespace from here on, so every way
        // on which it is not let in must leave it.
        let Some(namespace) = self.server.enter(nsp) else {
            self.count_refused(nsp, "unknown");
            packets::unknown_namespace(turn, self.dialect, nsp);
            return;
        };
        let handshake = Handshake::of(&self.request, auth.as_deref());
        let connection = turn.connection;
        let socket = match (connection.revision(), &*namespace.name) {
            (Revision::V4, _) => self.server.engine.ids.socket_id(),
            // Clients of revision 3 compute their ids by themselves.
            (Revision::V3, "/") => SocketId::new(connection.id().as_str()),
            (Revision::V3, nsp) => SocketId::new(&format!("{nsp}#{}", connection.id().as_str())),
        };
        // Clients of revision 3 send no session to return to.
        let may_return = connection.revision() == Revision::V4;
        let waits = may_return && namespace.has_to_wait(handshake.auth_json());
        if waits || !namespace.handlers.authorizers.is_empty() {
            self.decide(turn, &namespace, handshake, socket, waits);
            return;
        }
        // Nothing decides and nothing has to be subscribed: the common case, which makes no
        // task.
        let Some(expecting) = namespace.expect(&socket) else {
            self.admit(turn, &namespace, handshake, socket, Admitted::default());
            return;
        };
        let task = Task::Admission {
            namespace,
            handshake,
            socket,
            future: Box::pin(expecting.map(|()| Ok(Admitted::default()))),
        };
        self.start(turn, task);
    }

    /// Begins to decide about a client. With `may_return`, it may come back to its session.
    fn decide(
        &mut self,
        turn: &mut Turn<'_, '_>,
        namespace: &Arc<LiveNamespace>,
        handshake: Handshake,
        socket: SocketId,
        may_return: bool,
    ) {
        let deciding = admission(
            Arc::clone(namespace),
            handshake.clone(),
            socket.clone(),
            *turn.connection.id(),
            may_return,
        );
        let task = Task::Admission {
            namespace: Arc::clone(namespace),
            handshake,
            socket,
            future: Box::pin(deciding),
        };
        self.start(turn, task);
    }

    /// Ends the result of an earlier CONNECT to the namespace. A client that
    /// disconnects before it has received the reply sends nothing, and its next CONNECT
    /// arrives while the first is being decided or has just been accepted.
    fn replace_connect(&mut self, turn: &mut Turn<'_, '_>, nsp: &str) {
        self.withdraw_connect(nsp);
        let known = |socket: &&Socket| socket.namespace_name() == nsp;
        if let Some(socket) = self.sockets.iter().find(known).cloned() {
            let reason = if socket.is_connected() {
                DisconnectReason::ClientDisconnect
            } else {
                DisconnectReason::ServerDisconnect
            };
            self.leave(turn, &socket, reason);
        }
    }

    /// Drops the pending decision about a connect. Returns `false` if there is none.
    fn withdraw_connect(&mut self, nsp: &str) -> bool {
        let withdrawn = self.in_flight.as_mut().and_then(|i| i.withdraw(nsp));
        if let Some(namespace) = &withdrawn {
            namespace.leave();
        }
        withdrawn.is_some()
    }

    /// Lets the client into the namespace: from here on it is a socket.
    fn admit(
        &mut self,
        turn: &mut Turn<'_, '_>,
        namespace: &Arc<LiveNamespace>,
        handshake: Handshake,
        id: SocketId,
        admitted: Admitted,
    ) {
        let Admitted {
            data,
            restored,
            is_postponed,
        } = admitted;
        if is_postponed {
            self.postpone(turn, namespace, handshake, id);
            return;
        }
        if let Some(restored) = restored {
            self.readmit(turn, namespace, handshake, id, (data, *restored));
            return;
        }
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.forget_left(&namespace.name);
        }
        let recoverable = namespace.recoverable(turn.connection.revision());
        let socket = Socket::new(
            id,
            Arc::clone(namespace),
            Arc::clone(turn.connection),
            handshake,
            data,
            recoverable,
        );
        let (sid, pid) = (socket.id().as_str(), socket.pid());
        // The reply is the first packet of a namespace, so it is queued before the
        // socket can receive broadcasts.
        packets::connect_reply(turn, self.dialect, &namespace.name, sid, pid);
        self.enter(turn, &socket);
    }

    /// Makes a client retry if its session cannot be read. Official clients do so
    /// by themselves only if their connection is lost: after a refusal they stay away. A
    /// connection that other namespaces use stays, and the decision begins again.
    fn postpone(
        &mut self,
        turn: &mut Turn<'_, '_>,
        namespace: &Arc<LiveNamespace>,
        handshake: Handshake,
        id: SocketId,
    ) {
        // Closing the transport makes an official client reconnect after its back-off.
        if self.sockets.is_empty() {
            namespace.leave();
            turn.connection.close(CloseReason::TransportClose);
            return;
        }
        self.decide(turn, namespace, handshake, id, true);
    }

    /// Lets a client resume its session. The reply follows the missed events, as in Node's server.
    /// If the missed events are incomplete, the client is a new one, and the authorizers run for
    /// it.
    fn readmit(
        &mut self,
        turn: &mut Turn<'_, '_>,
        namespace: &Arc<LiveNamespace>,
        handshake: Handshake,
        id: SocketId,
        (data, restored): (Option<Arc<dyn super::Data>>, Restored),
    ) {
        let connection = Arc::clone(turn.connection);
        let make = |id, recoverable| {
            let (namespace, handshake) = (Arc::clone(namespace), handshake.clone());
            let recoverable = Some(recoverable);
            Socket::new(id, namespace, connection, handshake, data, recoverable)
        };
        match namespace.readmit(turn, restored, make) {
            Some(socket) => {
                if let Some(in_flight) = &mut self.in_flight {
                    in_flight.forget_left(&namespace.name);
                }
                let (sid, pid) = (socket.id().as_str(), socket.pid());
                packets::connect_reply(turn, self.dialect, &namespace.name, sid, pid);
                self.entered(turn, &socket);
            }
            None => self.decide(turn, namespace, handshake, id, false),
        }
    }

    /// A socket begins to be one: it receives broadcasts, and the connect handler starts.
    pub(super) fn enter(&mut self, turn: &mut Turn<'_, '_>, socket: &Socket) {
        socket.insert();
        if socket.live().observers.is_any() {
            socket.observed(Observation::Connected { socket });
        }
        self.entered(turn, socket);
    }

    /// A socket has been inserted: the connect handler starts.
    fn entered(&mut self, turn: &mut Turn<'_, '_>, socket: &Socket) {
        // From here on, the connection is in use and the connect timeout does not end
        // it.
        turn.connection.claim();
        let namespace = Arc::clone(socket.live());
        tracing::debug!(
            namespace = &*namespace.name,
            socket = %socket.id(),
            address = self.address(),
            recovered = socket.recovered(),
            "a socket connected"
        );
        socket.session_changed();
        // Before the handler runs, because it may already disconnect the socket.
        self.sockets.push(socket.clone());
        if let Some(on_connect) = &namespace.handlers.connect {
            let call = Call::of_socket(socket);
            self.run(turn, socket, ("connect", 0), on_connect, call);
        }
    }

    /// Polls a task for the first time, and keeps it if it has to wait. Most are done at once, and
    /// then the set of tasks, which allocates, is not touched.
    pub(super) fn start(&mut self, turn: &mut Turn<'_, '_>, mut task: Task) {
        match Pin::new(&mut task).poll(turn.cx) {
            Poll::Ready((done, _)) => self.finish(turn, done),
            Poll::Pending => self.in_flight().push(task),
        }
    }

    pub(super) fn finish(&mut self, turn: &mut Turn<'_, '_>, done: Done) {
        match done {
            Done::Handler {
                socket,
                name,
                id,
                result,
            } => {
                // Other handlers may end while that of the disconnect still needs the rooms.
                // An event of this name owns it.
                if matches!(name, Cow::Borrowed(DISCONNECT)) {
                    socket.forget_last_rooms();
                }
                self.answer(turn, &socket, &name, id, result);
            }
            Done::Admission {
                namespace,
                handshake,
                socket,
                admission: Ok(admitted),
            } => {
                self.decided(&namespace);
                // The connection ended while the authorizers were running, so the result is not
                // needed.
                if turn.connection.is_closed() {
                    namespace.leave();
                } else {
                    self.admit(turn, &namespace, handshake, socket, admitted);
                }
            }
            Done::Admission {
                namespace,
                admission: Err(error),
                ..
            } => {
                let label = error.label();
                let refused = error.report(&namespace.place(None, "authorize"));
                self.refuse(turn, &namespace, &refused, label);
            }
            Done::AdmissionPanicked(namespace) => {
                self.server.engine.metrics.handler_panics.inc();
                self.refuse(turn, &namespace, &Refused::new("internal error"), "panic");
            }
            Done::HandlerPanicked(socket) => {
                self.server.engine.metrics.handler_panics.inc();
                tracing::error!(
                    namespace = socket.namespace_name(),
                    socket = %socket.id(),
                    "a handler panicked; its socket is disconnected",
                );
                if socket.is_connected() {
                    self.dismiss(turn, &socket, DisconnectReason::HandlerPanic);
                }
            }
        }
    }

    /// Answers a connect with an error. The connection and its other namespaces stay.
    fn refuse(
        &mut self,
        turn: &mut Turn<'_, '_>,
        namespace: &Arc<LiveNamespace>,
        refused: &Refused,
        label: &'static str,
    ) {
        self.decided(namespace);
        self.count_refused(&namespace.name, label);
        packets::connect_error(turn, self.dialect, &namespace.name, refused);
        namespace.leave();
    }

    /// Counts and logs a CONNECT that is refused for the reason `label`.
    fn count_refused(&self, namespace: &str, label: &'static str) {
        let address = Handshake::of(&self.request, None).address();
        count_refused(&self.server.engine.metrics, namespace, label, address);
    }

    /// The client's address, for the log.
    pub(super) fn address(&self) -> Option<tracing::field::DisplayValue<SocketAddr>> {
        Handshake::of(&self.request, None)
            .address()
            .map(tracing::field::display)
    }

    /// Logs the end of the connection. The reasons that point to a faulty client or a limit are on
    /// the level that is on by default.
    fn log_close(&self, turn: &Turn<'_, '_>, reason: CloseReason) {
        static LINES: LineLimit = LineLimit::new();
        let transport = turn.connection.transport().as_str();
        let sockets = self.sockets.len();
        let kind = match reason {
            CloseReason::ParseError { kind, .. } => Some(kind),
            _ => None,
        };
        let is_remarkable = matches!(
            reason,
            CloseReason::ParseError { .. }
                | CloseReason::LimitReached(_)
                | CloseReason::ConnectTimeout
                | CloseReason::OverlappingRequests
        );
        let address = self.address();
        let reason = reason.label();
        if !is_remarkable {
            tracing::debug!(reason, transport, address, sockets, "a connection ended");
        } else if let Some(left_out) = LINES.pass() {
            tracing::info!(
                reason,
                kind,
                transport,
                address,
                sockets,
                left_out,
                "the server closed a connection"
            );
        }
    }

    /// The decision about a connect has been made.
    fn decided(&mut self, namespace: &LiveNamespace) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.decided(&namespace.name);
        }
    }

    /// The server disconnects a socket. Packets for its namespace may still be under way; they do
    /// not close the connection.
    fn dismiss(&mut self, turn: &mut Turn<'_, '_>, socket: &Socket, reason: DisconnectReason) {
        turn.send(&socket.disconnect_packet());
        let limit = self.server.engine.config.limits.namespaces_per_connection;
        let in_flight = self.in_flight();
        in_flight.remember_left(&socket.live().name, limit);
        in_flight.drop_held(socket);
        self.leave(turn, socket, reason);
    }

    /// The socket leaves its namespace: its disconnect handler starts, then it leaves its rooms.
    fn leave(&mut self, turn: &mut Turn<'_, '_>, socket: &Socket, reason: DisconnectReason) {
        // Leaving may be caused from several sides, and only the first one counts.
        if !socket.mark_gone() {
            return;
        }
        self.sockets.retain(|known| !known.same(socket));
        let namespace = socket.live();
        tracing::debug!(
            namespace = &*namespace.name,
            socket = %socket.id(),
            ?reason,
            "a socket disconnected"
        );
        socket.session_ends(reason);
        if namespace.observers.is_any() {
            socket.observed(Observation::Disconnected { socket, reason });
        }
        if let Some(on_disconnect) = &namespace.handlers.disconnect {
            // The handler runs concurrently with the removal below, and still has to see the rooms.
            socket.keep_last_rooms();
            let call = Call {
                reason: Some(reason),
                ..Call::of_socket(socket)
            };
            self.run(turn, socket, (DISCONNECT, 0), on_disconnect, call);
        }
        socket.remove();
    }

    /// The socket of a plain connection, until it has left.
    pub(super) fn only_socket(&self) -> Option<&Socket> {
        self.sockets.first()
    }

    /// Disconnects the sockets for which the application has called `disconnect`.
    fn carry_out(&mut self, turn: &mut Turn<'_, '_>) {
        // Searched from the beginning each time, because leaving takes sockets out of
        // the list.
        while let Some((socket, verdict)) = self
            .sockets
            .iter()
            .find_map(|socket| Some((socket.clone(), socket.verdict()?)))
        {
            match verdict {
                Verdict::Leave => {
                    self.dismiss(turn, &socket, DisconnectReason::ServerDisconnect);
                }
                // All namespaces leave first, so that their handlers get the reason of
                // the server and not that of the transport.
                Verdict::Close => {
                    for socket in self.sockets.clone() {
                        self.dismiss(turn, &socket, DisconnectReason::ServerDisconnect);
                    }
                    turn.connection.close(CloseReason::ServerDisconnect);
                }
            }
        }
    }

    pub(super) fn in_flight(&mut self) -> &mut InFlight {
        self.in_flight.get_or_insert_default()
    }

    /// Polls the tasks that can make progress, and lets held events take the places of those that
    /// are done.
    fn advance(&mut self, turn: &mut Turn<'_, '_>) {
        while let Some(in_flight) = &mut self.in_flight {
            let limits = &self.server.engine.config.limits;
            // Held events come before the tasks at work, so each takes a place as soon
            // as one is free.
            if let Some(Held { socket, packet }) = in_flight.release(limits) {
                self.event(turn, socket, &packet);
                continue;
            }
            match in_flight.poll_next(turn.cx) {
                Poll::Ready(Some(done)) => self.finish(turn, done),
                Poll::Ready(None) if in_flight.is_idle() => self.in_flight = None,
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }
}

impl Protocol for Client {
    fn open(&mut self, turn: &mut Turn<'_, '_>) {
        let transport = turn.connection.transport().as_str();
        let revision = turn.connection.revision();
        tracing::debug!(
            transport,
            ?revision,
            address = self.address(),
            "a connection opened"
        );
        // These clients send no CONNECT for the main namespace. They treat it as connected with the
        // transport, and wait for the server's packet.
        if self.dialect == Dialect::V2 || turn.connection.revision() == Revision::V3 {
            let main = Packet {
                kind: PacketKind::Connect,
                nsp: "/".into(),
                id: None,
                data: "".into(),
                event: None,
                attachments: Vec::new(),
            };
            self.connect(turn, &main);
        }
    }

    // A client of the msgpack parser sends only binary messages; a text shows that the
    // parsers of client and server differ.
    fn text(&mut self, turn: &mut Turn<'_, '_>, text: &str) -> Result<(), CloseReason> {
        if self.dialect == Dialect::Msgpack {
            return Err(refused("unexpected_text"));
        }
        match self.decoder.text(text, &self.limits()) {
            Ok(Some(packet)) => self.handle(turn, &packet),
            Ok(None) => Ok(()),
            Err(error) => Err(undecodable(error)),
        }
    }

    fn binary(&mut self, turn: &mut Turn<'_, '_>, bytes: &[u8]) -> Result<(), CloseReason> {
        let limits = self.limits();
        let packet = match self.dialect {
            Dialect::Msgpack => msgpack::decode(bytes, &limits).map(Some),
            _ => self.decoder.binary(bytes, &limits),
        };
        match packet.map_err(undecodable)? {
            Some(packet) => self.handle(turn, &packet),
            None => Ok(()),
        }
    }

    fn poll(&mut self, turn: &mut Turn<'_, '_>) {
        self.advance(turn);
        // Handlers come first, so that a socket which they disconnect leaves in the
        // same turn.
        self.carry_out(turn);
    }

    /// Reading continues at the limit of running handlers, because handlers may wait for the next
    /// packets. It pauses where that would let a client fill memory: with held events, or with
    /// handlers of connects and disconnects, which are not held.
    fn is_ready(&self) -> bool {
        let limits = &self.server.engine.config.limits;
        self.in_flight.as_ref().is_none_or(|in_flight| {
            in_flight.held_bytes() < limits.inbox_bytes
                && in_flight.len() < 2 * limits.events_in_flight
        })
    }

    fn close(&mut self, turn: &mut Turn<'_, '_>, reason: CloseReason) {
        self.log_close(turn, reason);
        for socket in self.sockets.clone() {
            self.leave(turn, &socket, DisconnectReason::Connection(reason));
        }
        if let Some(in_flight) = &mut self.in_flight {
            // No packet can cross a disconnect any longer, and the names would prevent the client
            // from ending.
            in_flight.forget_all_left();
        }
    }

    fn poll_done(&mut self, turn: &mut Turn<'_, '_>) -> Poll<()> {
        self.advance(turn);
        if self.in_flight.is_none() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Client {
    /// A driver that is dropped with its runtime leaves no sockets.
    fn drop(&mut self) {
        for socket in std::mem::take(&mut self.sockets) {
            if socket.mark_gone() {
                socket.remove();
            }
        }
    }
}

/// Counts and logs a connect that is refused for the reason `label`.
pub(super) fn count_refused(
    metrics: &Metrics,
    namespace: &str,
    label: &'static str,
    address: Option<SocketAddr>,
) {
    static LINES: LineLimit = LineLimit::new();
    metrics.connect_refused.with_label_values(&[label]).inc();
    if let Some(left_out) = LINES.pass() {
        tracing::info!(
            namespace,
            reason = label,
            address = address.map(tracing::field::display),
            left_out,
            "a connect to a namespace was refused"
        );
    }
}

/// Decides about a client of Socket.IO. With `may_return`, it may come back to its session, and
/// then the authorizers run only if the settings require it.
async fn admission(
    namespace: Arc<LiveNamespace>,
    handshake: Handshake,
    mut socket: SocketId,
    connection: EngineId,
    may_return: bool,
) -> Result<Admitted, HandlerError> {
    let (mut restored, fresh) = (None, socket.clone());
    if may_return {
        match namespace.restore(handshake.auth_json()).await {
            Restoring::Taken(session) => restored = Some(session),
            Restoring::No => {}
            Restoring::Later => {
                return Ok(Admitted {
                    is_postponed: true,
                    ..Admitted::default()
                });
            }
        }
    }
    let mut is_trusted = false;
    if let (Some(restored), Some(recovery)) = (&restored, &namespace.recovery) {
        socket = restored.id();
        // The client was authorized when the session began, and only the client has its private id.
        // Node's servers skip their middleware for it by default, too.
        is_trusted = !recovery.options.authorizes_again;
    }
    let mut data = None;
    let returning = restored.is_some().then(|| handshake.clone());
    if !is_trusted {
        let namespace = Arc::clone(&namespace);
        let names = (socket, connection);
        data = authorize(namespace, handshake, names, restored.is_some()).await?;
    // The socket keeps its id. If another node made it, this node is not subscribed to
    // its room.
    } else if let Some(expecting) = namespace.expect(&socket) {
        expecting.await;
    }
    if let Some((mut session, handshake)) = restored.take().zip(returning) {
        match session.data(&namespace, data.clone()) {
            Ok(merged) => {
                data = merged;
                restored = Some(session);
            }
            Err(_) => {
                namespace.refuse_restored(*session);
                // The authorizers may have trusted the session.
                data = authorize(namespace, handshake, (fresh, connection), false).await?;
            }
        }
    }
    Ok(Admitted {
        data,
        restored,
        is_postponed: false,
    })
}

/// Runs the authorizers of a namespace until one refuses. The last data that one returns counts.
/// A socket that is let in is known, so messages to it must arrive from then on.
pub(super) async fn authorize(
    namespace: Arc<LiveNamespace>,
    handshake: Handshake,
    (socket, connection): (SocketId, EngineId),
    recovering: bool,
) -> Admission {
    let mut data = None;
    for authorizer in &namespace.handlers.authorizers {
        let deciding = authorizer(&mut Call {
            handshake: Some(&handshake),
            socket_id: Some(&socket),
            connection: Some(connection),
            recovering,
            ..Call::new(&namespace.handlers.states)
        });
        data = deciding.await?.or(data);
    }
    if let Some(expecting) = namespace.expect(&socket) {
        expecting.await;
    }
    Ok(data)
}

fn refused(kind: &'static str) -> CloseReason {
    CloseReason::ParseError { kind, code: None }
}

fn undecodable(error: DecodeError) -> CloseReason {
    match error {
        DecodeError::TooManyAttachments { .. } => CloseReason::LimitReached(Limit::Attachments),
        DecodeError::TooDeep { .. } => CloseReason::LimitReached(Limit::JsonDepth),
        DecodeError::EventNameTooLong { .. } => CloseReason::LimitReached(Limit::EventName),
        DecodeError::NamespaceTooLong { .. } => CloseReason::LimitReached(Limit::NamespaceName),
        error => refused(error.label()),
    }
}
