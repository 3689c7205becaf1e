//! The internal port: liveness, readiness, metrics, the admin page, and the HTTP API
//! unless it has its own listener.
//!
//! With certificates, it uses TLS. Processes on this machine may connect without it, because
//! `roomcast drain`, `roomcast doctor` and health checks of containers do so, and their traffic
//! passes no network.
//!
//! It has a separate thread and runtime, so it responds while all workers are busy, because an
//! operator needs it most when the server is saturated. It reads two things from the server
//! (`Figures`), and changes one: a process of this machine may request a drain. Calls of the API
//! are carried out on the workers.
//!
//! ```text
//!  thread `internal` ── /livez, /readyz, /metrics: answered here
//!                    ── /drain ───────────────────► wakes `run`, which drains
//!                    ── /api, /admin ─────────────► carried out on the workers; the response here
//! ```

mod attempts;
mod connections;
mod follow;
mod metrics;
mod page;
mod status;
mod view;

use std::{
    borrow::Cow,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use roomcast::{Server, Tls};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Handle,
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use self::connections::Connections;
pub(crate) use self::{page::Pages, view::View};
use super::api;

/// Time that a client of the internal port may take to send a request, also after another one. It
/// is longer than the usual intervals of scrapers, which keep their connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The longest life of a connection, regardless of its traffic. It limits the resources that a slow
/// reader can hold.
const LIFETIME: Duration = Duration::from_secs(600);

/// How long to wait before the next accept when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The figures that the internal port reads from the server.
pub(crate) trait Figures: Send + Sync + 'static {
    /// The reason why a balancer should send no clients here, if there is one.
    fn obstacle(&self) -> Option<String>;
    /// All metrics in Prometheus' text format. `is_ready` is the result of `/readyz`.
    fn metrics(&self, is_ready: bool) -> String;
}

/// The state of the process: starting, then serving, then draining, never back. `run`
/// changes it, and the internal port reads it.
#[derive(Default)]
pub(crate) struct Health {
    is_draining: AtomicBool,
    was_asked_to_drain: AtomicBool,
    drain_request: Notify,
    /// Why the server is not built yet.
    waiting: Mutex<Option<String>>,
    figures: OnceLock<Box<dyn Figures>>,
    /// The paths below `/api`, once the server is built.
    api: OnceLock<Router>,
    /// The paths below `/admin`, once the server is built.
    pages: OnceLock<Router>,
}

impl Health {
    /// The server cannot be built yet, for this reason.
    pub(crate) fn waiting(&self, reason: String) {
        *self.waiting.lock() = Some(reason);
    }

    /// The server is built and about to accept clients.
    pub(crate) fn serving(&self, figures: impl Figures) {
        let is_first = self.figures.set(Box::new(figures)).is_ok();
        debug_assert!(is_first, "a process serves once");
    }

    /// The internal port serves these paths below `/api` from now on.
    pub(crate) fn serving_api(&self, router: Router) {
        let is_first = self.api.set(router).is_ok();
        debug_assert!(is_first, "a process serves once");
    }

    /// The internal port serves the admin page from now on.
    pub(crate) fn serving_pages(&self, pages: &Arc<Pages>) {
        let is_first = self.pages.set(pages.router()).is_ok();
        debug_assert!(is_first, "a process serves once");
    }

    /// The server accepts no new clients from now on.
    pub(crate) fn draining(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Makes the process drain. Only the first request counts.
    /// The request may be repeated, which must not count as a further signal.
    fn request_drain(&self) {
        if !self.was_asked_to_drain.swap(true, Ordering::Relaxed) {
            self.drain_request.notify_one();
        }
    }

    /// Resolves once, when somebody has asked the process to drain.
    pub(crate) async fn drain_requested(&self) {
        self.drain_request.notified().await;
    }

    /// The reason why a balancer should send no clients here: one word, or the server's own reason.
    fn obstacle(&self) -> Option<Cow<'static, str>> {
        match self.figures.get() {
            // A node that drains is not ready, however well it works.
            _ if self.is_draining.load(Ordering::Relaxed) => Some("draining".into()),
            None => match &*self.waiting.lock() {
                Some(reason) => Some(format!("starting: {reason}").into()),
                None => Some("starting".into()),
            },
            Some(figures) => figures.obstacle().map(Cow::from),
        }
    }
}

