//! TLS of the server's own listeners: WebSocket and polling over it, the choice of certificates, their
//! replacement, and handshakes that fail.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
mod support;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use process::{ANY_PORT, Program, field, roomcast};
use roomcast::{
    Builder, Certificate, CertificateError, Namespace, Server, Socket, Tls, TlsVersion,
    TrustedProxies,
};
use rustix::process::Signal;
use rustls::{ClientConfig, pki_types::CertificateDer, version::TLS12};
use support::{
    TestServer, WebSocket,
    certificates::{Authority, handshake},
    eventually, http,
    server::{Sockets, main_namespace},
    websocket, within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

fn certificate(authority: &Authority, file: &str) -> Certificate {
    let path = |extension: &str| authority.path(&format!("{file}.{extension}"));
    Certificate::from_files(path("pem"), path("key")).unwrap()
}

/// A server whose certificate is for `localhost`, and who signed it.
async fn serve(builder: Builder) -> (TestServer, Authority) {
    let authority = Authority::new();
    authority.sign("site", "DNS:localhost", 2);
    let tls = Tls::new([certificate(&authority, "site")]).unwrap();
    let server = TestServer::start_with(builder, |serve| serve.with_tls(tls)).await;
    (server, authority)
}

fn echo() -> Builder {
    Server::builder().namespace(main_namespace())
}

async fn tcp(server: &TestServer) -> TcpStream {
    TcpStream::connect(server.address).await.unwrap()
}

async fn connect(server: &TestServer, authority: &Authority) -> TlsStream<TcpStream> {
    let client = authority.client(&[]);
    handshake(client, "localhost", tcp(server).await)
        .await
        .unwrap()
}

async fn open(server: &TestServer, authority: &Authority) -> WebSocket<TlsStream<TcpStream>> {
    let stream = connect(server, authority).await;
    let mut socket = WebSocket::over(stream, websocket::NEW).await;
    socket.begin().await;
    socket.join("/").await;
    socket
}

fn failed(server: &TestServer, reason: &str) -> u64 {
    server.metric(&format!(
        "roomcast_tls_handshake_errors_total{{reason=\"{reason}\"}}"
    ))
}

#[tokio::test]
async fn a_websocket_echoes_small_and_large_messages() {
    let (server, authority) = serve(echo()).await;
    let mut socket = open(&server, &authority).await;
    socket.assert_served().await;
    let large = "x".repeat(900_000);
    let reply = socket.ask(&format!("[\"echo\",\"{large}\"]")).await;
    assert!(reply == format!("[\"{large}\"]"));
    drop(socket);
    server.assert_empty().await;
}

#[tokio::test]
async fn many_packets_in_one_record_are_all_handled() {
    let (server, authority) = serve(echo()).await;
    let mut socket = open(&server, &authority).await;
    let mut frames = Vec::new();
    for number in 0..1000 {
        let text = format!("42{number}[\"echo\",\"{number}\"]");
        frames.extend(websocket::frame(true, 1, text.as_bytes()));
    }
    socket.stream.write_all(&frames).await.unwrap();
    for number in 0..1000 {
        assert_eq!(socket.text().await, format!("43{number}[\"{number}\"]"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_late_gets_every_broadcast() {
    let (main, mut sockets) = Sockets::of(main_namespace());
    let (server, authority) = serve(Server::builder().namespace(main)).await;
    let mut socket = open(&server, &authority).await;
    sockets.next().await;
    // More than the sockets of the system hold, so that records wait in the middle.
    let text = "x".repeat(100_000);
    for number in 0..100 {
        server.io.emit("news", (number, &text)).await.unwrap();
    }
    for number in 0..100 {
        let expected = format!("42[\"news\",{number},\"{text}\"]");
        assert!(socket.text().await == expected, "{number}");
    }
    socket.assert_served().await;
}

#[tokio::test]
async fn a_polling_client_upgrades() {
    let (server, authority) = serve(echo()).await;
    let mut stream = connect(&server, &authority).await;
    let mut request = async |method: &str, target: &str, body: &str| {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        http::response(&mut stream).await.body
    };
    let new = "/socket.io/?EIO=4&transport=polling";
    let open = request("GET", new, "").await;
    let open: serde_json::Value = serde_json::from_str(&open[1..]).unwrap();
    let id = open["sid"].as_str().unwrap();
    request("POST", &format!("{new}&sid={id}"), "40").await;
    assert!(
        request("GET", &format!("{new}&sid={id}"), "")
            .await
            .starts_with("40{")
    );

    let target = format!("/socket.io/?EIO=4&transport=websocket&sid={id}");
    let stream = connect(&server, &authority).await;
    let mut socket = WebSocket::over(stream, &target).await;
    socket.send("2probe").await;
    assert_eq!(socket.text().await, "3probe");
    socket.send("5").await;
    socket.assert_served().await;
}

#[tokio::test]
async fn a_disconnected_client_gets_the_goodbyes_of_websocket_and_of_tls() {
    let (main, mut sockets) = Sockets::of(main_namespace());
    let (server, authority) = serve(Server::builder().namespace(main)).await;
    let mut socket = open(&server, &authority).await;
    sockets.next().await.disconnect(true);
    socket.closed().await;
    // An end without the goodbye of TLS would be an error.
    let mut rest = Vec::new();
    let read = within("the end", socket.stream.read_to_end(&mut rest)).await;
    assert_eq!(read.unwrap(), 0);
    // Otherwise the server waits for this end for some seconds.
    drop(socket);
    server.assert_empty().await;
}

#[tokio::test]
async fn a_handshake_knows_that_it_is_secure() {
    let main = Namespace::new("/").on("secure", async |socket: Socket| {
        let handshake = socket.handshake();
        (
            handshake.is_secure(),
            handshake.address().map(|address| address.ip().to_string()),
        )
    });
    let proxies = TrustedProxies::new(["127.0.0.1"]).unwrap();
    let builder = Server::builder().namespace(main).trusted_proxies(proxies);
    let authority = Authority::new();
    authority.sign("site", "DNS:localhost", 2);
    let tls = Tls::new([certificate(&authority, "site")]).unwrap();
    let listening = |serve: roomcast::Serve| serve.with_tls(tls).with_proxy_protocol();
    let server = TestServer::start_with(builder, listening).await;
    let mut stream = tcp(&server).await;
    let header = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";
    stream.write_all(header).await.unwrap();
    let client = authority.client(&[]);
    let stream = handshake(client, "localhost", stream).await.unwrap();
    let mut socket = WebSocket::over(stream, websocket::NEW).await;
    socket.begin().await;
    socket.join("/").await;
    assert_eq!(socket.ask("[\"secure\"]").await, "[true,\"203.0.113.9\"]");
}

#[tokio::test]
async fn a_client_gets_the_certificate_for_the_name_that_it_asks_for() {
    let authority = Authority::new();
    authority.sign("one", "DNS:one.example", 2);
    authority.sign("all", "DNS:*.two.example,DNS:two.example", 2);
    let tls = ["one", "all"].map(|file| certificate(&authority, file));
    let tls = Tls::new(tls).unwrap();
    let handle = tls.clone();
    let server = TestServer::start_with(echo(), |serve| serve.with_tls(tls)).await;
    let shown = async |name: &str| {
        let client = authority.client(&[]);
        let stream = handshake(client, name, tcp(&server).await).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        Ok::<_, String>(chain[0].clone().into_owned())
    };
    assert_eq!(shown("one.example").await, Ok(authority.der("one.pem")));
    assert_eq!(shown("two.example").await, Ok(authority.der("all.pem")));
    assert_eq!(shown("a.two.example").await, Ok(authority.der("all.pem")));
    // The first one, which this client does not accept for the name.
    assert!(shown("three.example").await.is_err());
    eventually("the client's refusal is counted", || {
        failed(&server, "rejected") == 1
    })
    .await;

    authority.sign("new", "DNS:one.example,DNS:three.example", 2);
    handle.replace([certificate(&authority, "new")]).unwrap();
    assert_eq!(shown("one.example").await, Ok(authority.der("new.pem")));
    assert_eq!(shown("three.example").await, Ok(authority.der("new.pem")));
    assert!(matches!(handle.replace([]), Err(CertificateError::None)));
    assert_eq!(shown("one.example").await, Ok(authority.der("new.pem")));
}

#[tokio::test]
async fn a_connection_that_is_no_tls_is_counted_and_one_without_a_byte_is_not() {
    let (server, authority) = serve(echo()).await;
    let mut stream = tcp(&server).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut received = Vec::new();
    let _ = within("the connection ends", stream.read_to_end(&mut received)).await;
    assert!(!received.starts_with(b"HTTP"), "{received:?}");
    let mut stream = tcp(&server).await;
    stream.shutdown().await.unwrap();
    let _ = within("the connection ends", stream.read_to_end(&mut received)).await;
    eventually("it is counted", || failed(&server, "not_tls") == 1).await;
    assert_eq!(failed(&server, "closed"), 0);
    open(&server, &authority).await.assert_served().await;
}

#[tokio::test]
async fn a_client_without_a_common_protocol_is_refused() {
    let (server, authority) = serve(echo()).await;
    let h2 = authority.client(&["h2"]);
    assert!(
        handshake(h2, "localhost", tcp(&server).await)
            .await
            .is_err()
    );
    eventually("it is counted", || failed(&server, "incompatible") == 1).await;
    let both = authority.client(&["h2", "http/1.1"]);
    let stream = handshake(both, "localhost", tcp(&server).await)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn an_old_version_is_refused_if_the_minimum_is_newer() {
    let authority = Authority::new();
    authority.sign("site", "DNS:localhost", 2);
    let old = || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der("ca.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[&TLS12]).unwrap();
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    for (minimum, is_accepted) in [(TlsVersion::V1_2, true), (TlsVersion::V1_3, false)] {
        let tls = Tls::with_minimum([certificate(&authority, "site")], minimum).unwrap();
        let server = TestServer::start_with(echo(), |serve| serve.with_tls(tls)).await;
        let stream = handshake(old(), "localhost", tcp(&server).await).await;
        assert_eq!(stream.is_ok(), is_accepted, "{minimum:?}");
    }
}

#[test]
fn a_certificate_is_checked_with_its_key_and_shows_when_it_expires() {
    let authority = Authority::new();
    authority.sign("site", "DNS:Site.example,DNS:*.b.example,IP:127.0.0.1", 2);
    authority.sign("other", "DNS:other.example", 2);
    let site = certificate(&authority, "site");
    assert_eq!(
        site.names().collect::<Vec<_>>(),
        ["site.example", "*.b.example"]
    );
    let left = site
        .not_after()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    assert!(left > Duration::from_secs(1_700_000_000));
    let pair = |chain: &str, key: &str| {
        let error = Certificate::from_files(authority.path(chain), authority.path(key));
        error.unwrap_err()
    };
    assert!(matches!(
        pair("site.pem", "other.key"),
        CertificateError::Key(_)
    ));
    assert!(matches!(
        pair("site.key", "site.key"),
        CertificateError::NoCertificate
    ));
    assert!(matches!(
        pair("site.pem", "site.pem"),
        CertificateError::NoKey
    ));
    assert!(matches!(
        pair("none.pem", "site.key"),
        CertificateError::Read { .. }
    ));
    let text = format!("{site:?}");
    assert!(!text.contains("key"), "{text}");
}

/// The certificate that the program shows.
async fn shown(address: &str, authority: &Authority) -> CertificateDer<'static> {
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = handshake(authority.client(&[]), "localhost", stream).await;
    let stream = stream.unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    chain[0].clone().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_replaces_the_certificate_and_a_pair_that_does_not_fit_changes_nothing() {
    let authority = Authority::new();
    for file in ["old", "new"] {
        authority.sign(file, "DNS:localhost", 2);
    }
    let put = |from: &str, to: &str| {
        std::fs::copy(authority.path(from), authority.path(to)).unwrap();
    };
    put("old.pem", "site.pem");
    put("old.key", "site.key");
    let mut command = roomcast();
    command.args(["serve", "--access=open"]).args(ANY_PORT);
    command.arg("--tls-cert").arg(authority.path("site.pem"));
    command.arg("--tls-key").arg(authority.path("site.key"));
    let mut program = Program::start(&mut command);
    let line = program.line_with("the certificate expires soon");
    assert!(line.contains("site.pem"), "{line}");
    let line = program.line_with("listening");
    let (address, internal) = (field(&line, "address="), field(&line, "internal="));
    assert_eq!(shown(&address, &authority).await, authority.der("old.pem"));

    put("new.pem", "site.pem");
    program.signal(Signal::HUP);
    let line = program.line_with("nothing has changed");
    assert!(
        line.contains("the key does not fit the certificate"),
        "{line}"
    );
    assert_eq!(shown(&address, &authority).await, authority.der("old.pem"));

    put("new.key", "site.key");
    program.signal(Signal::HUP);
    program.line_with("reloaded the settings");
    assert_eq!(shown(&address, &authority).await, authority.der("new.pem"));

    let metrics = process::http(&internal, "GET /metrics", "").1;
    let series = format!(
        "roomcast_tls_certificate_not_after_seconds{{file=\"{}\"}}",
        authority.path("site.pem").display()
    );
    assert!(metrics.contains(&series), "{metrics}");
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_internal_port_has_certificates_of_its_own_and_processes_of_this_machine_may_do_without()
 {
    let authority = Authority::new();
    for file in ["old", "new"] {
        authority.sign(file, "DNS:localhost", 2);
    }
    let put = |file: &str| {
        for extension in ["pem", "key"] {
            let from = authority.path(&format!("{file}.{extension}"));
            std::fs::copy(from, authority.path(&format!("node.{extension}"))).unwrap();
        }
    };
    put("old");
    let mut command = roomcast();
    command.args(["serve", "--access=open"]);
    let settings = authority.path("roomcast.toml");
    std::fs::write(&settings, api_key("secret")).unwrap();
    command.arg("--config").arg(settings);
    for (option, file) in [("cert", "node.pem"), ("key", "node.key")] {
        let file = authority.path(file);
        command.arg(format!("--internal-tls-{option}={}", file.display()));
    }
    let (mut program, _, internal) = process::serve(&mut command);
    assert_eq!(shown(&internal, &authority).await, authority.der("old.pem"));

    let stream = TcpStream::connect(&internal).await.unwrap();
    let client = authority.client(&["http/1.1"]);
    let mut stream = handshake(client, "localhost", stream).await.unwrap();
    for (path, expected) in [
        ("/livez", "alive"),
        ("/metrics", "roomcast_tls_certificate_not_after_seconds"),
        ("/admin/", "<title>Roomcast admin"),
        ("/api/node", "\"node\""),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n");
        let request = format!("{head}Authorization: Bearer secret\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let response = http::response(&mut stream).await;
        assert_eq!(response.status, 200, "{path}");
        assert!(
            response.body.contains(expected),
            "{path}: {}",
            response.body
        );
    }
    assert_eq!(process::http(&internal, "GET /livez", "").0, 200);

    put("new");
    program.signal(Signal::HUP);
    program.line_with("reloaded the settings");
    assert_eq!(shown(&internal, &authority).await, authority.der("new.pem"));

    // It needs no certificate on the same machine.
    let mut drain = roomcast();
    drain
        .arg("drain")
        .arg(format!("--internal-listen={internal}"));
    assert!(drain.status().unwrap().success());
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn a_certificate_that_cannot_be_used_is_named_before_anything_starts() {
    let authority = Authority::new();
    for file in ["site", "other"] {
        authority.sign(file, "DNS:localhost", 2);
    }
    let commands = [&["config", "check"][..], &["serve"]];
    let options = [
        "--tls-cert",
        "--tls-key",
        "--internal-tls-cert",
        "--internal-tls-key",
    ];
    let cases = commands.into_iter().flat_map(|command| {
        let [public, internal] = [&options[..2], &options[2..]];
        [(command, public), (command, internal)]
    });
    for (arguments, options) in cases {
        let mut command = roomcast();
        command.args(arguments).args(ANY_PORT);
        command.arg(options[0]).arg(authority.path("site.pem"));
        command.arg(options[1]).arg(authority.path("other.key"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("the key does not fit the certificate"),
            "{text}"
        );
        assert!(
            text.contains("site.pem") && !text.contains("BEGIN"),
            "{text}"
        );
        let remedy = format!("(set with {} and {})", options[0], options[1]);
        assert!(text.contains(&remedy), "{text}");
    }
}

/// Settings with a key of the API for everything.
fn api_key(key: &str) -> String {
    let hash = process::hash(key);
    format!(
        "[[api.keys]]\nname = \"app\"\nhash = \"{hash}\"\nnamespaces = [\"*\"]\nverbs = [\"*\"]\n"
    )
}
