//! The requests of one hook to its backend: limits, the circuit breaker, the request and its
//! response.
//!
//! ```text
//! call ─► circuit open? ─► free request? ─► POST ─► status, body ─► list of operations
//!            │                │  queue full?   │        │                │
//!            ▼                ▼                ▼        ▼                ▼
//!        Unavailable      Overloaded       Unreachable, Timeout  TooLarge, Invalid
//! ```
//!
//! On each failure, the caller gets an error. The caller's connection is not affected: it polls a
//! future like that of any handler.
//!
//! **Why so many limits.** A backend that has become slow must not become slower because of a
//! growing queue. So the number of requests at a time is fixed, the queue is short, and one timeout
//! covers both the wait and the request: the client gives up then, too. After consecutive failures,
//! the circuit opens, and clients get their error at once instead of after the timeout.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use prometheus::{Histogram, IntCounter, IntGauge};
use roomcast::Refused;
use serde_json::value::RawValue;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{sleep, timeout},
};

use super::{
    breaker::{Breaker, Change, Passed},
    metrics::Metrics,
    request::Selection,
    settings::{Settings, Target},
    signature::{self, Secret},
};
use crate::gateway::{
    line_limit::LineLimit,
    operations::{self, Operation, Problem},
    outbound::{self, Http1Client, Http1Error, ResponseError, Versions},
    traces::{self, Span},
};

/// The largest response, in bytes.
/// It is held in memory, up to `concurrency` times.
const MAX_RESPONSE: usize = 4 << 20;

/// How long to wait for a connection to the backend, which the hook's own timeout may shorten.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a request has no usable response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no response in time")]
    Timeout,
    #[error("{0}")]
    Unreachable(String),
    #[error("the backend responded with status {0}")]
    Status(StatusCode),
    #[error("too many requests wait already")]
    Overloaded,
    #[error("the circuit is open because requests have failed")]
    CircuitOpen,
    #[error("the response is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the response is not a list of operations: {0}")]
    Invalid(#[from] Problem),
    #[error("the request cannot be written: {0}")]
    Request(Box<dyn std::error::Error + Send + Sync>),
    #[error("operation {index} of the response failed: {error}")]
    Operation { index: usize, error: String },
}

impl Failure {
    /// The word for it in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Status(_) => "status",
            Self::Overloaded => "overloaded",
            Self::CircuitOpen => "circuit_open",
            Self::TooLarge(_) => "too_large",
            Self::Invalid(_) => "invalid",
            Self::Request(_) => "request",
            Self::Operation { .. } => "operation",
        }
    }

    /// The part that the client may know.
    /// Names of servers and texts of the backend stay in the log.
    pub(super) fn refused(&self) -> Refused {
        let (message, code) = match self {
            Self::Timeout => ("the application did not respond in time", "timeout"),
            Self::Overloaded => ("the application is overloaded", "overloaded"),
            Self::Unreachable(_) | Self::Status(_) | Self::CircuitOpen => {
                ("the application is unavailable", "unavailable")
            }
            Self::TooLarge(_) | Self::Invalid(_) | Self::Request(_) | Self::Operation { .. } => {
                ("internal error", "internal")
            }
        };
        Refused::new(message).data(&serde_json::json!({ "code": code }))
    }

    /// Whether it shows that the backend cannot serve.
    /// A wrong or too large response comes from a running backend, so it does not open the
    /// circuit. Bytes that are not HTTP do: they come from another service on the port, or from
    /// a backend that broke down while it was responding.
    fn is_outage(&self) -> bool {
        match self {
            Self::Timeout | Self::Unreachable(_) => true,
            Self::Status(status) => status.is_server_error(),
            _ => false,
        }
    }
}

/// Reads the operations of a response, which may be empty.
/// An application that only takes note need not write `[]`.
pub(super) fn read_list(response: &[u8]) -> Result<Vec<Operation>, Problem> {
    if response.is_empty() {
        return Ok(Vec::new());
    }
    let json = serde_json::from_slice::<&RawValue>(response);
    operations::read(json.map_err(|error| Problem::new("", error.to_string()))?)
}

