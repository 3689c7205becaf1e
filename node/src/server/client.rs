//! One connection as Socket.IO sees it: its namespaces, its decoder and its running handlers.
//!
//! Used by the connection's driver alone, so it needs no lock. Handlers are polled at once in the
//! turn in which their event was read; those that have to wait stay here.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use roomcast_adapter::SocketId;
use roomcast_protocol::args::Args;
use smallvec::SmallVec;

use super::{
    error::Refused,
    handler::{Admission, BoxFuture, Event, HandlerError, Reply},
    packets,
    server::Inner as Server,
    socket::{DisconnectReason, Socket, Verdict},
    space::Space,
};
use crate::{
    close::{CloseReason, Limit},
    transport::{
        connection::Connection,
        driver::{Protocol, Turn},
        handshake::{Handshake, Request},
    },
};
use roomcast_protocol::{
    engine_io::open::Revision,
    socket_io::{
        connect::{Dialect, split_query},
        decode::{DecodeError, Decoder, Limits},
        msgpack,
        packet::{Packet, PacketKind},
    },
};

/// The longest query that a client of revision 2 may put behind a namespace.
const CONNECT_QUERY_BYTES: usize = 2048;

pub(crate) struct Client {
    server: Arc<Server>,
    request: Arc<Request>,
    dialect: Dialect,
    decoder: Decoder,
    sockets: SmallVec<[Socket; 1]>,
    /// Made while something waits, and dropped with the last of it.
    busy: Option<Box<Busy>>,
}

#[derive(Default)]
struct Busy {
    running: FuturesUnordered<Running>,
    /// Namespaces that the client may not connect to again: it is about to, or the server has
    /// disconnected it and packets may still be under way.
    connecting: Vec<Arc<str>>,
    left: Vec<Arc<str>>,
}

/// A handler at work.
struct Running {
    what: Option<What>,
    future: Work,
}

enum What {
    Event {
        socket: Socket,
        id: Option<u64>,
    },
    Other {
        socket: Socket,
    },
    Admission {
        space: Arc<Space>,
        handshake: Handshake,
    },
}

enum Work {
    Event(BoxFuture<Result<Reply, HandlerError>>),
    Other(BoxFuture<()>),
    Admission(BoxFuture<Admission>),
}

enum Outcome {
    Event(Result<Reply, HandlerError>),
    Other,
    Admission(Admission),
    Panicked,
}

