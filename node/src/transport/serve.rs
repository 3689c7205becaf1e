//! Serves HTTP on a listener until a signal, and hands sockets over from HTTP to WebSocket.
//!
//! A WebSocket is opened with one write, by the task that carried HTTP. This saves a segment and a
//! wake-up, 0.4 of the cost of a connect. The sequence:
//!
//! 0. If the listener expects a [`Preamble`], it is received.
//! 1. [`carry`] gives each request a [`Handoff`] and hyper the socket as an [`HttpStream`].
//! 2. The route accepts the upgrade, leaves the opening in the `Handoff` and responds with 101.
//! 3. hyper writes the head of the response. `HttpStream` recognises `HTTP/1.1 101 ` and keeps it.
//! 4. HTTP ends. `carry` runs the opening, which takes the socket and the head from hyper.
//! 5. The session's first packet is queued after the head; the driver writes both at once.
//!
//! A request that waits for long may leave HTTP for that time; see [`parking`](super::parking).
//!
//! An application that serves the router by itself has no `Handoff`: there hyper writes the head
//! and a separate task opens the connection.
//!
//! **Why the accepting task runs refusals.** Beyond the limit, every refused client would need
//! another descriptor. A few are refused at a time, on descriptors that are kept for that, and a
//! further one takes the place of the oldest. So a flood of clients costs the server no descriptor
//! that a file or Redis needs.
//!
//! **The end.** Each HTTP connection holds a receiver of `stopped`. When the last one
//! is dropped, every response has been written, and `serve` returns.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn, ready},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, response::Response};
use futures_util::future::Either;
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1::{self, Parts},
    service::{Service, service_fn},
};
use hyper_util::rt::TokioTimer;
use rustix::process::{Resource, getrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tower::ServiceExt as _;

use super::{
    client_address::ClientAddress,
    engine::{Engine, Phase},
    http_stream::{Handoff, HttpStream},
    parking::Waiting,
    preamble::Preamble,
    refusals,
    stream::Socket,
};
use crate::close::Limit;

/// How long to wait before the next accept when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The least time between two log lines about that.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// Clients beyond the limit that get a response at the same time. A further one takes the place of
/// the oldest, which is closed without a response.
const REFUSALS: usize = 8;

/// How long refusing a client may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Descriptors that are kept for everything but clients: a sixteenth of the limit of open files,
/// within these bounds.
const RESERVED: std::ops::RangeInclusive<usize> = 24..=256;

/// Accepts connections until the signal, and then closes the server with `close`. Returns when
/// the last response has been written.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: TcpListener,
    preamble: Preamble,
    app: Router,
    mut signal: Pin<Box<dyn Future<Output = ()> + Send>>,
    close: impl Future<Output = ()>,
) {
    let limit = socket_limit(&engine);
    let refusal = refusals::refusal(&engine);
    let preamble = Arc::new(preamble);
    let mut refusals = Refusals::default();
    let mut silent_until = engine.clock.now();
    // The receivers are counted: when all are dropped, the last HTTP connection has ended.
    let (stop, stopped) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut signal => break,
            never = refusals.run() => match never {},
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let sockets = engine.sockets().saturating_sub(refusals.0.len());
                let http = HttpConnection::new(&engine, &preamble);
                let carry =
                    |app: &Router| carry(http, (stream, address), app.clone(), stopped.clone());
                if sockets < limit {
                    drop(tokio::spawn(carry(&app)));
                    continue;
                }
                engine.metrics.limit_reached(Limit::Sockets);
                refusals.add(carry(&refusal));
            }
            // The client went away while it waited to be accepted; the next one is not
            // concerned.
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                let now = engine.clock.now();
                if now >= silent_until {
                    tracing::error!(%error, "cannot accept connections; retrying");
                    silent_until = now.after(COMPLAINT_PAUSE);
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // The own receiver, too, since the end waits for all receivers to be gone.
    drop((listener, refusals, stopped));
    engine.enter(Phase::Closing);
    let _ = stop.send(true);
    close.await;
    stop.closed().await;
}

