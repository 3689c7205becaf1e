//! Sockets of plain connections: admission, and the work of the driver.
//!
//! ```text
//! open_stream ─ limits, phase ─ authorizers ─▶ connection, driver ─ on_connect started ─▶ Stream
//!      └── any refusal ─▶ OpenError, before anything was opened       dropped Stream ─▶ disconnect
//! open_websocket: the same, then 101 ─▶ connection, driver ─ on_connect started ─▶ on_open ─▶ on_text …
//! ```
//!
//! The driver runs a [`Client`] with one socket, as for any other connection. The
//! socket's connection has no purpose without it, so it is closed when the socket is
//! disconnected.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode, request::Parts};
use roomcast_adapter::SocketId;
use roomcast_protocol::id::EngineId;
use tokio::sync::oneshot;

use super::{
    client::{Client, authorize, count_refused},
    data::Data,
    error::Refused,
    handler::BoxFuture,
    in_flight::Done,
    live_namespace::LiveNamespace,
    server::{Inner, Server},
    socket::Socket,
};
use crate::{
    close::CloseReason,
    transport::{
        connection::{Carrier, Connection},
        driver::{self, Protocol, Turn},
        engine::ConnectionPermit,
        handshake::Handshake,
        plain::{Chunk, Form},
        refusals::Refusal,
        routes::{admit_plain, switch_to_plain},
        stream::Unwrapped,
        upgrade::take_over,
    },
};

/// Parameters of a plain connection.
#[derive(Clone)]
pub struct Open {
    /// The name of the namespace.
    pub namespace: String,
    /// The value of [`Handshake::auth`](crate::Handshake::auth), as JSON text: an object.
    pub auth: Option<String>,
    /// How the client sees events. Connections of one kind should share it.
    pub form: Arc<dyn Form>,
}

impl fmt::Debug for Open {
    /// `auth` may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// The reason why a plain connection was not opened, as an HTTP error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct OpenError {
    /// 403 if an authorizer refuses, 404 if there is no such namespace, 429 or 503 if a limit is
    /// reached, 503 while the server drains, 500 if an authorizer fails.
    pub status: StatusCode,
    /// The label under which metrics count the refusal.
    pub reason: &'static str,
    /// The error as the client may see it.
    pub message: Cow<'static, str>,
    /// The [details](Refused::data) of an authorizer, as JSON text.
    pub data: Option<String>,
    /// The value of `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
}

impl OpenError {
    fn new(status: StatusCode, reason: &'static str, refused: Refused) -> Self {
        Self {
            status,
            reason,
            message: refused.message,
            data: refused.data,
            retry_after: None,
        }
    }
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> Self {
        Self {
            status: refusal.status,
            reason: refusal.label,
            message: refusal.message,
            data: None,
            retry_after: refusal.retry_after,
        }
    }
}

/// The events of one plain connection, in order. Ends with the connection.
///
/// Dropping it closes the connection at once, so when a client disconnects, dropping the body of
/// its response or its parked request frees everything. A stream that is not polled while events
/// wait is closed as a slow consumer, under the limits of every connection.
#[must_use = "dropping the stream closes the connection"]
pub struct Stream {
    connection: Arc<Connection>,
    socket: Socket,
}

impl Stream {
    /// The socket, to join rooms, for example.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Why the connection has ended, if it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.connection.closing()
    }
}

impl futures_util::Stream for Stream {
    type Item = Chunk;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        self.connection.poll_chunk(cx)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.drop_consumer();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.socket).finish()
    }
}

