//! Addresses of clients behind proxies that are trusted and others, with headers of HTTP and with the
//! PROXY protocol.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use axum::{Router, routing::get};
use roomcast::{
    Builder, ClientAddress, ForwardedHeader, Namespace, Serve, Server, Socket, TrustedProxies,
};
use support::{TestServer, WebSocket, eventually, http, websocket, within};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const HEADER: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";

/// A server whose clients ask for their own address.
fn builder(proxies: &[&str]) -> Builder {
    let main = Namespace::new("/").on("where", async |socket: Socket| {
        let handshake = socket.handshake();
        let address = handshake.address().map(|address| address.to_string());
        (address, handshake.is_secure())
    });
    let proxies = TrustedProxies::new(proxies).unwrap();
    Server::builder().namespace(main).trusted_proxies(proxies)
}

async fn behind_proxy() -> TestServer {
    TestServer::start_with(builder(&["127.0.0.1"]), Serve::with_proxy_protocol).await
}

/// Opens a WebSocket on a stream with these lines in its request, and asks where it is.
async fn seen(mut stream: TcpStream, lines: &str) -> String {
    let request = websocket::request(websocket::NEW);
    let request = request.strip_suffix("\r\n").unwrap();
    let request = format!("{request}{lines}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut socket = WebSocket::upgraded(stream).await;
    socket.begin().await;
    socket.join("/").await;
    socket.ask(r#"["where"]"#).await
}

async fn connect(server: &TestServer) -> (TcpStream, String) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let own = stream.local_addr().unwrap().to_string();
    (stream, own)
}

#[tokio::test]
async fn by_default_a_client_cannot_choose_its_address() {
    let server = TestServer::start(builder(&[])).await;
    let (stream, own) = connect(&server).await;
    let lines = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\
                 Forwarded: for=203.0.113.9;proto=https\r\n";
    assert_eq!(seen(stream, lines).await, format!("[\"{own}\",false]"));
    assert_eq!(server.metric("roomcast_forwarded_ignored_total"), 1);
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client() {
    let server = TestServer::start(builder(&["127.0.0.0/8", "10.0.0.0/8"])).await;
    let (stream, _) = connect(&server).await;
    let lines = "X-Forwarded-For: 1.1.1.1, 203.0.113.9, 10.0.0.7\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(seen(stream, lines).await, "[\"203.0.113.9:0\",true]");
    assert_eq!(server.metric("roomcast_forwarded_ignored_total"), 0);
}

#[tokio::test]
async fn a_proxy_that_writes_the_standard_header_names_the_client() {
    let proxies = TrustedProxies::new(["127.0.0.1"]).unwrap();
    let proxies = proxies.header(ForwardedHeader::Forwarded);
    let server = TestServer::start(builder(&[]).trusted_proxies(proxies)).await;
    let (stream, _) = connect(&server).await;
    let lines = "Forwarded: for=\"[2001:db8::9]:4711\";proto=https\r\nX-Forwarded-For: 1.1.1.1\r\n";
    assert_eq!(seen(stream, lines).await, "[\"[2001:db8::9]:4711\",true]");
}

#[tokio::test]
async fn a_polling_client_has_the_address_of_its_first_request() {
    let server = TestServer::start(builder(&["127.0.0.1"])).await;
    let request = async |method: &str, target: &str, forwarded: &str, body: &str| {
        let (mut stream, _) = connect(&server).await;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {forwarded}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        http::response(&mut stream).await.body
    };
    let new = "/socket.io/?EIO=4&transport=polling";
    let open = request("GET", new, "203.0.113.9", "").await;
    let open: serde_json::Value = serde_json::from_str(&open[1..]).unwrap();
    let session = format!("{new}&sid={}", open["sid"].as_str().unwrap());
    request("POST", &session, "203.0.113.10", "40\u{1e}421[\"where\"]").await;
    let mut body = String::new();
    while !body.contains("431") {
        body += &request("GET", &session, "203.0.113.11", "").await;
    }
    assert!(body.contains("431[\"203.0.113.9:0\",false]"), "{body}");
}

#[tokio::test]
async fn a_route_of_the_application_takes_the_address_as_an_argument() {
    let whoami = async |client: Option<ClientAddress>| client.unwrap().ip().to_string();
    let app = Router::new().route("/whoami", get(whoami));
    let server = TestServer::start_app(builder(&["127.0.0.1"]), |_| app).await;
    let head = "GET /whoami HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    let mut stream = http::send(server.address, head).await;
    assert_eq!(http::response(&mut stream).await.body, "203.0.113.9");
}

#[tokio::test]
async fn a_proxy_header_names_the_client() {
    let server = behind_proxy().await;
    let (mut stream, _) = connect(&server).await;
    stream.write_all(HEADER).await.unwrap();
    // The client is no proxy, so what it says about itself is not believed.
    let lines = "X-Forwarded-For: 1.1.1.1\r\n";
    assert_eq!(seen(stream, lines).await, "[\"203.0.113.9:56324\",false]");
}

#[tokio::test]
async fn a_proxy_header_that_comes_byte_by_byte_is_waited_for() {
    let server = behind_proxy().await;
    let (mut stream, _) = connect(&server).await;
    stream.set_nodelay(true).unwrap();
    for byte in HEADER {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(seen(stream, "").await, "[\"203.0.113.9:56324\",false]");
}

#[tokio::test]
async fn a_proxy_header_of_version_2_comes_with_extensions() {
    let server = behind_proxy().await;
    let (mut stream, _) = connect(&server).await;
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend((12 + 1000_u16).to_be_bytes());
    header.extend([203, 0, 113, 9, 192, 0, 2, 1, 0xdc, 0x04, 0x01, 0xbb]);
    header.extend([0; 1000]);
    stream.write_all(&header).await.unwrap();
    assert_eq!(seen(stream, "").await, "[\"203.0.113.9:56324\",false]");
}

#[tokio::test]
async fn a_proxy_that_speaks_for_itself_has_its_own_address() {
    let server = behind_proxy().await;
    let (mut stream, own) = connect(&server).await;
    stream.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
    assert_eq!(seen(stream, "").await, format!("[\"{own}\",false]"));
}

#[tokio::test]
async fn a_connection_without_a_proxy_header_is_closed_and_counted() {
    let server = behind_proxy().await;
    let (mut stream, _) = connect(&server).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_ended(&mut stream).await;
    assert_counted(&server, "malformed").await;
}

#[tokio::test]
async fn a_proxy_header_from_an_address_that_is_not_trusted_is_not_read() {
    let server = TestServer::start_with(builder(&["10.0.0.0/8"]), Serve::with_proxy_protocol).await;
    let (mut stream, _) = connect(&server).await;
    // It may be closed before this is written.
    let _ = stream.write_all(HEADER).await;
    assert_ended(&mut stream).await;
    assert_counted(&server, "untrusted").await;
}

#[tokio::test]
async fn half_a_proxy_header_is_counted_and_a_connection_without_a_byte_is_not() {
    let server = behind_proxy().await;
    for bytes in [&HEADER[..20], b""] {
        let (mut stream, _) = connect(&server).await;
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_ended(&mut stream).await;
    }
    assert_counted(&server, "closed").await;
}

/// The server has closed the connection without a response.
async fn assert_ended(stream: &mut TcpStream) {
    let mut received = Vec::new();
    // Unread bytes make the close a reset.
    let _ = within("the connection ends", stream.read_to_end(&mut received)).await;
    assert!(received.is_empty());
}

async fn assert_counted(server: &TestServer, reason: &str) {
    let series = |reason: &str| {
        server.metric(&format!(
            "roomcast_proxy_header_errors_total{{reason=\"{reason}\"}}"
        ))
    };
    eventually("it is counted", || series(reason) == 1).await;
    let reasons = ["untrusted", "malformed", "too_large", "closed"];
    assert_eq!(reasons.map(series).iter().sum::<u64>(), 1);
}
