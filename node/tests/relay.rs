//! Any node accepts any request: it relays those of other nodes' sessions, and nobody else can.

#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/certificates.rs"]
#[expect(dead_code, reason = "a part of it is for other tests")]
mod certificates;
#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "../../emitter/tests/support/mod.rs"]
mod server;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use certificates::Authority;
use process::{DEADLINE, Program, field, http};
use rustix::process::Signal;
use server::{Redis, until};

const KEY: &str = "a key that only these tests know of";

const UNKNOWN: &str = r#"{"code":1,"message":"Session ID unknown"}"#;

struct Node {
    program: Program,
    /// For clients, for operators, and for other nodes.
    address: String,
    internal: String,
    relay: String,
}

impl Node {
    fn start(redis: &Redis, options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
        command
            .env_clear()
            .env("ROOMCAST_CLUSTER_KEY", KEY)
            .args(["serve", "--access=open", "--listen=127.0.0.1:0"])
            .args([
                "--internal-listen=127.0.0.1:0",
                "--relay-listen=127.0.0.1:0",
            ])
            .args([
                "--drain-grace=0s",
                "--drain-over=0s",
                "--redis",
                &redis.url(),
            ])
            .args(options);
        let mut program = Program::start(&mut command);
        let relay = field(&program.line_with("relaying between nodes"), "address=");
        let line = program.line_with("listening address=");
        Self {
            address: field(&line, "address="),
            internal: field(&line, "internal="),
            relay,
            program,
        }
    }

    /// Opens a session and connects it to the main namespace.
    fn open(&self) -> Session {
        let (status, body) = http(&self.address, "GET /socket.io/?EIO=4&transport=polling", "");
        assert_eq!(status, 200, "{body}");
        let open = body.strip_prefix(r#"0{"sid":""#).unwrap();
        let session = Session(open.split('"').next().unwrap().to_owned());
        assert_eq!(session.post(self, "40"), (200, "ok".to_owned()));
        let (status, reply) = session.poll(self);
        assert!(status == 200 && reply.starts_with("40{"), "{reply}");
        session
    }

    /// The value of a series of the metrics.
    fn metric(&self, series: &str) -> u64 {
        let (_, text) = http(&self.internal, "GET /metrics", "");
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }
}

/// The id of a session.
#[derive(Clone)]
struct Session(String);

impl Session {
    fn path(&self) -> String {
        format!("/socket.io/?EIO=4&transport=polling&sid={}", self.0)
    }

    fn poll(&self, node: &Node) -> (u16, String) {
        http(&node.address, &format!("GET {}", self.path()), "")
    }

    fn post(&self, node: &Node, body: &str) -> (u16, String) {
        http(&node.address, &format!("POST {}", self.path()), body)
    }