/// The running internal port. Dropping it ends its thread.
pub(crate) struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    runtime: Handle,
}

impl Admin {
    /// Serves an already bound listener on a new thread.
    pub(crate) fn start(
        listener: TcpListener,
        health: Arc<Health>,
        tls: Option<&Tls>,
    ) -> io::Result<Self> {
        Self::start_with(listener, router(health), tls, IDLE_TIMEOUT)
    }

    /// Serves these paths on an already bound listener and a new thread.
    pub(crate) fn serve(
        listener: TcpListener,
        router: Router,
        tls: Option<&Tls>,
    ) -> io::Result<Self> {
        Self::start_with(listener, router, tls, IDLE_TIMEOUT)
    }

    fn start_with(
        listener: TcpListener,
        router: Router,
        tls: Option<&Tls>,
        idle_timeout: Duration,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let serving = Serving {
            router,
            tls: tls.map(|tls| TlsAcceptor::from(tls.server_config())),
            idle_timeout,
        };
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let handle = runtime.handle().clone();
        let thread = thread::Builder::new()
            .name("internal".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(serve(listener, serving, stopped)) {
                    tracing::error!(%error, "the internal port failed");
                }
            })?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
            runtime: handle,
        })
    }

    /// Reads the figures of the node for admin pages on this thread, because that may take a while.
    /// Must be called in the runtime of the workers, which emit them.
    pub(crate) fn show(&self, view: &Arc<View>, server: &Server, health: &Arc<Health>) {
        let (view, server, health) = (Arc::clone(view), server.clone(), Arc::clone(health));
        self.runtime
            .spawn(view.run(server, health, Handle::current()));
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The panic hook has logged a panic of the thread already.
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: TcpListener,
    serving: Serving,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let serving = Arc::new(serving);
    let connections = Arc::new(Connections::new());
    loop {
        // Not graceful, because a scraper that keeps its connection open must not delay the exit.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return Ok(()),
        };
        let Ok((stream, peer)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let serving = Arc::clone(&serving);
        connections.run(|has_asked| async move {
            let connection = serving.connection(stream, peer, &has_asked);
            drop(timeout(LIFETIME, connection).await);
        });
    }
}

/// The state that the connections of a listener share.
struct Serving {
    router: Router,
    tls: Option<TlsAcceptor>,
    idle_timeout: Duration,
}

impl Serving {
    /// Sets the flag with the first request.
    async fn connection(&self, stream: TcpStream, peer: SocketAddr, has_asked: &AtomicBool) {
        let is_local = peer.ip().to_canonical().is_loopback();
        match &self.tls {
            Some(tls) if !is_local || self.begins_tls(&stream).await => {
                match timeout(self.idle_timeout, tls.accept(stream)).await {
                    Ok(Ok(stream)) => self.requests(stream, peer, has_asked).await,
                    Ok(Err(error)) => {
                        tracing::debug!(%peer, %error, "a TLS handshake of the internal port failed");
                    }
                    Err(_) => {
                        tracing::debug!(%peer, "a TLS handshake of the internal port took too long")
                    }
                }
            }
            _ => self.requests(stream, peer, has_asked).await,
        }
    }

    /// Whether the first byte is that of a TLS handshake. No request of HTTP begins with it.
    async fn begins_tls(&self, stream: &TcpStream) -> bool {
        let mut first = [0];
        let peeked = timeout(self.idle_timeout, stream.peek(&mut first)).await;
        matches!(peeked, Ok(Ok(1))) && first == [TLS_HANDSHAKE]
    }

