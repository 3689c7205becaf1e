//! Requests that are lawful but unusual, requests that are not lawful, and clients that do not read
//! what they asked for: what they get, and that nobody else notices.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{future::IntoFuture, time::Duration};

use roomcast::{Cors, Limits, Server, Socket};
use support::{
    Polling, TestServer, WebSocket, http,
    server::{Sockets, main_namespace},
    websocket, within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    sync::oneshot,
};

const REFUSED: &str = "roomcast_http_refused_total";

/// The headers of a WebSocket's request that do not matter here.
const KEY: &str = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test]
async fn a_list_header_counts_with_all_its_lines() {
    let server = TestServer::of(main_namespace()).await;
    for lines in [
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "Connection: Upgrade\r\nConnection: keep-alive\r\nUpgrade: WebSocket\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
    ] {
        let head = handshake(&server, lines).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{lines} {head}");
    }
    for lines in [
        "Connection: keep-alive\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrades\r\nUpgrade: websocket\r\n",
    ] {
        let head = handshake(&server, lines).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{lines} {head}");
    }
}

#[tokio::test]
async fn a_body_is_compressed_whatever_line_accepts_it() {
    let namespace =
        main_namespace().on_connect(async |socket: Socket| socket.emit("large", "x".repeat(4000)));
    let server = TestServer::of(namespace).await;
    for lines in [
        "Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n",
        "Accept-Encoding: br\r\n",
    ] {
        let polling = Polling::open(server.address).await;
        polling.say("40").await;
        let head = get(&server, &polling.target(), lines).await;
        assert_eq!(
            head.contains("content-encoding: gzip"),
            lines.contains("gzip"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn an_application_sees_the_lines_of_a_header_joined_as_node_joins_them() {
    let namespace = main_namespace().on("headers", async |socket: Socket| {
        let handshake = socket.handshake();
        let of = |name| handshake.header(name).map(|value| value.into_owned());
        (of("x-forwarded-for"), of("cookie"), of("user-agent"))
    });
    let server = TestServer::of(namespace).await;
    let lines = "X-Forwarded-For: a\r\nX-Forwarded-For: b, c\r\nCookie: a=1\r\nCookie: b=2\r\n\
                 User-Agent: one\r\nUser-Agent: two\r\n\r\n";
    let request = websocket::request(websocket::NEW);
    let request = request.replace("\r\n\r\n", &format!("\r\n{lines}"));
    let stream = http::send(server.address, request).await;
    let mut client = WebSocket::upgraded(stream).await;
    client.begin().await;
    client.join("/").await;
    let seen = client.ask(r#"["headers"]"#).await;
    assert_eq!(seen, r#"["a, b, c","a=1; b=2","one"]"#);
}

#[tokio::test]
async fn the_first_subprotocol_that_a_client_offers_is_chosen() {
    let server = TestServer::of(main_namespace()).await;
    const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (offered, chosen) in [
        ("", None),
        ("Sec-WebSocket-Protocol: chat\r\n", Some("chat")),
        (
            "Sec-WebSocket-Protocol: jwt.abc , chat\r\n",
            Some("jwt.abc"),
        ),
        (
            "Sec-WebSocket-Protocol: b\r\nSec-WebSocket-Protocol: a\r\n",
            Some("b"),
        ),
    ] {
        let head = handshake(&server, &format!("{UPGRADE}{offered}")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let line = head
            .lines()
            .find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert_eq!(line, chosen);
    }
    for offered in ["", "a,,b", "a b", "a, a"] {
        let line = format!("Sec-WebSocket-Protocol: {offered}\r\n");
        let head = handshake(&server, &format!("{UPGRADE}{line}")).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{offered}: {head}");
    }
    // An upgrade from polling is no different.
    let polling = Polling::connect(server.address).await;
    let target = polling
        .target()
        .replace("transport=polling", "transport=websocket");
    let line = format!("{UPGRADE}{KEY}Sec-WebSocket-Protocol: chat\r\n");
    let head = get(&server, &target, &line).await;
    assert!(head.contains("sec-websocket-protocol: chat\r\n"), "{head}");
}

#[tokio::test]
async fn a_client_that_closes_its_websocket_gets_its_own_code_back() {
    let server = TestServer::of(main_namespace()).await;
    for code in [None, Some(1000), Some(1001), Some(3000), Some(4999)] {
        let payload: Vec<u8> = code
            .iter()
            .flat_map(|code: &u16| code.to_be_bytes())
            .collect();
        let mut client = WebSocket::connect(server.address).await;
        client.send_frame(true, 8, &payload).await;
        assert_eq!(client.closed().await, code);

        let polling = Polling::connect(server.address).await;
        let target = polling
            .target()
            .replace("transport=polling", "transport=websocket");
        let mut probe = WebSocket::upgrade(server.address, &target).await;
        probe.send_frame(true, 8, &payload).await;
        assert_eq!(probe.closed().await, code);
    }
    server.closes("transport_close", 5).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_read_gets_cors_headers_and_is_counted() {
    let cors = Cors::origins(["http://a", "http://b"]).credentials(true);
    let builder = Server::builder().namespace(main_namespace()).cors(cors);
    let server = TestServer::start(builder).await;
    let polling = "/socket.io/?EIO=4&transport=polling";
    let many: String = (0..150).map(|n| format!("X-{n}: v\r\n")).collect();
    for (target, lines, status, label) in [
        (format!("{polling}&user=a\"b"), "", 400, "malformed"),
        (format!("{polling}&user=<b>"), "", 400, "malformed"),
        (polling.to_owned(), "no header\r\n", 400, "malformed"),
        (polling.to_owned(), &*many, 431, "headers_too_large"),
        (
            format!("{polling}&user={}", "a".repeat(70_000)),
            "",
            414,
            "url_too_long",
        ),
    ] {
        let head = get(&server, &target, &format!("Origin: http://b\r\n{lines}")).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(
            head.contains("access-control-allow-origin: http://b\r\n"),
            "{head}"
        );
        assert!(
            head.contains("access-control-allow-credentials: true\r\n"),
            "{head}"
        );
        let series = format!("{REFUSED}{{reason=\"{label}\"}}");
        assert!(server.metric(&series) > 0, "{label}");
    }
    // What the routes refuse themselves has these headers once, and is counted once.
    let head = get(
        &server,
        "/socket.io/?EIO=4&transport=none",
        "Origin: http://b\r\n",
    )
    .await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert_eq!(head.matches("access-control-allow-origin").count(), 1);
    assert_eq!(
        server.metric(&format!("{REFUSED}{{reason=\"malformed\"}}")),
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_neither_reads_nor_writes_does_not_delay_the_end_of_serving() {
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let limits = Limits {
        response_timeout: Duration::from_secs(3600),
        header_timeout: Duration::from_secs(3600),
        body_timeout: Duration::from_secs(3600),
        ..Limits::default()
    };
    let builder = Server::builder().namespace(namespace).limits(limits);
    let server = builder.build().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let signal = async move { drop(stopped.await) };
    let serving = server
        .serve(listener, server.router())
        .with_graceful_shutdown(signal);
    let serving = tokio::spawn(serving.into_future());

    // One never reads a large response, one sends half a head, one half a body.
    let polling = Polling::connect(address).await;
    sockets
        .next()
        .await
        .emit("large", "x".repeat(32 << 20))
        .unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: test\r\n\r\n", polling.target());
    let mut unread = http::send(address, request).await;
    let mut first = [0];
    unread.read_exact(&mut first).await.unwrap();
    let _half_head = http::send(address, b"GET / HTTP/1.1\r\nHost:").await;
    let other = Polling::connect(address).await;
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n42[",
        other.target()
    );
    let _half_body = http::send(address, request).await;

    drop(stop);
    within("serving ends", serving).await.unwrap().unwrap();
}

/// Sends a request for a WebSocket with these lines. Returns the head of the response.
async fn handshake(server: &TestServer, lines: &str) -> String {
    get(server, websocket::NEW, &format!("{KEY}{lines}")).await
}

async fn get(server: &TestServer, target: &str, lines: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n{lines}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = http::read_head(&mut stream, &mut Vec::new()).await;
    head.to_lowercase().replacen("http/1.1", "HTTP/1.1", 1)
}