/// Reads a list of operations for each of `count` events. The response may be empty. An error in
/// one list affects only its event.
pub(super) fn read_lists(
    response: &[u8],
    count: usize,
) -> Result<Vec<Result<Vec<Operation>, Problem>>, Problem> {
    if response.is_empty() {
        return Ok(Vec::new());
    }
    let lists = serde_json::from_slice::<Vec<&RawValue>>(response);
    let lists = lists.map_err(|error| Problem::new("", error.to_string()))?;
    // It is unknown which list belongs to which event, so all are refused.
    if !lists.is_empty() && lists.len() != count {
        let found = lists.len();
        let what = format!("{found} lists of operations for {count} events");
        return Err(Problem::new("", what));
    }
    let lists = lists.into_iter().enumerate().map(|(index, list)| {
        operations::read(list).map_err(|Problem { at, what }| {
            let at = format!("[{index}]{at}");
            Problem { at, what }
        })
    });
    Ok(lists.collect())
}

/// The request that a line of the log is about, so that it can be found in the application's log.
#[derive(Clone, Copy, Default)]
pub(crate) struct Subject<'a> {
    /// Its `id`. The routes of Pakyow's door and the objects of Syncano's have none.
    pub(crate) request: Option<&'a str>,
    /// The name of the event that it contains; a batch has several.
    pub(crate) event: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// A request that is not about one event.
    pub(super) const fn request(id: &'a str) -> Self {
        Self {
            request: Some(id),
            event: None,
        }
    }
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A hook and its backend.
pub(crate) struct Backend {
    pub(super) name: Arc<str>,
    pub(super) selection: Selection,
    url: Uri,
    client: HttpClient,
    /// Posts without TLS or HTTP/2, which cost less this way.
    http1: Option<Http1Client>,
    secret: Option<Secret>,
    timeout: Duration,
    slots: Slots,
    breaker: Arc<Breaker>,
    metrics: Metrics,
    /// The metrics of every request.
    succeeded: IntCounter,
    duration: Histogram,
    in_flight: IntGauge,
    lines: LineLimit,
}

impl Backend {
    pub(super) fn new(
        name: &str,
        settings: &Settings,
        secret: Option<&[u8]>,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        settings.check()?;
        Ok(Self {
            name: name.into(),
            selection: Selection {
                headers: settings.headers.clone(),
                cookies: settings.cookies.clone(),
            },
            url: settings.url.0.clone(),
            client: client(settings)?,
            http1: http1(settings),
            secret: secret.map(Secret::new),
            timeout: settings.timeout,
            slots: Slots {
                free: Semaphore::new(settings.concurrency),
                waiting: AtomicUsize::new(0),
                queue: settings.queue,
                queued: metrics.queued.with_label_values(&[name]),
            },
            breaker: Arc::new(Breaker::new(
                settings.circuit_failures,
                settings.circuit_pause,
            )),
            succeeded: metrics.requests.with_label_values(&[name, "ok"]),
            duration: metrics.duration.with_label_values(&[name]),
            in_flight: metrics.in_flight.with_label_values(&[name]),
            metrics: metrics.clone(),
            lines: LineLimit::default(),
        })
    }

    /// Another hook of the same name may take its place, whose circuit is closed.
    pub(crate) fn retire(&self) {
        self.circuit().set(0);
    }

    /// Posts a body and returns the result of `read` for the response.
    pub(crate) async fn call<T>(
        &self,
        subject: Subject<'_>,
        body: Bytes,
        forwarded: HeaderMap,
        read: impl FnOnce(&[u8]) -> Result<T, Problem>,
    ) -> Result<T, Failure> {
        self.run(subject, self.post(body, forwarded, read)).await
    }

    /// Posts a body and returns the response, with any status but those of a backend that fails.
    pub(crate) async fn ask(&self, body: Bytes) -> Result<Response<Bytes>, Failure> {
        self.run(Subject::default(), async {
            let headers = self.headers(&body, HeaderMap::new());
            let response = self.send(self.request(body, headers)).await?;
            if response.status().is_server_error() {
                return Err(Failure::Status(response.status()));
            }
            read_body(response, MAX_RESPONSE).await
        })
        .await
    }