impl Future for Running {
    type Output = (What, Outcome);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let work = &mut self.future;
        let polled = catch_unwind(AssertUnwindSafe(|| match work {
            Work::Event(future) => future.as_mut().poll(cx).map(Outcome::Event),
            Work::Other(future) => future.as_mut().poll(cx).map(|()| Outcome::Other),
            Work::Admission(future) => future.as_mut().poll(cx).map(Outcome::Admission),
        }));
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(outcome)) => outcome,
            Err(_) => Outcome::Panicked,
        };
        let what = self.what.take().expect("not polled after it was ready");
        Poll::Ready((what, outcome))
    }
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
            busy: None,
        }
    }

    fn limits(&self) -> Limits {
        let limits = &self.server.engine.config.limits;
        Limits {
            json_depth: limits.json_depth,
            attachments: limits.attachments,
            event_name_bytes: limits.event_name_bytes,
            // Clients of revision 2 put their credentials in a query behind the name.
            namespace_bytes: match self.dialect {
                Dialect::V2 => limits.namespace_bytes + CONNECT_QUERY_BYTES,
                _ => limits.namespace_bytes,
            },
        }
    }

    fn handle(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), CloseReason> {
        if packet.kind == PacketKind::Connect {
            return self.connect(turn, cx, packet);
        }
        let Some(socket) = self.socket(&packet.nsp) else {
            // The server has disconnected it; the client may not know yet.
            let is_leaving = self
                .sockets
                .iter()
                .any(|socket| socket.namespace_name() == packet.nsp);
            let has_left = self
                .busy
                .as_ref()
                .is_some_and(|busy| busy.has_left(&packet.nsp));
            if is_leaving || has_left {
                return Ok(());
            }
            return Err(refused("unknown_namespace"));
        };
        match packet.kind {
            PacketKind::Event => self.event(turn, cx, socket, packet),
            PacketKind::Ack => {
                if let Some(id) = packet.id {
                    socket.space().acks.answer(&socket, id, packet.to_args());
                }
            }
            PacketKind::Disconnect => {
                let main = packet.nsp == "/";
                self.leave(turn, cx, &socket, DisconnectReason::ClientDisconnect);
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

    fn socket(&self, nsp: &str) -> Option<Socket> {
        let known = |socket: &&Socket| socket.namespace_name() == nsp && socket.is_connected();
        self.sockets.iter().find(known).cloned()
    }

    fn connect(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), CloseReason> {
        let (nsp, auth) = match self.dialect {
            Dialect::V2 => split_query(&packet.nsp),
            _ => (
                &*packet.nsp,
                (!packet.data.is_empty()).then(|| packet.data.to_string()),
            ),
        };
        let connecting = self
            .busy
            .as_ref()
            .is_some_and(|busy| busy.is_connecting(nsp));
        if connecting
            || self
                .sockets
                .iter()
                .any(|socket| socket.namespace_name() == nsp)
        {
            return Err(refused("already_connected"));
        }
        let metrics = &self.server.engine.metrics;
        let in_use = self.sockets.len() + self.busy.as_ref().map_or(0, |b| b.connecting.len());
        if in_use >= self.server.engine.config.limits.namespaces_per_connection {
            metrics.limit_reached(Limit::Namespaces);
            metrics
                .connect_refused
                .with_label_values(&["namespaces"])
                .inc();
            let refused = Refused::new("too many namespaces on one connection");
            packets::connect_error(turn, self.dialect, nsp, &refused);
            return Ok(());
        }
        let Some(space) = self.server.enter(nsp) else {
            metrics
                .connect_refused
                .with_label_values(&["unknown"])
                .inc();
            packets::unknown_namespace(turn, self.dialect, nsp);
            return Ok(());
        };
        let handshake = Handshake::of(&self.request, auth.as_deref());
        let Some(authorize) = &space.handlers.authorize else {
            self.admit(turn, cx, &space, handshake, None);
            return Ok(());
        };
        let started = catch_unwind(AssertUnwindSafe(|| authorize(handshake.clone())));
        let Ok(future) = started else {
            self.finish(
                turn,
                cx,
                What::Admission { space, handshake },
                Outcome::Panicked,
            );
            return Ok(());
        };
        let name = Arc::clone(&space.name);
        let what = What::Admission { space, handshake };
        if self.start(turn, cx, what, Work::Admission(future)) {
            self.busy().connecting.push(name);
        }
        Ok(())
    }

    /// Lets the client into the namespace: from here on it is a socket.
    fn admit(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        space: &Arc<Space>,
        handshake: Handshake,
        data: Option<Arc<dyn super::Data>>,
    ) {
        let connection = turn.connection;
        let id = match (connection.revision(), &*space.name) {
            (Revision::V4, _) => self.server.engine.ids.socket_id(),
            // Clients of revision 3 compute their ids by themselves.
            (Revision::V3, "/") => SocketId::new(connection.id().as_str()),
            (Revision::V3, nsp) => SocketId::new(&format!("{nsp}#{}", connection.id().as_str())),
        };
        connection.claim();
        if let Some(busy) = &mut self.busy {
            busy.left.retain(|left| *left != space.name);
        }
        packets::connect_reply(turn, self.dialect, &space.name, id.as_str());
        let socket = Socket::new(
            id,
            Arc::clone(space),
            Arc::clone(connection),
            handshake,
            data,
        );
        socket.insert();
        self.sockets.push(socket.clone());
        if let Some(on_connect) = &space.handlers.connect {
            self.run(turn, cx, &socket, || on_connect.call(socket.clone()));
        }
    }

    fn event(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        socket: Socket,
        packet: &Packet<'_>,
    ) {
        let handlers = &socket.space().handlers;
        let metrics = &self.server.engine.metrics;
        metrics.events_received.inc();
        // An event without a name reaches no handler.
        let Some(name) = packet.event.as_ref().map(|event| &*event.name) else {
            metrics.events_unhandled.inc();
            return;
        };
        let handler = handlers.events.get(name);
        if handler.is_none() && handlers.any.is_none() {
            metrics.events_unhandled.inc();
            return;
        }
        if let Some(any) = &handlers.any {
            let event = Event {
                name: name.into(),
                args: packet.to_args(),
            };
            self.run(turn, cx, &socket, || any(socket.clone(), event));
            if !socket.is_connected() {
                return;
            }
        }
        let Some(handler) = handler else {
            return;
        };
        let id = packet.id;
        // Most handlers don't wait: they are polled before anything is set up for waiting.
        let first = catch_unwind(AssertUnwindSafe(|| {
            let mut future = handler(socket.clone(), &packet.payload(), id);
            match future.as_mut().poll(cx) {
                Poll::Ready(result) => Ok(result),
                Poll::Pending => Err(future),
            }
        }));
        match first {
            Ok(Ok(result)) => self.answer(turn, &socket, id, result),
            Ok(Err(future)) => self.wait(What::Event { socket, id }, Work::Event(future)),
            Err(_) => self.finish(turn, cx, What::Event { socket, id }, Outcome::Panicked),
        }
    }

    /// Runs a handler whose result nobody waits for.
    fn run(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        socket: &Socket,
        start: impl FnOnce() -> BoxFuture<()>,
    ) {
        let what = What::Other {
            socket: socket.clone(),
        };
        match catch_unwind(AssertUnwindSafe(start)) {
            Ok(future) => {
                self.start(turn, cx, what, Work::Other(future));
            }
            Err(_) => self.finish(turn, cx, what, Outcome::Panicked),
        }
    }

    /// Polls a handler for the first time; answers true if it has to wait.
    fn start(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        what: What,
        future: Work,
    ) -> bool {
        let mut running = Running {
            what: Some(what),
            future,
        };
        match Pin::new(&mut running).poll(cx) {
            Poll::Ready((what, outcome)) => {
                self.finish(turn, cx, what, outcome);
                false
            }
            Poll::Pending => {
                self.busy().running.push(running);
                true
            }
        }
    }

    /// Keeps a handler that has been polled and waits.
    fn wait(&mut self, what: What, future: Work) {
        let what = Some(what);
        self.busy().running.push(Running { what, future });
    }

    fn finish(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>, what: What, outcome: Outcome) {
        match (what, outcome) {
            (What::Event { socket, id }, Outcome::Event(result)) => {
                self.answer(turn, &socket, id, result);
            }
            (What::Admission { space, handshake }, Outcome::Admission(Ok(data))) => {
                self.connected(&space);
                if turn.connection.is_closed() {
                    space.leave();
                } else {
                    self.admit(turn, cx, &space, handshake, data);
                }
            }
            (What::Admission { space, .. }, Outcome::Admission(Err(refused))) => {
                self.refuse(turn, &space, &refused, "unauthorized");
            }
            (What::Admission { space, .. }, _) => {
                self.server.engine.metrics.handler_panics.inc();
                self.refuse(turn, &space, &Refused::new("internal error"), "panic");
            }
            (What::Event { socket, .. } | What::Other { socket }, Outcome::Panicked) => {
                self.server.engine.metrics.handler_panics.inc();
                tracing::error!(
                    namespace = socket.namespace_name(),
                    socket = %socket.id(),
                    "a handler panicked; its socket is disconnected",
                );
                if socket.is_connected() {
                    turn.send(&socket.disconnect_packet());
                    self.remember_left(&socket);
                    self.leave(turn, cx, &socket, DisconnectReason::HandlerPanic);
                }
            }
            (What::Other { .. } | What::Event { .. }, _) => {}
        }
    }

    fn refuse(
        &mut self,
        turn: &mut Turn<'_>,
        space: &Arc<Space>,
        refused: &Refused,
        label: &'static str,
    ) {
        self.connected(space);
        self.server
            .engine
            .metrics
            .connect_refused
            .with_label_values(&[label])
            .inc();
        packets::connect_error(turn, self.dialect, &space.name, refused);
        space.leave();
    }

    /// The decision about a connect has been taken.
    fn connected(&mut self, space: &Space) {
        if let Some(busy) = &mut self.busy {
            busy.connecting.retain(|name| *name != space.name);
        }
    }

    fn answer(
        &self,
        turn: &mut Turn<'_>,
        socket: &Socket,
        id: Option<u64>,
        result: Result<Reply, HandlerError>,
    ) {
        let args = match result {
            Ok(Reply::Taken) => return,
            Ok(Reply::Args(args)) => args,
            Err(error) => {
                let (text, level) = match error {
                    HandlerError::Decode(error) => {
                        self.server.engine.metrics.events_undecodable.inc();
                        (error.to_string(), "decode")
                    }
                    HandlerError::Encode(error) => (error.to_string(), "encode"),
                };
                tracing::debug!(socket = %socket.id(), error = text, "{level} error");
                Args::encode(&Err::<(), _>(text)).unwrap_or_default()
            }
        };
        if let (Some(id), true) = (id, socket.is_connected()) {
            let space = socket.space();
            space.parser.reply_ack(turn, &space.name, id, &args);
        }
    }

    /// The socket leaves its namespace: its handler of the disconnect runs, then its rooms are
    /// left.
    fn leave(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        socket: &Socket,
        reason: DisconnectReason,
    ) {
        if !socket.mark_gone() {
            return;
        }
        self.sockets.retain(|known| !known.same(socket));
        let space = socket.space();
        if let Some(on_disconnect) = &space.handlers.disconnect {
            self.run(turn, cx, socket, || {
                on_disconnect.call(socket.clone(), reason)
            });
        }
        socket.remove();
    }

    /// Carries out what the server has decided about sockets of this connection.
    fn carry_out(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>) {
        while let Some((socket, verdict)) = self
            .sockets
            .iter()
            .find_map(|socket| Some((socket.clone(), socket.verdict()?)))
        {
            match verdict {
                Verdict::Leave => {
                    turn.send(&socket.disconnect_packet());
                    self.remember_left(&socket);
                    self.leave(turn, cx, &socket, DisconnectReason::ServerDisconnect);
                }
                Verdict::Close => {
                    for socket in self.sockets.clone() {
                        turn.send(&socket.disconnect_packet());
                        self.leave(turn, cx, &socket, DisconnectReason::ServerDisconnect);
                    }
                    turn.connection.close(CloseReason::ServerDisconnect);
                }
            }
        }
    }

    /// Packets for the namespace may still be under way; they don't close the connection.
    fn remember_left(&mut self, socket: &Socket) {
        let limit = self.server.engine.config.limits.namespaces_per_connection;
        let left = &mut self.busy().left;
        if left.len() >= limit {
            left.remove(0);
        }
        left.push(Arc::clone(&socket.space().name));
    }

    fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Goes on with handlers that wait.
    fn advance(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>) {
        while let Some(busy) = &mut self.busy {
            match busy.running.poll_next_unpin(cx) {
                Poll::Ready(Some((what, outcome))) => self.finish(turn, cx, what, outcome),
                Poll::Ready(None) if busy.is_idle() => self.busy = None,
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }
}

impl Busy {
    fn is_connecting(&self, nsp: &str) -> bool {
        self.connecting.iter().any(|name| **name == *nsp)
    }

    fn has_left(&self, nsp: &str) -> bool {
        self.left.iter().any(|name| **name == *nsp)
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.connecting.is_empty() && self.left.is_empty()
    }
}

impl Protocol for Client {
    fn open(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>) {
        if self.dialect == Dialect::V2 || turn.connection.revision() == Revision::V3 {
            let main = Packet {
                kind: PacketKind::Connect,
                nsp: "/".into(),
                id: None,
                data: "".into(),
                event: None,
                attachments: Vec::new(),
            };
            // Nothing is connected yet, so there is nothing to refuse.
            let connected = self.connect(turn, cx, &main);
            debug_assert!(connected.is_ok(), "the first connect is never a second one");
        }
    }

    fn text(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        text: &str,
    ) -> Result<(), CloseReason> {
        if self.dialect == Dialect::Msgpack {
            return Err(refused("unexpected_text"));
        }
        match self.decoder.text(text, &self.limits()) {
            Ok(Some(packet)) => self.handle(turn, cx, &packet),
            Ok(None) => Ok(()),
            Err(error) => Err(undecodable(error)),
        }
    }

    fn binary(
        &mut self,
        turn: &mut Turn<'_>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Result<(), CloseReason> {
        let limits = self.limits();
        let packet = match self.dialect {
            Dialect::Msgpack => msgpack::decode(bytes, &limits).map(Some),
            _ => self.decoder.binary(bytes, &limits),
        };
        match packet.map_err(undecodable)? {
            Some(packet) => self.handle(turn, cx, &packet),
            None => Ok(()),
        }
    }

    fn poll(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>) {
        self.advance(turn, cx);
        self.carry_out(turn, cx);
    }

    fn is_ready(&self) -> bool {
        let limit = self.server.engine.config.limits.events_in_flight;
        self.busy
            .as_ref()
            .is_none_or(|busy| busy.running.len() < limit)
    }

    fn close(&mut self, turn: &mut Turn<'_>, reason: CloseReason, cx: &mut Context<'_>) {
        for socket in self.sockets.clone() {
            self.leave(turn, cx, &socket, DisconnectReason::Connection(reason));
        }
        if let Some(busy) = &mut self.busy {
            busy.left.clear();
        }
    }

    fn poll_done(&mut self, turn: &mut Turn<'_>, cx: &mut Context<'_>) -> Poll<()> {
        self.advance(turn, cx);
        if self.busy.is_none() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Client {
    /// A driver that is dropped with its runtime leaves no sockets behind.
    fn drop(&mut self) {
        for socket in std::mem::take(&mut self.sockets) {
            if socket.mark_gone() {
                socket.remove();
            }
        }
    }
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