    /// Polls at a node until there is something.
    fn parked(&self, node: &Node) -> JoinHandle<(u16, String)> {
        let (address, path) = (node.address.clone(), self.path());
        thread::spawn(move || http(&address, &format!("GET {path}"), ""))
    }
}

fn relayed(kind: &str, outcome: &str) -> String {
    format!("roomcast_relay_requests_total{{kind=\"{kind}\",outcome=\"{outcome}\"}} ")
}

fn received(outcome: &str) -> String {
    format!("roomcast_relay_received_total{{outcome=\"{outcome}\"}} ")
}

#[track_caller]
fn wait_until_relaying(node: &Node, count: u64) {
    until("requests are being relayed", || {
        (node.metric("roomcast_relay_open ") == count).then_some(())
    });
}

#[test]
fn a_session_is_served_by_every_node() {
    let redis = Redis::start();
    let nodes = [Node::start(&redis, &[]), Node::start(&redis, &[])];
    for (owner, other) in [(0, 1), (1, 0)] {
        let (owner, other) = (&nodes[owner], &nodes[other]);
        let session = owner.open();
        let poll = session.parked(other);
        wait_until_relaying(other, 1);
        // The posts go both ways while the poll waits.
        assert_eq!(
            session.post(other, r#"420["unknown"]"#),
            (200, "ok".to_owned())
        );
        assert_eq!(session.post(owner, "41"), (200, "ok".to_owned()));
        assert_eq!(session.post(other, "1"), (200, "ok".to_owned()));
        assert_eq!(poll.join().unwrap(), (200, "6".to_owned()));
        assert_eq!(session.poll(other), (400, UNKNOWN.to_owned()));
        assert_eq!(other.metric(&relayed("poll", "relayed")), 2);
        assert_eq!(owner.metric(&received("accepted")), 4);
    }
}

#[test]
fn a_session_of_nobody_is_unknown_at_once() {
    let redis = Redis::start();
    let node = Node::start(&redis, &[]);
    for id in [
        "aaaabbbbccccddddeeee",
        "short",
        "aaaa%0d%0abbbbccccdddd",
        "",
    ] {
        let session = Session(id.to_owned());
        assert_eq!(session.poll(&node), (400, UNKNOWN.to_owned()), "{id}");
        assert_eq!(session.post(&node, "40"), (400, UNKNOWN.to_owned()), "{id}");
    }
}

#[test]
fn a_session_whose_node_is_gone_is_unknown() {
    let redis = Redis::start();
    let (owner, other) = (Node::start(&redis, &[]), Node::start(&redis, &[]));
    let session = owner.open();
    let poll = session.parked(&other);
    wait_until_relaying(&other, 1);
    owner.program.signal(Signal::KILL);
    assert_eq!(poll.join().unwrap(), (400, UNKNOWN.to_owned()));
    // Its lease still holds, and nobody listens.
    assert_eq!(session.post(&other, "41"), (400, UNKNOWN.to_owned()));
    assert!(other.metric(&relayed("poll", "gone")) >= 1);
}

#[test]
fn a_request_to_a_node_that_hangs_ends_with_its_lease() {
    let redis = Redis::start();
    let (owner, other) = (Node::start(&redis, &[]), Node::start(&redis, &[]));
    let session = owner.open();
    let poll = session.parked(&other);
    wait_until_relaying(&other, 1);
    owner.program.signal(Signal::STOP);
    assert_eq!(poll.join().unwrap(), (400, UNKNOWN.to_owned()));
    owner.program.signal(Signal::CONT);
}

#[test]
fn a_node_that_stops_gives_back_the_polls_that_it_relays() {
    let redis = Redis::start();
    let (owner, other) = (Node::start(&redis, &[]), Node::start(&redis, &[]));
    let session = owner.open();
    let poll = session.parked(&other);
    wait_until_relaying(&other, 1);
    other.program.signal(Signal::TERM);
    assert_eq!(poll.join().unwrap(), (200, "6".to_owned()));
    let (status, said) = other.program.end();
    assert_eq!(status, Some(0), "{said}");
    // The session goes on.
    let poll = session.parked(&owner);
    assert_eq!(session.post(&owner, "1"), (200, "ok".to_owned()));
    assert_eq!(poll.join().unwrap(), (200, "6".to_owned()));
}

#[test]
fn nodes_relay_over_tls_to_nodes_with_a_certificate_that_they_can_verify() {
    let redis = Redis::start();
    let (authority, other_authority) = (Authority::new(), Authority::new());
    authority.sign("node", "IP:127.0.0.1,DNS:nodes.internal", 2);
    let file = |option: &str, file: &str| format!("--{option}={}", authority.path(file).display());
    let trusts = &file("relay-tls-ca", "ca.pem");
    let certified = [
        trusts,
        &file("internal-tls-cert", "node.pem"),
        &file("internal-tls-key", "node.key"),
    ];
    let start = |options: &[&str]| Node::start(&redis, options);
    let owner = start(&certified.map(String::as_str));
    let named = start(&[trusts, "--relay-tls-name=nodes.internal"]);
    let twin = start(&certified.map(String::as_str));
    for other in [&named, &twin] {
        let session = owner.open();
        assert_eq!(session.post(other, "1"), (200, "ok".to_owned()));
        let session = other.open();
        assert_eq!(session.post(&owner, "1"), (200, "ok".to_owned()));
    }
    probe(&twin.address, &owner.open());

    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
    command.env_clear().env("ROOMCAST_CLUSTER_KEY", KEY);
    command.args(["config", "check", "--redis=redis://127.0.0.1"]);
    let (status, error) = Program::start(command.arg(file("relay-tls-ca", "node.key"))).end();
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("set with --relay-tls-ca"), "{error}");

    let foreign = other_authority.path("ca.pem");
    for options in [
        vec![],
        vec![trusts.clone(), "--relay-tls-name=other.internal".to_owned()],
        vec![format!("--relay-tls-ca={}", foreign.display())],
    ] {
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let mut other = start(&options);
        let session = owner.open();
        assert_eq!(session.post(&other, "41"), (400, UNKNOWN.to_owned()));
        other.program.line_with("a node cannot be reached");
    }
}

/// Opens a WebSocket for a session and exchanges the probe of an upgrade.
fn probe(address: &str, session: &Session) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let path = session.path().replace("=polling", "=websocket");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    .unwrap();
    // A text of six bytes, whose mask changes nothing.
    stream.write_all(b"\x81\x86\0\0\0\x002probe").unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"\x81\x063probe") {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&received));
        received.extend(&buffer[..count]);
    }
}