    /// Sends a request of another form to the host of the URL, and returns its response with any
    /// status. Only the path and the query of the request's URI count. Redirects are not followed.
    /// The host is that of the settings, regardless of the request.
    pub(crate) async fn fetch(
        &self,
        mut request: Request<Full<Bytes>>,
        max_response: usize,
    ) -> Result<Response<Bytes>, Failure> {
        let mut uri = self.url.clone().into_parts();
        uri.path_and_query = request.uri().path_and_query().cloned();
        *request.uri_mut() =
            Uri::from_parts(uri).map_err(|error| Failure::Request(error.into()))?;
        self.run(Subject::default(), self.exchange(request, max_response))
            .await
    }

    /// Runs a request within the limits, and counts it.
    async fn run<T>(
        &self,
        subject: Subject<'_>,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        // Outside the future, so that the circuit breaker also counts timeouts.
        let mut passed = None;
        // Futures are moved as a whole, so the layers around a large one get a pointer.
        let work = pin!(work);
        let attempt = self.attempt(&mut passed, work);
        let result = timeout(self.timeout, attempt).await;
        let result = result.unwrap_or(Err(Failure::Timeout));
        if let Some(passed) = passed {
            // Without a pass, the request has never reached the backend, and shows
            // nothing about it.
            let is_outage = result.as_ref().is_err_and(Failure::is_outage);
            self.changed(passed.report(!is_outage));
        }
        match &result {
            Ok(_) => self.succeeded.inc(),
            Err(failure) => self.note(subject, failure),
        }
        result
    }

    /// Counts and logs a failure.
    pub(super) fn note(&self, subject: Subject<'_>, failure: &Failure) {
        let labels = [&*self.name, failure.label()];
        self.metrics.requests.with_label_values(&labels).inc();
        if let Some(left_out) = self.lines.pass() {
            let hook = &*self.name;
            let Subject { request, event } = subject;
            tracing::warn!(hook, request, event, error = %failure, left_out, "a hook failed");
        }
    }

    async fn attempt<'a, T>(
        &'a self,
        passed: &mut Option<Passed<'a>>,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        // Asked twice, because the circuit may open while the request waits.
        if self.breaker.is_open() {
            return Err(Failure::CircuitOpen);
        }
        let _slot = self.slots.enter().await?;
        *passed = Some(self.breaker.pass().ok_or(Failure::CircuitOpen)?);
        let _running = Running::new(&self.in_flight);
        // From here on, so that the time is the backend's and not that of the queue.
        let timer = self.duration.start_timer();
        let span = Span::Hook { name: &self.name };
        let result = traces::begin(&span).during(noted(work)).await?;
        timer.observe_duration();
        Ok(result)
    }

    fn changed(&self, change: Change) {
        match change {
            Change::Nothing => {}
            Change::Opened(pause) => self.opened(pause),
            Change::Closed => {
                self.circuit().set(0);
                tracing::info!(hook = &*self.name, "the backend of a hook responds again");
            }
        }
    }

    fn circuit(&self) -> IntGauge {
        self.metrics.circuit_open.with_label_values(&[&*self.name])
    }

    fn opened(&self, pause: Duration) {
        self.circuit().set(1);
        let millis = pause.as_millis();
        tracing::error!(
            hook = &*self.name,
            pause_ms = millis,
            "the backend of a hook fails: its requests fail at once until it is tried again"
        );
        let breaker = Arc::clone(&self.breaker);
        tokio::spawn(async move {
            sleep(pause).await;
            breaker.pause_over();
        });
    }

    async fn post<T>(
        &self,
        body: Bytes,
        forwarded: HeaderMap,
        read: impl FnOnce(&[u8]) -> Result<T, Problem>,
    ) -> Result<T, Failure> {
        let headers = self.headers(&body, forwarded);
        if let Some(client) = &self.http1 {
            let read = |status: StatusCode, body: &[u8]| match status.is_success() {
                true => read(body).map_err(Failure::Invalid),
                false => Err(Failure::Status(status)),
            };
            let posted = client.post(&headers, &body, MAX_RESPONSE, read).await;
            return posted?;
        }
        let request = self.request(body, headers);
        // Its future is several times as large as that of the way above.
        let response = Box::pin(async {
            let response = self.send(request).await?;
            if !response.status().is_success() {
                return Err(Failure::Status(response.status()));
            }
            read_body(response, MAX_RESPONSE).await
        });
        Ok(read(response.await?.body())?)
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        max_response: usize,
    ) -> Result<Response<Bytes>, Failure> {
        traces::inject(request.headers_mut());
        read_body(self.send(request).await?, max_response).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let response = self.client.request(request).await;
        response.map_err(|error| Failure::Unreachable(outbound::causes(&error)))
    }

    fn request(&self, body: Bytes, headers: HeaderMap) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        request
    }

    /// The headers of a request: those that are passed on, and the signature of the body.
    fn headers(&self, body: &[u8], mut headers: HeaderMap) -> HeaderMap {
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        traces::inject(&mut headers);
        if let Some(secret) = &self.secret {
            let signature = secret.sign(signature::now(), body);
            if let Ok(signature) = HeaderValue::try_from(signature) {
                headers.insert(signature::HEADER, signature);
            }
        }
        headers
    }
}