/// The clients that are being refused, the oldest first. The accepting task runs them, so that the
/// number of their sockets is bounded however fast clients come.
#[derive(Default)]
struct Refusals(VecDeque<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Refusals {
    fn add(&mut self, refused: impl Future<Output = ()> + Send + 'static) {
        if self.0.len() == REFUSALS {
            self.0.pop_front();
        }
        let bounded = async { drop(timeout(REFUSAL_TIMEOUT, refused).await) };
        self.0.push_back(Box::pin(bounded));
    }

    async fn run(&mut self) -> Infallible {
        poll_fn(|cx| {
            self.0
                .retain_mut(|refused| refused.as_mut().poll(cx).is_pending());
            Poll::Pending
        })
        .await
    }
}

/// The number of sockets that may be open: the configured limit, or less if the limit of open
/// files leaves less.
/// A server that runs out of descriptors can open neither a file nor a connection to
/// Redis, so clients get only the rest.
fn socket_limit(engine: &Engine) -> usize {
    let limits = &engine.config.limits;
    let mut limit = limits.sockets;
    if let Some(files) = getrlimit(Resource::Nofile).current {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let reserved = (files / 16).clamp(*RESERVED.start(), *RESERVED.end());
        let left = files.saturating_sub(open + reserved).max(1);
        if left < limits.connections.min(limit) {
            tracing::warn!(
                open_files = files,
                sockets = left,
                "the limit of open files leaves fewer connections than the server may have; raise \
                 it, or expect that further clients are refused with 503"
            );
        }
        limit = limit.min(left);
    }
    let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    engine.metrics.socket_limit.set(gauge(limit));
    engine
        .metrics
        .connection_limit
        .set(gauge(limits.connections));
    limit
}

/// An HTTP connection, counted until it ends or has become a WebSocket.
struct HttpConnection {
    engine: Arc<Engine>,
    preamble: Arc<Preamble>,
}

impl HttpConnection {
    fn new(engine: &Arc<Engine>, preamble: &Arc<Preamble>) -> Self {
        engine.metrics.http_connections.inc();
        Self {
            engine: Arc::clone(engine),
            preamble: Arc::clone(preamble),
        }
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.engine.metrics.http_connections.dec();
    }
}

/// Carries one HTTP connection until it ends or becomes a WebSocket.
async fn carry(
    http: HttpConnection,
    (stream, address): (TcpStream, SocketAddr),
    app: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let engine = Arc::clone(&http.engine);
    // Small packets go out at once. A socket that is dead already ends with the first read.
    let _ = stream.set_nodelay(true);
    let (stream, client) = if http.preamble.is_empty() {
        (Socket::Left(stream), ClientAddress::direct(address, false))
    } else {
        let stopping = async { drop(stopped.wait_for(|stopped| *stopped).await) };
        // Boxed, because most listeners expect nothing and every connection would carry its size.
        let received = Box::pin(http.preamble.receive(&engine, stream, address, stopping)).await;
        let Some(received) = received else {
            return;
        };
        received
    };
    let handoff = Handoff::default();
    let mut stream = HttpStream::new(stream, Arc::clone(&engine), handoff.clone());
    let service = service(app, &engine, client, handoff.clone());
    let ended = loop {
        // Boxed, so that its space is free while a request is parked.
        let mut connection = Box::new(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(engine.config.limits.header_timeout)
                .serve_connection(stream, service.clone())
                .with_upgrades(),
        );
        let step = tokio::select! {
            // Often the first request has arrived already; then the stop need not be awaited.
            biased;
            step = step(&mut connection, &handoff) => step,
            () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
                Pin::new(&mut *connection).graceful_shutdown();
                tokio::select! {
                    step = step(&mut connection, &handoff) => step,
                    // The client keeps the server waiting, not the application.
                    () = handoff.abandoned() => Step::Ended(Ok(())),
                }
            }
        };
        let waiting = match step {
            Step::Ended(ended) => break ended,
            Step::Parked(waiting) => waiting,
        };
        // Frees the box, too.
        let parts = { connection }.into_parts();
        let Some(Parts { io, read_buf, .. }) = parts else {
            return;
        };
        stream = io;
        stream.unread(&read_buf);
        drop(read_buf);
        let Some(response) = respond(waiting, &mut stream).await else {
            return;
        };
        handoff.respond(response);
        stream.repeat_request(handoff.closes() || *stopped.borrow());
    };
    if ended.is_err_and(|error| error.is_timeout()) {
        engine.metrics.limit_reached(Limit::HeaderTimeout);
    }
    // HTTP's own part has been dropped by now. An opening that is left over from a request whose
    // upgrade failed would wait for it for ever.
    handoff.finish().await;
}

/// The service that receives a connection's requests from hyper.
fn service(
    app: Router,
    engine: &Engine,
    client: ClientAddress,
    handoff: Handoff,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ use<> {
    // Facts that follow from the address of the connection need no entry of their own.
    let is_direct = engine.config.trusted_proxies.is_empty() && !client.is_secure();
    let proxies = Arc::clone(&engine.config.trusted_proxies);
    service_fn(move |mut request: Request<Incoming>| {
        handoff.begin_request(&request);
        let response = match handoff.take_response() {
            Some(response) => Either::Left(ready(Ok(response))),
            None => {
                request
                    .extensions_mut()
                    .insert(ConnectInfo(client.address()));
                if !is_direct {
                    let client = proxies.client(client, request.headers());
                    request.extensions_mut().insert(client);
                }
                request.extensions_mut().insert(handoff.clone());
                let request = request.map(|body| handoff.receive(body));
                Either::Right(app.clone().oneshot(request))
            }
        };
        let handoff = handoff.clone();
        async move { response.await.map(|response| handoff.track(response)) }
    })
}

/// How far HTTP has come.
enum Step {
    Ended(hyper::Result<()>),
    /// The response to the last request is awaited without HTTP.
    Parked(Waiting),
}

async fn step(
    connection: &mut (impl Future<Output = hyper::Result<()>> + Unpin),
    handoff: &Handoff,
) -> Step {
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Step::Ended(ended)),
        Poll::Pending => match handoff.take_parked(cx) {
            Some(waiting) => Poll::Ready(Step::Parked(waiting)),
            None => Poll::Pending,
        },
    })
    .await
}

/// Waits for the response to a request that is parked, unless the client goes.
async fn respond(mut waiting: Waiting, stream: &mut HttpStream) -> Option<Response<Body>> {
    poll_fn(|cx| match waiting.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => stream.poll_gone(cx).map(|()| None),
    })
    .await
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