#[test]
fn no_more_is_relayed_at_a_time_than_the_limit() {
    let redis = Redis::start();
    let owner = Node::start(&redis, &[]);
    let other = Node::start(&redis, &["--relay-max=1"]);
    let sessions = [owner.open(), owner.open()];
    let poll = sessions[0].parked(&other);
    wait_until_relaying(&other, 1);
    assert_eq!(sessions[1].poll(&other).0, 503);
    assert_eq!(other.metric(&relayed("poll", "limit")), 1);
    assert_eq!(sessions[0].post(&owner, "1").0, 200);
    assert_eq!(poll.join().unwrap().0, 200);
    wait_until_relaying(&other, 0);
    assert_eq!(sessions[1].post(&other, "1").0, 200);
}

#[test]
fn nodes_with_another_key_do_not_relay_to_each_other() {
    let redis = Redis::start();
    let owner = Node::start(&redis, &[]);
    let key = format!("--cluster-key=another {KEY}");
    let stranger = Node::start(&redis, &[&key]);
    let rotating = Node::start(&redis, &[&format!("--cluster-key={KEY},another {KEY}")]);
    let session = owner.open();
    assert_eq!(session.post(&stranger, "41"), (400, UNKNOWN.to_owned()));
    assert_eq!(stranger.metric(&relayed("post", "refused")), 1);
    assert_eq!(owner.metric(&received("signature")), 1);
    assert_eq!(session.post(&rotating, "41"), (200, "ok".to_owned()));
    let session = rotating.open();
    assert_eq!(session.post(&stranger, "41"), (200, "ok".to_owned()));
}

#[test]
fn what_no_node_has_signed_is_refused_and_opens_no_session() {
    let redis = Redis::start();
    let owner = Node::start(&redis, &[]);
    let session = owner.open();
    for request in [
        format!("GET {}", session.path()),
        format!("POST {}", session.path()),
        "GET /socket.io/?EIO=4&transport=polling".to_owned(),
    ] {
        assert_eq!(
            http(&owner.relay, &request, "1"),
            (421, "signature\n".to_owned())
        );
    }
    assert_eq!(http(&owner.relay, "GET /metrics", "").0, 421);
    assert_eq!(owner.metric(&received("signature")), 4);
    assert_eq!(session.post(&owner, "41"), (200, "ok".to_owned()));
}

