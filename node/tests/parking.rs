//! Parked requests: they wait for their response without their HTTP connection, which goes on afterwards.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    body::Body,
    response::Response,
    routing::{any, get},
};
use http::Request;
use roomcast::{Certificate, Serve, Server, Tls, plain::Parking};
use support::{
    TestServer,
    certificates::{Authority, handshake},
    eventually,
    http::{read_head, send},
    within,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
};

/// A server whose route `/park` responds when it is told to, and `/` at once.
struct Parked {
    server: TestServer,
    gate: Arc<Semaphore>,
    /// The handlers that wait.
    handlers: Arc<AtomicUsize>,
    /// The responses that are awaited.
    responses: Arc<AtomicUsize>,
}

/// Counts itself until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Parked {
    async fn start() -> Self {
        Self::start_with(|serve| serve).await
    }

    /// A server whose listener has settings of its own.
    async fn start_with(listening: impl FnOnce(Serve) -> Serve) -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let (handlers, responses) = (Arc::default(), Arc::default());
        let shared = (
            Arc::clone(&gate),
            Arc::clone(&handlers),
            Arc::clone(&responses),
        );
        let park = move |request: Request<Body>| {
            let (gate, handlers, responses) = shared.clone();
            async move {
                let _handler = Counted::new(&handlers);
                let (parts, body) = request.into_parts();
                if parts.headers.contains_key("x-read") {
                    axum::body::to_bytes(body, 100).await.unwrap();
                }
                let response = Counted::new(&responses);
                let response = async move {
                    let _response = response;
                    gate.acquire().await.unwrap().forget();
                    Response::new(Body::from("parked"))
                };
                Parking::of(&parts.extensions).wait(response).await
            }
        };
        let app = |io: &Server| {
            let router = io.router().route("/park", any(park));
            let router = router.route("/large", get(async || "x".repeat(LARGE)));
            router.route("/", get(async || "at once"))
        };
        let server = TestServer::start_both(Server::builder(), listening, app).await;
        Self {
            server,
            gate,
            handlers,
            responses,
        }
    }

    async fn connect(&self, requests: &str) -> TcpStream {
        send(self.server.address, requests).await
    }

    async fn waiting(&self, responses: usize) {
        let is_so = || self.responses.load(Ordering::Relaxed) == responses;
        eventually("the requests that wait", is_so).await;
    }

    fn handlers(&self) -> usize {
        self.handlers.load(Ordering::Relaxed)
    }
}

/// More than the system takes of a response that nobody reads.
const LARGE: usize = 32 << 20;

const PARK: &str = "GET /park HTTP/1.1\r\nHost: a\r\n\r\n";

/// The heads and the bodies of responses, each body as long as its head says.
async fn responses(client: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<(String, String)> {
    let (mut responses, mut received) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let head = read_head(client, &mut received).await;
        let length = head.split_once("content-length: ").unwrap().1;
        let length = length.split_once("\r\n").unwrap().0.parse().unwrap();
        within("a body", async {
            while received.len() < length {
                assert_ne!(client.read_buf(&mut received).await.unwrap(), 0);
            }
        })
        .await;
        let rest = received.split_off(length);
        let body = std::mem::replace(&mut received, rest);
        responses.push((head, String::from_utf8(body).unwrap()));
    }
    assert!(received.is_empty(), "{received:?}");
    responses
}