    async fn requests(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
        has_asked: &AtomicBool,
    ) {
        let service = service_fn(|mut request: http::Request<Incoming>| {
            has_asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer(peer));
            self.router.clone().oneshot(request.map(Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle_timeout)
            .serve_connection(TokioIo::new(stream), service);
        // A client that disconnects is not a failure of the port.
        drop(connection.await);
    }
}

/// The type of the first record of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/livez", get(async || plain(StatusCode::OK, "alive")))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/drain", post(drain))
        .fallback(other)
        .with_state(health)
}

/// The API and the admin page, which have their own errors, and everything else.
async fn other(State(health): State<Arc<Health>>, request: Request) -> Response {
    let path = request.uri().path();
    let router = match path {
        "/admin" => &health.pages,
        _ if path.starts_with("/admin/") => &health.pages,
        _ if path.starts_with("/api/") || path.starts_with("/pakyow/") => &health.api,
        _ => return plain(StatusCode::NOT_FOUND, PATHS),
    };
    match router.get() {
        Some(router) => router.clone().oneshot(request).await.into_response(),
        None if health.figures.get().is_some() => plain(StatusCode::NOT_FOUND, PATHS),
        None => api::starting(),
    }
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    match health.obstacle() {
        None => plain(StatusCode::OK, "ready"),
        Some(obstacle) => plain(StatusCode::SERVICE_UNAVAILABLE, &obstacle),
    }
}

/// The address of the client of the internal port.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

/// Begins to drain. This request can stop the node, so it must come from the
/// same machine. A page in a browser on this machine cannot set the header without
/// permission, which nothing here gives. A page whose name resolves to this machine needs no
/// permission, but a browser names its origin in every POST.
async fn drain(
    State(health): State<Arc<Health>>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return plain(
            StatusCode::FORBIDDEN,
            "only this machine may drain the node",
        );
    }
    if !headers.contains_key(DRAIN_HEADER) || headers.contains_key(header::ORIGIN) {
        return plain(StatusCode::FORBIDDEN, "use `roomcast drain`");
    }
    health.request_drain();
    plain(StatusCode::ACCEPTED, "draining")
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    match health.figures.get() {
        Some(figures) => {
            let text = figures.metrics(health.obstacle().is_none());
            ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
        }
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "starting"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

/// The header of a request to drain.
pub(super) const DRAIN_HEADER: &str = "roomcast-drain";

const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PATHS: &str = "not found; available are /livez, /readyz, /metrics, /admin/ and, unless it has its own listener, /api/";

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        sync::mpsc,
    };

    use super::*;

    struct Fake(Arc<AtomicBool>);

    impl Figures for Fake {
        fn obstacle(&self) -> Option<String> {
            let flows = self.0.load(Ordering::Relaxed);
            (!flows).then(|| "interrupted: no echo".to_owned())
        }

        fn metrics(&self, is_ready: bool) -> String {
            format!("ready {is_ready}\n")
        }
    }