impl Server {
    /// Opens a plain connection whose events this process forwards, as the body of a response or as
    /// the response to a parked request.
    ///
    /// The request is the client's: its headers, query and address become the socket's
    /// [`Handshake`], and limits of connections and addresses count it. The authorizers of the
    /// namespace run. When this returns, the connect handlers have started.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use axum::{body::Body, extract::State, response::{IntoResponse, Response}};
    /// # use futures_util::StreamExt as _;
    /// # use roomcast::{Server, plain::{Form, Open}};
    /// # type App = State<(Server, Arc<dyn Form>)>;
    /// async fn events(State((io, form)): App, request: http::request::Parts) -> Response {
    ///     let open = Open { namespace: "/".to_owned(), auth: None, form };
    ///     match io.open_stream(&request, open).await {
    ///         Ok(stream) => {
    ///             if stream.socket().join_confirmed("news").await.is_err() {
    ///                 return http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    ///             }
    ///             let events = stream.map(|chunk| Ok::<_, std::io::Error>(chunk.bytes));
    ///             ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
    ///         }
    ///         Err(error) => (error.status, error.message).into_response(),
    ///     }
    /// }
    /// ```
    pub async fn open_stream(&self, request: &Parts, open: Open) -> Result<Stream, OpenError> {
        let admitted = Admitted::new(self.inner(), request, &open).await?;
        let (engine, id) = (self.engine(), admitted.connection);
        let connection = Connection::plain(engine, id, open.form, None, &[]);
        let (signal, opened) = oneshot::channel();
        let on_open = move |_| {
            // The receiver is gone if the request was dropped meanwhile.
            let _ = signal.send(());
            None
        };
        let (client, socket, permit) = admitted.client(&connection, on_open, None);
        let stream = Stream { connection, socket };
        engine.opened_plain(Carrier::Stream);
        driver::spawn(&stream.connection, client, permit);
        // A driver that was dropped with its runtime has closed the connection.
        let _ = opened.await;
        Ok(stream)
    }

    /// Opens a plain WebSocket. Returns the response to its request, with status 101.
    ///
    /// The authorizers of the namespace run before, as for [`open_stream`](Self::open_stream). When
    /// the WebSocket is open and the connect handlers have started, `on_open` runs, and then
    /// `on_text` for each text message, one after the other. Messages that wait for a running one
    /// are limited by [`Limits::events_in_flight`](crate::Limits::events_in_flight) and
    /// [`Limits::inbox_bytes`](crate::Limits::inbox_bytes): then the WebSocket is not read. Rates
    /// limit them as they limit events. A binary message ends the connection with code 1003, unless
    /// the form [skips](Form::skips_binary) them, a [disconnect](Socket::disconnect) with 1000, and
    /// a shutdown with 1001. If the future panics, the socket is disconnected.
    ///
    /// # Errors
    ///
    /// Those of [`open_stream`](Self::open_stream), and 400 or 426 if the request is not for a
    /// WebSocket.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use axum::{body::Body, extract::State, response::{IntoResponse, Response}};
    /// # use roomcast::{Server, Socket, plain::{Form, Open}};
    /// # type App = State<(Server, Arc<dyn Form>)>;
    /// async fn chat(State((io, form)): App, request: http::Request<Body>) -> Response {
    ///     let open = Open { namespace: "/".to_owned(), auth: None, form };
    ///     let on_open = async |socket: Socket| drop(socket.join("chat"));
    ///     let on_text = async |socket: Socket, text: String| {
    ///         drop(socket.to("chat").emit("message", text).await);
    ///     };
    ///     match io.open_websocket(request, open, on_open, on_text).await {
    ///         Ok(response) => response,
    ///         Err(error) => (error.status, error.message).into_response(),
    ///     }
    /// }
    /// ```
    pub async fn open_websocket<O, T>(
        &self,
        request: Request<Body>,
        open: Open,
        on_open: impl FnOnce(Socket) -> O + Send + 'static,
        on_text: impl Fn(Socket, String) -> T + Send + 'static,
    ) -> Result<Response<Body>, OpenError>
    where
        O: Future<Output = ()> + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let engine = Arc::clone(self.engine());
        let response = switch_to_plain(&engine, request.headers())?;
        let (parts, body) = request.into_parts();
        let admitted = Admitted::new(self.inner(), &parts, &open).await?;
        let mut request = Request::from_parts(parts, body);
        take_over(&mut request, move |unwrapped| {
            let Unwrapped { stream, read, head } = unwrapped;
            let (id, stream) = (admitted.connection, Some(stream));
            let connection = Connection::plain(&engine, id, open.form, stream, &head);
            let on_open = |socket| -> Option<BoxFuture<()>> { Some(Box::pin(on_open(socket))) };
            let on_text: OnText = Box::new(move |socket, text| Box::pin(on_text(socket, text)));
            let (client, _, permit) = admitted.client(&connection, on_open, Some(on_text));
            engine.opened_plain(Carrier::WebSocket);
            driver::spawn_with(&connection, client, permit, read);
        });
        Ok(response)
    }
}