/// The span of the request shows why it failed.
async fn noted<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    work.await
        .inspect_err(|failure| traces::failed(failure.label()))
}

async fn read_body(
    response: Response<Incoming>,
    max_response: usize,
) -> Result<Response<Bytes>, Failure> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, max_response).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => Failure::TooLarge(max_response),
        false => {
            let causes = outbound::causes(&*error);
            Failure::Unreachable(format!("the response cannot be read: {causes}"))
        }
    })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

impl From<Http1Error> for Failure {
    fn from(error: Http1Error) -> Self {
        match error {
            Http1Error::Response(ResponseError::TooLarge(max)) => Self::TooLarge(max),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

fn client(settings: &Settings) -> Result<HttpClient, String> {
    let connector = outbound::connector(CONNECT_TIMEOUT, Versions::All)?;
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(settings.keep_alive)
        .http2_only(settings.http2)
        .build(connector))
}

/// The way for URLs without TLS, unless they are to be called by HTTP/2.
fn http1(settings: &Settings) -> Option<Http1Client> {
    let Target(url) = &settings.url;
    let is_plain = url.scheme_str() == Some("http") && !settings.http2;
    is_plain.then(|| {
        let connector = outbound::tcp_connector(CONNECT_TIMEOUT);
        Http1Client::new(connector, url.clone(), settings.keep_alive)
    })
}

/// Requests at the same time, and those that wait.
struct Slots {
    free: Semaphore,
    waiting: AtomicUsize,
    queue: usize,
    queued: IntGauge,
}

impl Slots {
    /// Takes a slot, or waits for one. The semaphore gives slots in the order in which
    /// requests wait.
    async fn enter(&self) -> Result<SemaphorePermit<'_>, Failure> {
        if let Ok(slot) = self.free.try_acquire() {
            return Ok(slot);
        }
        // Counted before it is compared, so that two requests cannot take the last
        // place.
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::Overloaded);
        }
        let _waiting = Waiting::new(self);
        // It is never closed.
        self.free.acquire().await.map_err(|_| Failure::Overloaded)
    }
}

/// A request that waits, until it is dropped.
struct Waiting<'a>(&'a Slots);

impl<'a> Waiting<'a> {
    fn new(slots: &'a Slots) -> Self {
        slots.queued.inc();
        Self(slots)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.queued.dec();
    }
}

/// A request under way, until it is dropped.
struct Running<'a>(&'a IntGauge);

