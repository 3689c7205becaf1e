//! A server in the test's process, on a port of its own.

use std::{io, net::SocketAddr};

use axum::Router;
use roomcast::{Builder, Namespace, Serve, Server, Socket};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc::{self, UnboundedReceiver},
    task::JoinHandle,
};

use super::{WebSocket, eventually, within};

/// A server that serves until it is dropped.
pub(crate) struct TestServer {
    pub(crate) io: Server,
    pub(crate) address: SocketAddr,
    serving: JoinHandle<io::Result<()>>,
}

impl TestServer {
    pub(crate) async fn start(builder: Builder) -> Self {
        Self::start_with(builder, |serve| serve).await
    }

    /// A server with this namespace alone.
    pub(crate) async fn of(namespace: Namespace) -> Self {
        Self::start(Server::builder().namespace(namespace)).await
    }

    /// The same with the sockets that connect to the namespace.
    pub(crate) async fn with_sockets(namespace: Namespace) -> (Self, Sockets) {
        let (namespace, sockets) = Sockets::of(namespace);
        (Self::of(namespace).await, sockets)
    }

    /// A server whose listener has settings of its own.
    pub(crate) async fn start_with(
        builder: Builder,
        listening: impl FnOnce(Serve) -> Serve,
    ) -> Self {
        Self::start_both(builder, listening, Server::router).await
    }

    /// A server with an application of its own.
    pub(crate) async fn start_app(builder: Builder, app: impl FnOnce(&Server) -> Router) -> Self {
        Self::start_both(builder, |serve| serve, app).await
    }

    /// The same with settings of the listener.
    pub(crate) async fn start_both(
        builder: Builder,
        listening: impl FnOnce(Serve) -> Serve,
        app: impl FnOnce(&Server) -> Router,
    ) -> Self {
        let io = builder.build().await.unwrap();
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let serving = listening(io.serve(listener, app(&io)));
        let serving = tokio::spawn(serving.into_future());
        Self {
            io,
            address,
            serving,
        }
    }

    /// A client that does nothing wrong, to see that it goes on being served.
    pub(crate) async fn bystander(&self) -> WebSocket {
        WebSocket::connect(self.address).await
    }

    /// The same from another address of the loopback network.
    pub(crate) async fn bystander_from(&self, address: [u8; 4]) -> WebSocket {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        let stream = socket.connect(self.address).await.unwrap();
        WebSocket::connect_over(stream).await
    }

    /// Begins to close the server.
    pub(crate) fn close(&self) -> JoinHandle<()> {
        let io = self.io.clone();
        tokio::spawn(async move { io.close().await })
    }

    /// The value of one time series, `name{label="value"}`; zero if there is none yet.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        metric(&self.io, series)
    }

    /// How many handlers failed, whatever the event.
    pub(crate) fn handler_errors(&self) -> u64 {
        let metrics = self.io.metrics();
        let series = "roomcast_handler_errors_total{";
        let values = metrics.lines().filter(|line| line.starts_with(series));
        values
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// How often a limit was reached.
    pub(crate) fn reached(&self, limit: &str) -> u64 {
        self.metric(&format!(
            "roomcast_limit_reached_total{{limit=\"{limit}\"}}"
        ))
    }

    /// How many connections were closed for a reason.
    pub(crate) fn closed(&self, reason: &str) -> u64 {
        self.metric(&format!(
            "roomcast_connections_closed_total{{reason=\"{reason}\"}}"
        ))
    }

    /// Waits until this many connections, and no more, were closed for a reason.
    pub(crate) async fn closes(&self, reason: &str, count: u64) {
        let what = format!("{count} connections are closed: {reason}");
        eventually(&what, || self.closed(reason) >= count).await;
        assert_eq!(self.closed(reason), count, "{reason}");
    }

    /// Waits until nothing is left of any client: no connection, no socket, no room.
    pub(crate) async fn assert_empty(&self) {
        eventually("the server is empty", || {
            let metrics = self.io.metrics();
            let of_clients = |line: &&str| {
                ["connections{", "sockets{", "rooms{"].iter().any(|name| {
                    line.strip_prefix("roomcast_")
                        .is_some_and(|rest| rest.starts_with(name))
                })
            };
            self.io.connections() == 0
                && metrics
                    .lines()
                    .filter(of_clients)
                    .all(|line| line.ends_with(" 0"))
        })
        .await;
        // An error says that there is no main namespace.
        let sockets = self.io.of("/").socket_ids().await.unwrap_or_default();
        assert!(sockets.is_empty(), "{sockets:?}");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A listener on a port that the system chooses.
pub(crate) async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// The value of one time series of a server; zero if there is none yet.
pub(crate) fn metric(io: &Server, series: &str) -> u64 {
    let metrics = io.metrics();
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

/// The main namespace with an event that answers what it was asked.
pub(crate) fn main_namespace() -> Namespace {
    echoing("/")
}

pub(crate) fn echoing(name: &str) -> Namespace {
    Namespace::new(name).on("echo", async |_: Socket, text: String| text)
}

/// Hands over the sockets that connect, so that a test can act on the server's side.
pub(crate) struct Sockets(UnboundedReceiver<Socket>);

impl Sockets {
    pub(crate) fn of(namespace: Namespace) -> (Namespace, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let namespace = namespace.on_connect(move |socket: Socket| {
            // Nobody wants to know of sockets that connect after the end of the test.
            let _ = sender.send(socket);
            async {}
        });
        (namespace, Self(receiver))
    }

    pub(crate) async fn next(&mut self) -> Socket {
        within("a socket connects", self.0.recv()).await.unwrap()
    }

    /// Connects a client, and returns both ends.
    pub(crate) async fn connect(&mut self, server: &TestServer) -> (WebSocket, Socket) {
        let client = WebSocket::connect(server.address).await;
        (client, self.next().await)
    }
}