/// An accepted client, before its connection is opened.
struct Admitted {
    server: Arc<Inner>,
    permit: ConnectionPermit,
    handshake: Handshake,
    namespace: Entered,
    data: Option<Arc<dyn Data>>,
    connection: EngineId,
    id: SocketId,
}

/// A namespace that counts the client as its user.
struct Entered(Option<Arc<LiveNamespace>>);

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(namespace) = self.0.take() {
            namespace.leave();
        }
    }
}

impl Admitted {
    async fn new(server: &Arc<Inner>, request: &Parts, open: &Open) -> Result<Self, OpenError> {
        let engine = &server.engine;
        let (permit, handshake) = admit_plain(engine, request).await?;
        let request = handshake.into_request();
        let handshake = Handshake::of(&request, open.auth.as_deref());
        let count = |name: &str, label| {
            count_refused(&engine.metrics, name, label, handshake.address());
        };
        let name = &*open.namespace;
        let Some(namespace) = server.enter(name) else {
            count(name, "unknown");
            let refused = Refused::new("unknown namespace");
            return Err(OpenError::new(StatusCode::NOT_FOUND, "unknown", refused));
        };
        let entered = Entered(Some(Arc::clone(&namespace)));
        let (connection, id) = (engine.ids.engine_id(), engine.ids.socket_id());
        let deciding = authorize(
            Arc::clone(&namespace),
            handshake.clone(),
            (id.clone(), connection),
            false,
        );
        let (status, label, refused) = match AssertUnwindSafe(deciding).catch_unwind().await {
            Ok(Ok(data)) => {
                return Ok(Self {
                    server: Arc::clone(server),
                    permit,
                    handshake,
                    namespace: entered,
                    data,
                    connection,
                    id,
                });
            }
            Ok(Err(error)) => {
                let status = match error.refused() {
                    Some(_) => StatusCode::FORBIDDEN,
                    None => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let label = error.label();
                (
                    status,
                    label,
                    error.report(&namespace.place(None, "authorize")),
                )
            }
            Err(_) => {
                engine.metrics.handler_panics.inc();
                let refused = Refused::new("internal error");
                (StatusCode::INTERNAL_SERVER_ERROR, "panic", refused)
            }
        };
        count(name, label);
        Err(OpenError::new(status, label, refused))
    }

    /// The protocol of the connection, and its socket.
    fn client(
        mut self,
        connection: &Arc<Connection>,
        on_open: impl FnOnce(Socket) -> Option<BoxFuture<()>> + Send + 'static,
        on_text: Option<OnText>,
    ) -> (PlainClient, Socket, ConnectionPermit) {
        let namespace = self.namespace.0.take().expect("it was entered");
        let client = Client::new(self.server, connection, self.handshake.clone());
        let connection = Arc::clone(connection);
        let socket = Socket::new(
            self.id,
            namespace,
            connection,
            self.handshake,
            self.data,
            None,
        );
        let client = PlainClient {
            client,
            entering: Some(Box::new(Entering {
                socket: socket.clone(),
                on_open: Box::new(on_open),
            })),
            on_text,
            inbox: None,
        };
        (client, socket, self.permit)
    }
}

type OnText = Box<dyn Fn(Socket, String) -> BoxFuture<()> + Send>;

/// The protocol of a plain connection.
struct PlainClient {
    client: Client,
    /// Until the driver's first turn.
    entering: Option<Box<Entering>>,
    /// Handles the messages of a WebSocket.
    on_text: Option<OnText>,
    /// Exists while a message is handled.
    inbox: Option<Box<Inbox>>,
}

struct Entering {
    socket: Socket,
    on_open: Box<dyn FnOnce(Socket) -> Option<BoxFuture<()>> + Send>,
}

/// Messages of a WebSocket, which are handled one after the other.
#[derive(Default)]
struct Inbox {
    running: Option<BoxFuture<()>>,
    waiting: VecDeque<String>,
    bytes: usize,
}

impl PlainClient {
    /// Continues the running handler, and then the waiting messages.
    fn advance(&mut self, turn: &mut Turn<'_, '_>) {
        while let Some(inbox) = &mut self.inbox {
            let (on_text, socket) = (&self.on_text, self.client.only_socket());
            let step = catch_unwind(AssertUnwindSafe(|| {
                if let Some(running) = &mut inbox.running {
                    if running.as_mut().poll(turn.cx).is_pending() {
                        return false;
                    }
                    inbox.running = None;
                }
                if let (Some(on_text), Some(socket), Some(text)) =
                    (on_text, socket, inbox.waiting.pop_front())
                {
                    inbox.bytes -= text.len();
                    inbox.running = Some(on_text(socket.clone(), text));
                }
                true
            }));
            match step {
                Ok(true) if inbox.running.is_none() => self.inbox = None,
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    let socket = socket.cloned();
                    self.inbox = None;
                    if let Some(socket) = socket {
                        self.client.finish(turn, Done::HandlerPanicked(socket));
                    }
                }
            }
        }
    }
}