#[tokio::test]
async fn a_parked_request_waits_without_its_handler_and_the_connection_goes_on() {
    let parked = Parked::start().await;
    let mut client = parked.connect(PARK).await;
    for _ in 0..3 {
        parked.waiting(1).await;
        eventually("the handler is gone", || parked.handlers() == 0).await;
        parked.gate.add_permits(1);
        let (head, body) = responses(&mut client, 1).await.remove(0);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.contains("connection: close"), "{head}");
        assert_eq!(body, "parked");
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(responses(&mut client, 1).await[0].1, "at once");
        client.write_all(PARK.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_client_sends_while_it_waits_is_served_afterwards_in_order() {
    let parked = Parked::start().await;
    // One is read together with the parked request, one alone, and one is longer than what is read.
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n",
        "x".repeat(6000)
    );
    let next = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (with, after) in [(next, ""), ("", next), (next, &*long), ("", &*long)] {
        let mut client = parked.connect(&format!("{PARK}{with}")).await;
        parked.waiting(1).await;
        client.write_all(after.as_bytes()).await.unwrap();
        client.write_all(PARK.as_bytes()).await.unwrap();
        parked.gate.add_permits(2);
        let count = 2 + usize::from(!with.is_empty()) + usize::from(!after.is_empty());
        let bodies = responses(&mut client, count).await;
        let bodies: Vec<_> = bodies.iter().map(|(_, body)| &**body).collect();
        let mut expected = vec!["at once"; count];
        expected[0] = "parked";
        expected[count - 1] = "parked";
        assert_eq!(bodies, expected);
    }
}

#[tokio::test]
async fn a_response_that_is_read_late_comes_whole_before_that_of_a_parked_request() {
    let parked = Parked::start().await;
    let large = PARK.replace("/park", "/large");
    let mut client = parked.connect(&format!("{large}{PARK}")).await;
    parked.gate.add_permits(1);
    let responses = responses(&mut client, 2).await;
    assert_eq!(responses[0].1.len(), LARGE);
    assert_eq!(responses[1].1, "parked");
}

#[tokio::test]
async fn a_request_whose_body_was_read_waits_without_its_handler() {
    let parked = Parked::start().await;
    let head = PARK.replace("\r\n\r\n", "\r\nX-Read: 1\r\n");
    let next = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for body in [
        "Content-Length: 2\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ] {
        let mut client = parked.connect(&format!("{head}{body}{next}")).await;
        parked.waiting(1).await;
        eventually("the handler is gone", || parked.handlers() == 0).await;
        parked.gate.add_permits(1);
        let responses = responses(&mut client, 2).await;
        let bodies: Vec<_> = responses.iter().map(|(_, body)| &**body).collect();
        assert_eq!(bodies, ["parked", "at once"]);
    }
}

#[tokio::test]
async fn a_request_over_tls_waits_in_the_same_way() {
    let authority = Authority::new();
    authority.sign("site", "DNS:localhost", 2);
    let [certificate, key] = ["site.pem", "site.key"].map(|name| authority.path(name));
    let certificate = Certificate::from_files(certificate, key).unwrap();
    let tls = Tls::new([certificate]).unwrap();
    let parked = Parked::start_with(|serve| serve.with_tls(tls)).await;
    let connect = async || {
        let tcp = TcpStream::connect(parked.server.address).await.unwrap();
        let client = handshake(authority.client(&[]), "localhost", tcp).await;
        let mut client = client.unwrap();
        client.write_all(PARK.as_bytes()).await.unwrap();
        client
    };
    let mut client = connect().await;
    parked.waiting(1).await;
    eventually("the handler is gone", || parked.handlers() == 0).await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    parked.gate.add_permits(1);
    let responses = responses(&mut client, 2).await;
    let bodies: Vec<_> = responses.iter().map(|(_, body)| &**body).collect();
    assert_eq!(bodies, ["parked", "at once"]);
    let gone = connect().await;
    parked.waiting(1).await;
    drop(gone);
    parked.waiting(0).await;
}

#[tokio::test]
async fn a_client_that_goes_ends_what_it_waits_for() {
    let parked = Parked::start().await;
    let clients = [parked.connect(PARK).await, parked.connect(PARK).await];
    parked.waiting(2).await;
    drop(clients);
    parked.waiting(0).await;
    eventually("no HTTP connection", || {
        parked.server.metric("roomcast_http_connections") == 0
    })
    .await;
}

#[tokio::test]
async fn the_connection_ends_if_the_client_wants_it() {
    let parked = Parked::start().await;
    let request = PARK.replace("\r\n\r\n", "\r\nConnection: x, Close\r\n\r\n");
    let mut client = parked.connect(&request).await;
    parked.waiting(1).await;
    parked.gate.add_permits(1);
    let (head, body) = responses(&mut client, 1).await.remove(0);
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, "parked");
    assert_eq!(within("the end", client.read_u8()).await.ok(), None);
}

#[tokio::test]
async fn a_request_whose_short_form_means_something_else_waits_with_its_handler() {
    let parked = Parked::start().await;
    for request in [
        "GET /park HTTP/1.0\r\n\r\n",
        "HEAD /park HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /park HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
        "GET /park HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    ] {
        let mut client = parked.connect(request).await;
        parked.waiting(1).await;
        assert_eq!(parked.handlers(), 1, "{request}");
        parked.gate.add_permits(1);
        let head = read_head(&mut client, &mut Vec::new()).await;
        assert!(head.contains(" 200 OK\r\n"), "{head}");
        parked.waiting(0).await;
    }
}