#[test]
fn a_recorded_link_is_refused_as_it_stands_and_changed() {
    let redis = Redis::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let owner = Node::start(&redis, &[&format!("--relay-address={address}")]);
    let recorded = record(listener, owner.relay.clone());
    let other = Node::start(&redis, &[]);
    let session = owner.open();
    assert_eq!(session.post(&other, r#"42["x"]"#), (200, "ok".to_owned()));
    let bytes = recorded.lock().unwrap().clone();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let request = String::from_utf8(bytes[..end.unwrap() + 4].to_vec()).unwrap();
    assert!(request.starts_with("GET /roomcast-relay "), "{request}");
    let id = session.0.as_bytes();
    assert!(
        !bytes.windows(id.len()).any(|part| part == id),
        "what follows is encrypted"
    );
    assert_eq!(send(&owner.relay, &request), "replay");
    let changed = request.replace("GET /", "PUT /");
    assert_eq!(send(&owner.relay, &changed), "signature");
    assert_eq!(send(&other.relay, &request), "signature", "another node");
    assert_eq!(session.post(&owner, "41"), (200, "ok".to_owned()));
}

#[test]
fn a_link_that_breaks_is_opened_again() {
    let redis = Redis::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let owner = Node::start(&redis, &[&format!("--relay-address={address}")]);
    let target = owner.relay.clone();
    let links = Arc::new(Mutex::new(Vec::<TcpStream>::new()));
    let opened = Arc::clone(&links);
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            opened.lock().unwrap().push(client.try_clone().unwrap());
            carry(client, TcpStream::connect(&target).unwrap(), |_| {});
        }
    });
    let other = Node::start(&redis, &[]);
    let (first, second) = (owner.open(), owner.open());
    let poll = first.parked(&other);
    wait_until_relaying(&other, 1);
    for link in links.lock().unwrap().drain(..) {
        link.shutdown(std::net::Shutdown::Both).unwrap();
    }
    assert_eq!(poll.join().unwrap(), (400, UNKNOWN.to_owned()));
    let poll = second.parked(&other);
    wait_until_relaying(&other, 1);
    assert_eq!(second.post(&other, "1"), (200, "ok".to_owned()));
    assert_eq!(poll.join().unwrap(), (200, "6".to_owned()));
    assert_eq!(links.lock().unwrap().len(), 1);
}

/// Passes connections on to a listener, and records what is sent there.
fn record(listener: TcpListener, target: String) -> Arc<Mutex<Vec<u8>>> {
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&recorded);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&target).unwrap());
            let record = Arc::clone(&record);
            carry(client, server, move |bytes| {
                record.lock().unwrap().extend_from_slice(bytes);
            });
        }
    });
    recorded
}

/// Passes bytes on in both directions, after `seen` has seen those of the client.
fn carry(mut client: TcpStream, mut server: TcpStream, seen: impl Fn(&[u8]) + Send + 'static) {
    let (mut back, mut from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || drop(std::io::copy(&mut from, &mut back)));
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            seen(&buffer[..count]);
            if server.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // It may be closed already.
        drop(server.shutdown(std::net::Shutdown::Both));
    });
}

/// Sends a request that must be refused. Returns the reason.
fn send(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    while !response.ends_with("\n") || response.ends_with("\r\n") {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{response}");
        response.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(response.starts_with("HTTP/1.1 421 "), "{response}");
    response.lines().last().unwrap().to_owned()
}

#[test]
fn the_key_is_in_no_output() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
        command.env_clear().env("ROOMCAST_CLUSTER_KEY", KEY);
        command.env("ROOMCAST_REDIS_SIGNING_KEY", KEY);
        Program::start(command.args(arguments)).end()
    };
    let (status, shown) = run(&["config", "show", "--redis=redis://127.0.0.1"]);
    assert_eq!(status, Some(0), "{shown}");
    assert!(
        shown.contains("cluster_key = \"…\" # ROOMCAST_CLUSTER_KEY"),
        "{shown}"
    );
    assert!(
        shown.contains("redis_signing_key = \"…\" # ROOMCAST_REDIS_SIGNING_KEY"),
        "{shown}"
    );
    let (status, help) = run(&["serve", "--help"]);
    assert_eq!(status, Some(0), "{help}");
    let (status, error) = run(&["serve", "--cluster-key=only these"]);
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("at least 32 characters"), "{error}");
    for text in [shown, help, error] {
        assert!(!text.contains("only these"), "{text}");
    }
    let (status, error) = run(&["serve"]);
    assert_eq!(status, Some(2));
    assert!(error.contains("--cluster-key needs --redis"), "{error}");
}
