//! Serving an application over HTTP with the server's own limits.

use std::{
    future::{Future, IntoFuture, pending},
    io,
    pin::{Pin, pin},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tower::ServiceExt as _;

use super::server::{PeerAddress, Server};
use crate::{
    close::Limit,
    transport::http_stream::{Handoff, HttpStream},
};

/// Pause before the next accept when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A future that serves an application. See [`Server::serve`].
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

    /// Shuts down when `signal` resolves: stops accepting connections, [closes](Server::close) the
    /// server, and resolves when the last response has been sent.
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
        // Each HTTP connection holds a receiver, so the channel closes with the last of them.
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
        Box::pin(async {
            // On a worker, because the thread that awaits this may not be one and would have to be
            // woken for every connection. Dropping the future drops the set, which aborts the task.
            let mut serving = JoinSet::new();
            serving.spawn(self.run());
            match serving.join_next().await {
                Some(Ok(served)) => served,
                Some(Err(error)) => Err(io::Error::other(error)),
                None => Ok(()),
            }
        })
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
    let handoff = Handoff::default();
    let http = HttpStream::new(stream, handoff.clone());
    let left = handoff.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let peer: PeerAddress = ConnectInfo(address);
        request.extensions_mut().insert(peer);
        left.clear();
        request.extensions_mut().insert(left.clone());
        app.clone().oneshot(request.map(Body::new))
    });
    let ended = {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(server.engine().config.limits.header_timeout)
            .serve_connection(http, service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            // The first request has often come already; then nobody waits for the stop.
            biased;
            ended = connection.as_mut() => ended,
            () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if ended.is_err_and(|error| error.is_timeout()) {
        server.engine().metrics.limit_reached(Limit::HeaderTimeout);
    }
    // HTTP's own part is dropped by now: what was left would wait for ever for one that failed.
    handoff.finish().await;
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

#[cfg(test)]
mod tests {
    use axum::{http::StatusCode, middleware::map_response};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
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
