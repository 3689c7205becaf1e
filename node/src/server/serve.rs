//! Serving an application over HTTP with the server's own limits.

use std::{
    future::{Future, IntoFuture, pending},
    io,
    pin::{Pin, pin},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower::ServiceExt as _;

use super::server::{PeerAddress, Server};
use crate::close::Limit;

/// How long to wait before the next accept when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An application that is about to be served. Await it to serve; see [`Server::serve`].
#[must_use = "nothing is served until this is awaited"]
pub struct Serve {
    server: Server,
    listener: TcpListener,
    app: Router,
    signal: Signal,
}

impl Serve {
    pub(super) fn new(server: Server, listener: TcpListener, app: Router) -> Self {
        Self {
            server,
            listener,
            app,
            signal: Box::pin(pending()),
        }
    }

    /// When the signal comes, no more connections are accepted, the server is
    /// [closed](Server::close), and serving ends when the last answer is out.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.signal = Box::pin(signal);
        self
    }

    async fn run(self) -> io::Result<()> {
        let Self {
            server,
            listener,
            app,
            mut signal,
        } = self;
        // The receivers are counted: when all are gone, the last HTTP connection is.
        let (stop, stopped) = watch::channel(false);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut signal => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    let (server, app) = (server.clone(), app.clone());
                    let connection = handle(server, app, stream, address, stopped.clone());
                    drop(tokio::spawn(connection));
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        drop(stopped);
        let _ = stop.send(true);
        server.close().await;
        stop.closed().await;
        Ok(())
    }
}

impl IntoFuture for Serve {
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// One HTTP connection, until it ends or becomes a WebSocket.
async fn handle(
    server: Server,
    app: Router,
    stream: TcpStream,
    address: std::net::SocketAddr,
    mut stopped: watch::Receiver<bool>,
) {
    // Small packets go out at once. A socket that is dead already ends with the first read.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let peer: PeerAddress = ConnectInfo(address);
        request.extensions_mut().insert(peer);
        app.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(server.hub().config.limits.header_timeout)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if ended.is_err_and(|error| error.is_timeout()) {
        server.hub().metrics.limit_reached(Limit::HeaderTimeout);
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
