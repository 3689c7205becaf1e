//! Sockets of plain connections: how one is let in, and what its driver does.
//!
//! ```text
//! open_stream ─ limits, phase ─ authorizers ─▶ connection, driver ─ on_connect started ─▶ Stream
//!      └── any refusal ─▶ OpenError, before anything was opened       dropped Stream ─▶ disconnect
//! ```
//!
//! The driver runs a [`Client`] with one socket, as for any other connection. The socket's connection
//! has no purpose without it, so it is closed when the socket is disconnected.

use std::{
    borrow::Cow,
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use http::{StatusCode, request::Parts};
use roomcast_adapter::SocketId;
use roomcast_protocol::id::EngineId;
use tokio::sync::oneshot;

use super::{
    client::{Client, authorize, count_refused},
    data::Data,
    error::Refused,
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
        routes::{Refusal, admit_plain},
    },
};

/// What a plain connection is opened with.
#[derive(Clone)]
pub struct Open {
    /// The name of the namespace.
    pub namespace: String,
    /// What [`Handshake::auth`](crate::Handshake::auth) is to be, as JSON text: an object.
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

/// Why a plain connection was not opened, in the words of HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct OpenError {
    /// 403 if an authorizer refuses, 404 if there is no such namespace, 429 or 503 if a limit is
    /// reached, 503 while the server drains, 500 if an authorizer fails.
    pub status: StatusCode,
    /// The label under which metrics count the refusal.
    pub reason: &'static str,
    /// What the client may know.
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
/// Dropping it closes the connection at once, so the body of a response or a parked request that is
/// dropped because its client has gone leaves nothing behind. A stream that is not polled while events
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
    /// Opens a plain connection whose events this process carries on, as the body of a response or as
    /// the response to a parked request.
    ///
    /// The request is the client's: its headers, query and address become the socket's
    /// [`Handshake`], and limits of connections and addresses count it. The authorizers of the
    /// namespace decide. When this returns, the connect handlers have started.
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
        let connection = Connection::plain(self.engine(), admitted.connection, open.form, None);
        let (client, socket, opened) = admitted.client(&connection);
        let stream = Stream {
            connection: Arc::clone(&connection),
            socket,
        };
        client.start(&connection, Carrier::Stream);
        // A driver that was dropped with its runtime has closed the connection.
        let _ = opened.await;
        Ok(stream)
    }
}

/// A client that was let in, before its connection is opened.
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
            id.clone(),
            connection,
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

    /// The protocol of the connection, its socket, and a signal that the connect handlers have started.
    fn client(
        mut self,
        connection: &Arc<Connection>,
    ) -> (PlainClient, Socket, oneshot::Receiver<()>) {
        let namespace = self.namespace.0.take().expect("it was entered");
        let client = Client::new(self.server, connection, self.handshake.clone());
        let connection = Arc::clone(connection);
        let socket = Socket::new(self.id, namespace, connection, self.handshake, self.data);
        let (signal, opened) = oneshot::channel();
        let client = PlainClient {
            client,
            entering: Some((socket.clone(), signal)),
            permit: Some(self.permit),
        };
        (client, socket, opened)
    }
}

/// The protocol of a plain connection.
struct PlainClient {
    client: Client,
    /// Until the driver's first turn.
    entering: Option<(Socket, oneshot::Sender<()>)>,
    permit: Option<ConnectionPermit>,
}

impl PlainClient {
    fn start(mut self, connection: &Arc<Connection>, carrier: Carrier) {
        let permit = self.permit.take().expect("it is started once");
        connection.engine().opened_plain(carrier);
        driver::spawn(connection, self, permit);
    }
}

impl Protocol for PlainClient {
    fn open(&mut self, turn: &mut Turn<'_, '_>) {
        if let Some((socket, signal)) = self.entering.take() {
            self.client.enter(turn, &socket);
            // Nobody waits if the request was dropped meanwhile.
            let _ = signal.send(());
        }
    }

    fn text(&mut self, _: &mut Turn<'_, '_>, _: &str) -> Result<(), CloseReason> {
        Ok(())
    }

    fn binary(&mut self, _: &mut Turn<'_, '_>, _: &[u8]) -> Result<(), CloseReason> {
        // The code for data that an endpoint cannot accept (RFC 6455, 7.4.1).
        Err(CloseReason::ParseError {
            kind: "unexpected_binary",
            code: Some(1003),
        })
    }

    fn poll(&mut self, turn: &mut Turn<'_, '_>) {
        self.client.poll(turn);
        if self.client.is_vacant() {
            turn.connection.close(CloseReason::ServerDisconnect);
        }
    }

    fn is_ready(&self) -> bool {
        self.client.is_ready()
    }

    fn close(&mut self, turn: &mut Turn<'_, '_>, reason: CloseReason) {
        self.client.close(turn, reason);
    }

    fn poll_done(&mut self, turn: &mut Turn<'_, '_>) -> Poll<()> {
        self.client.poll_done(turn)
    }
}

impl Drop for PlainClient {
    /// A driver may be dropped with its runtime before its first turn.
    fn drop(&mut self) {
        if let Some((socket, _)) = self.entering.take()
            && socket.mark_gone()
        {
            socket.remove();
        }
    }
}