    fn start() -> (Admin, Arc<Health>) {
        let health = Arc::new(Health::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (
            Admin::start(listener, Arc::clone(&health), None).unwrap(),
            health,
        )
    }

    #[test]
    fn a_client_that_sends_no_request_is_not_kept() {
        let health = Arc::new(Health::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let idle_timeout = Duration::from_millis(50);
        let admin = Admin::start_with(listener, router(health), None, idle_timeout).unwrap();
        for request in ["", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let mut stream = TcpStream::connect(admin.address()).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            // Returns when the server closes the connection.
            let mut received = Vec::new();
            drop(stream.read_to_end(&mut received));
            assert_eq!(received.is_empty(), request.is_empty());
        }
    }

    /// Certificates are made by openssl, so the tests of the program have what needs one.
    #[tokio::test]
    async fn only_a_handshake_begins_tls() {
        let serving = Serving {
            router: router(Arc::default()),
            tls: None,
            idle_timeout: Duration::from_secs(30),
        };
        for (bytes, is_tls) in [
            (&[0x16, 3, 1][..], true),
            (b"GET / HTTP/1.1", false),
            (b"", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(bytes).unwrap();
            drop(client);
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            assert_eq!(serving.begins_tls(&stream).await, is_tls, "{bytes:?}");
        }
    }

    /// Requests a path. Returns the status, the head and the body.
    fn ask(admin: &Admin, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(admin.address()).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head[9..12].parse().unwrap(),
            head.to_lowercase(),
            body.to_owned(),
        )
    }

    #[test]
    fn readiness_says_why_not() {
        let (admin, health) = start();
        let ready = || (ask(&admin, "/readyz").0, ask(&admin, "/readyz").2);
        assert_eq!(ready(), (503, "starting\n".to_owned()));
        health.waiting("no Redis".to_owned());
        assert_eq!(ready(), (503, "starting: no Redis\n".to_owned()));
        let flows = Arc::new(AtomicBool::new(true));
        health.serving(Fake(Arc::clone(&flows)));
        assert_eq!(ready(), (200, "ready\n".to_owned()));
        flows.store(false, Ordering::Relaxed);
        assert_eq!(ready(), (503, "interrupted: no echo\n".to_owned()));
        flows.store(true, Ordering::Relaxed);
        health.draining();
        assert_eq!(ready(), (503, "draining\n".to_owned()));
    }

    #[test]
    fn a_page_cannot_drain_the_node_even_if_its_name_resolves_to_this_machine() {
        let (admin, health) = start();
        let drain = |headers: &str| {
            let mut stream = TcpStream::connect(admin.address()).unwrap();
            write!(
                stream,
                "POST /drain HTTP/1.1\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer[9..12].to_owned()
        };
        let rebound = "Host: evil.example:3001\r\nOrigin: http://evil.example:3001\r\n";
        let form = "Host: 127.0.0.1:3001\r\nOrigin: null\r\n";
        for page in [rebound, form] {
            assert_eq!(drain(page), "403");
            assert_eq!(drain(&format!("{page}{DRAIN_HEADER}: 1\r\n")), "403");
        }
        assert!(!health.was_asked_to_drain.load(Ordering::Relaxed));
        let own = format!("Host: 127.0.0.1:3001\r\n{DRAIN_HEADER}: 1\r\n");
        assert_eq!(drain(&own), "202");
    }

    #[test]
    fn liveness_is_given_in_every_state() {
        let (admin, health) = start();
        assert_eq!(ask(&admin, "/livez").0, 200);
        health.draining();
        assert_eq!(ask(&admin, "/livez").0, 200);
    }

    #[test]
    fn metrics_are_served_in_the_format_of_prometheus() {
        let (admin, health) = start();
        assert_eq!(ask(&admin, "/metrics").0, 503);
        health.serving(Fake(Arc::new(AtomicBool::new(true))));
        let (status, head, body) = ask(&admin, "/metrics");
        assert_eq!((status, body.as_str()), (200, "ready true\n"));
        assert!(
            head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
            "{head}"
        );
        health.draining();
        assert_eq!(ask(&admin, "/metrics").2, "ready false\n");
    }

    #[test]
    fn an_unknown_path_lists_the_known_ones() {
        let (admin, _health) = start();
        let (status, _, body) = ask(&admin, "/health");
        assert_eq!(status, 404);
        assert!(
            ["/livez", "/readyz", "/metrics"]
                .iter()
                .all(|path| body.contains(path)),
            "{body}"
        );
    }

    #[test]
    fn it_answers_while_every_worker_is_blocked() {
        let workers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (admin, _health) = start();
        let (blocked, is_blocked) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        workers.spawn(async move {
            blocked.send(()).unwrap();
            let _ = released.recv();
        });
        is_blocked.recv().unwrap();
        assert_eq!(ask(&admin, "/livez").0, 200);
        drop(release);
    }

    #[test]
    fn dropping_it_frees_the_port_though_a_client_stays() {
        let (admin, _health) = start();
        let address = admin.address();
        let _idle = TcpStream::connect(address).unwrap();
        assert_eq!(ask(&admin, "/livez").0, 200);
        drop(admin);
        assert!(TcpStream::connect(address).is_err());
    }
}
