//! The future that serves an application over HTTP with the server's own limits.

use std::{
    future::{Future, IntoFuture, pending},
    io,
    pin::Pin,
    sync::Arc,
};

use axum::Router;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use super::server::Server;
use crate::transport::{self, preamble::Preamble, tls::Tls};

/// An application that is about to be served. Await it to serve; see [`Server::serve`].
#[must_use = "nothing is served until this is awaited"]
pub struct Serve {
    server: Server,
    listener: TcpListener,
    app: Router,
    preamble: Preamble,
    signal: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Serve {
    pub(super) fn new(server: Server, listener: TcpListener, app: Router) -> Self {
        Self {
            server,
            listener,
            app,
            preamble: Preamble::default(),
            signal: Box::pin(pending()),
        }
    }

    /// Expects a header of the PROXY protocol, version 1 or 2, at the beginning of each
    /// connection. It names the client's address. A connection is closed if it has none
    /// or does not come from a [trusted proxy](crate::Builder::trusted_proxies).
    pub fn with_proxy_protocol(mut self) -> Self {
        self.preamble.proxy_header = true;
        self
    }

    /// Serves over TLS, with HTTP/1.1 only. See [`Tls`].
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.preamble.tls = Some(tls);
        self
    }

    /// Stops on the signal: no more connections are accepted, the server is
    /// [closed](Server::close), and serving ends when the last response has been written.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.signal = Box::pin(signal);
        self
    }
}

impl IntoFuture for Serve {
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            server,
            listener,
            app,
            preamble,
            signal,
        } = self;
        Box::pin(async move {
            // On a worker, because the thread that awaits this may be none and would have to be
            // woken for every connection. The set stops serving when this future is dropped.
            let mut serving = JoinSet::new();
            let engine = Arc::clone(server.engine());
            serving.spawn(async move {
                let close = server.close();
                transport::serve::serve(engine, listener, preamble, app, signal, close).await;
            });
            match serving.join_next().await {
                Some(Err(error)) => Err(io::Error::other(error)),
                _ => Ok(()),
            }
        })
    }
}

/// Resolves when the process is asked to end: by SIGTERM, which systemd and containers send, or by
/// Ctrl-C.
///
/// ```no_run
/// # async fn run(io: roomcast::Server, listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// io.serve(listener, io.router())
///     .with_graceful_shutdown(roomcast::shutdown_signal())
///     .await
/// # }
/// ```
pub async fn shutdown_signal() {
    let end = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        // A signal that cannot be received ends the process by itself.
        Err(_) => pending().await,
    };
    tokio::select! {
        () = end(SignalKind::terminate()) => {}
        () = end(SignalKind::interrupt()) => {}
    }
}

#[cfg(test)]
mod tests {
    use axum::{http::StatusCode, middleware::map_response};
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::*;
    use crate::{Namespace, Server};

    const DEADLINE: Duration = Duration::from_secs(20);

    const REQUEST: &str = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    #[tokio::test]
    async fn a_websocket_is_answered_and_opened_with_one_write() {
        let (server, mut client) = connect(|app| app).await;
        client.write_all(REQUEST.as_bytes()).await.unwrap();
        let mut buffer = [0; 4096];
        let count = timeout(DEADLINE, client.read(&mut buffer)).await;
        let answer = String::from_utf8_lossy(&buffer[..count.unwrap().unwrap()]);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("0{\"sid\":\""), "{answer}");
        drop(client);
        timeout(DEADLINE, server.engine().wait_until_empty())
            .await
            .expect("the connection gives its permit back");
    }

    #[tokio::test]
    async fn an_application_may_answer_something_else_than_the_websocket() {
        let forbid = async |mut response: axum::response::Response| {
            *response.status_mut() = StatusCode::FORBIDDEN;
            response
        };
        let (server, mut client) = connect(|app| app.layer(map_response(forbid))).await;
        for _ in 0..2 {
            client.write_all(REQUEST.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                let read = timeout(DEADLINE, client.read_buf(&mut answer)).await;
                assert!(read.unwrap().unwrap() > 0, "the answer has no end");
            }
            assert!(answer.starts_with(b"HTTP/1.1 403 "));
        }
        drop(client);
        timeout(DEADLINE, server.engine().wait_until_empty())
            .await
            .expect("what was left for the WebSocket is dropped");
    }

    /// A server that runs until the test ends, and a connection to it.
    async fn connect(app: impl FnOnce(Router) -> Router) -> (Server, TcpStream) {
        let main = Namespace::new("/");
        let server = Server::builder().namespace(main).build().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = server.serve(listener, app(server.router()));
        drop(tokio::spawn(serve.into_future()));
        (server, TcpStream::connect(address).await.unwrap())
    }
}
