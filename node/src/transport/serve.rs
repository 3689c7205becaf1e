//! Serves HTTP on a listener until a signal comes, and hands sockets over from HTTP to WebSocket.
//!
//! A WebSocket is opened with one write, by the task that carried HTTP. This saves a segment and a
//! wake-up, 0.4 of what a connect costs. The sequence:
//!
//! 1. [`carry`] gives each request a [`Handoff`] and hyper the socket as an [`HttpStream`].
//! 2. The route accepts the upgrade, leaves the opening in the `Handoff` and responds with 101.
//! 3. hyper writes the head of the response. `HttpStream` recognises `HTTP/1.1 101 ` and keeps it.
//! 4. HTTP ends. `carry` runs the opening, which takes the socket and the head from hyper.
//! 5. The session's first packet is queued behind the head; the driver writes both at once.
//!
//! An application that serves the router by itself has no `Handoff`: there hyper writes the head
//! and a task of its own opens the connection.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower::ServiceExt as _;

use super::{
    engine::Engine,
    http_stream::{Handoff, HttpStream},
};
use crate::close::Limit;

/// How long to wait before the next accept when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the signal comes and then closes the server with `close`. Returns when
/// the last response has been written.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: TcpListener,
    app: Router,
    mut signal: Pin<Box<dyn Future<Output = ()> + Send>>,
    close: impl Future<Output = ()>,
) {
    // The receivers are counted: when all are gone, the last HTTP connection is.
    let (stop, stopped) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut signal => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let (engine, app) = (Arc::clone(&engine), app.clone());
                drop(tokio::spawn(carry(
                    engine,
                    app,
                    stream,
                    address,
                    stopped.clone(),
                )));
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
    close.await;
    stop.closed().await;
}

/// Carries one HTTP connection until it ends or becomes a WebSocket.
async fn carry(
    engine: Arc<Engine>,
    app: Router,
    stream: TcpStream,
    address: SocketAddr,
    mut stopped: watch::Receiver<bool>,
) {
    // Small packets go out at once. A socket that is dead already ends with the first read.
    let _ = stream.set_nodelay(true);
    let handoff = Handoff::default();
    let http = HttpStream::new(stream, handoff.clone());
    let left = handoff.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        left.clear();
        request.extensions_mut().insert(left.clone());
        app.clone().oneshot(request.map(Body::new))
    });
    let ended = {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(engine.config.limits.header_timeout)
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
        engine.metrics.limit_reached(Limit::HeaderTimeout);
    }
    // HTTP's own part has been dropped by now. An opening that is left over from a request whose
    // upgrade failed would wait for it for ever.
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