impl<'a> Running<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A hook whose circuit opens with the first outage. Each of its requests gets these bytes.
    async fn backend(response: Vec<u8>) -> (Backend, Metrics) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"{}") {
                    stream.read_buf(&mut request).await.unwrap();
                }
                // The client may close the connection before it has read everything.
                let _ = stream.write_all(&response).await;
            }
        });
        let settings = serde_json::json!({ "url": url, "circuit_failures": 1, "timeout": "30s" });
        let settings = serde_json::from_value(settings).unwrap();
        let metrics = Metrics::new().unwrap();
        (
            Backend::new("app", &settings, None, &metrics).unwrap(),
            metrics,
        )
    }

    /// Posts a body in both ways: with the client of most hooks, and with that for TLS and HTTP/2.
    async fn post_in_both_ways(backend: &Backend) -> [Failure; 2] {
        let body = || Bytes::from_static(b"{}");
        let posted = backend
            .call(Subject::default(), body(), HeaderMap::new(), read_list)
            .await;
        [
            posted.unwrap_err(),
            backend.ask(body()).await.map(drop).unwrap_err(),
        ]
    }

    fn count(metrics: &Metrics, outcome: &str) -> u64 {
        metrics.requests.with_label_values(&["app", outcome]).get()
    }

    #[tokio::test]
    async fn a_response_that_is_too_large_is_a_mistake_and_no_outage() {
        let length = MAX_RESPONSE + 1;
        let mut response =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        response.resize(response.len() + length, b' ');
        let (backend, metrics) = backend(response).await;
        for failure in post_in_both_ways(&backend).await {
            let text = "the response is larger than 4194304 bytes";
            assert_eq!(failure.to_string(), text);
            assert_eq!(failure.refused().to_string(), "internal error");
        }
        assert!(!backend.breaker.is_open());
        assert_eq!(count(&metrics, "too_large"), 2);
        assert_eq!(count(&metrics, "unreachable"), 0);
    }

    #[tokio::test]
    async fn a_failure_with_a_large_page_is_the_outage_that_its_status_tells() {
        let response = "HTTP/1.1 503 No\r\ncontent-length: 9999999\r\n\r\n";
        let (backend, metrics) = backend(response.into()).await;
        let body = Bytes::from_static(b"{}");
        let posted = backend
            .call(Subject::default(), body, HeaderMap::new(), read_list)
            .await;
        assert!(matches!(posted, Err(Failure::Status(status)) if status == 503));
        assert!(backend.breaker.is_open());
        assert_eq!(count(&metrics, "status"), 1);
    }

    #[tokio::test]
    async fn bytes_that_are_not_http_are_an_outage() {
        let (backend, metrics) = backend(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()).await;
        let body = Bytes::from_static(b"{}");
        let posted = backend
            .call(Subject::default(), body, HeaderMap::new(), read_list)
            .await;
        assert!(matches!(posted, Err(Failure::Unreachable(_))));
        assert!(backend.breaker.is_open());
        assert_eq!(count(&metrics, "unreachable"), 1);
    }

    #[test]
    fn a_response_to_a_batch_has_a_list_for_each_event_or_none_at_all() {
        let lists = |json: &str| read_lists(json.as_bytes(), 2);
        assert_eq!(lists("").unwrap().len(), 0);
        assert_eq!(lists("[]").unwrap().len(), 0);
        let one_is_wrong = lists(r#"[[{"op":"join","room":"a"}],[{"op":"disconnect"}]]"#).unwrap();
        let [Err(problem), Ok(list)] = &one_is_wrong[..] else {
            panic!("{one_is_wrong:?}")
        };
        assert_eq!((problem.at.as_str(), list.len()), ("[0][0].room", 1));
        let text = |json: &str| lists(json).unwrap_err().to_string();
        assert_eq!(text("[[]]"), "1 lists of operations for 2 events");
        assert!(text("{}").contains("invalid type: map"), "{}", text("{}"));
        let flat = lists(r#"[{"op":"disconnect"},{"op":"disconnect"}]"#).unwrap();
        assert!(flat.iter().all(Result::is_err), "{flat:?}");
    }
}