impl Protocol for PlainClient {
    fn open(&mut self, turn: &mut Turn<'_, '_>) {
        let Some(entering) = self.entering.take() else {
            return;
        };
        let Entering { socket, on_open } = *entering;
        self.client.enter(turn, &socket);
        match catch_unwind(AssertUnwindSafe(|| on_open(socket.clone()))) {
            Ok(running) if running.is_none() => {}
            Ok(running) => self.inbox.get_or_insert_default().running = running,
            Err(_) => self.client.finish(turn, Done::HandlerPanicked(socket)),
        }
    }

    fn text(&mut self, turn: &mut Turn<'_, '_>, text: &str) -> Result<(), CloseReason> {
        let server = Arc::clone(&self.client.server);
        server.engine.metrics.events_received.inc();
        let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let over = self.client.over(true, || size);
        // A socket that has left takes its connection with it.
        let Some(socket) = self.client.only_socket() else {
            return Ok(());
        };
        let name = socket.namespace_name();
        if let Some(over) = over
            && self
                .client
                .exceed_with(turn, Some(socket), name, None, over)?
        {
            return Ok(());
        }
        let inbox = self.inbox.get_or_insert_default();
        inbox.bytes += text.len();
        inbox.waiting.push_back(text.to_owned());
        self.advance(turn);
        Ok(())
    }

    fn binary(&mut self, turn: &mut Turn<'_, '_>, _: &[u8]) -> Result<(), CloseReason> {
        if turn.connection.skips_binary() {
            return Ok(());
        }
        // The code for data that an endpoint cannot accept (RFC 6455, 7.4.1).
        Err(CloseReason::ParseError {
            kind: "unexpected_binary",
            code: Some(1003),
        })
    }

    fn poll(&mut self, turn: &mut Turn<'_, '_>) {
        self.advance(turn);
        self.client.poll(turn);
        if self.client.only_socket().is_none() {
            turn.connection.close(CloseReason::ServerDisconnect);
        }
    }

    /// Reading pauses while a client has more waiting messages than allowed.
    fn is_ready(&self) -> bool {
        let limits = &self.client.server.engine.config.limits;
        let has_room = |inbox: &Inbox| {
            inbox.bytes < limits.inbox_bytes && inbox.waiting.len() < limits.events_in_flight
        };
        self.inbox.as_deref().is_none_or(has_room) && self.client.is_ready()
    }

    fn close(&mut self, turn: &mut Turn<'_, '_>, reason: CloseReason) {
        if let Some(inbox) = &mut self.inbox {
            inbox.waiting.clear();
        }
        self.client.close(turn, reason);
    }

    fn poll_done(&mut self, turn: &mut Turn<'_, '_>) -> Poll<()> {
        self.advance(turn);
        let done = self.client.poll_done(turn);
        if self.inbox.is_some() {
            return Poll::Pending;
        }
        done
    }
}

impl Drop for PlainClient {
    /// A driver may be dropped with its runtime before its first turn.
    fn drop(&mut self) {
        if let Some(entering) = self.entering.take()
            && entering.socket.mark_gone()
        {
            entering.socket.remove();
        }
    }
}
