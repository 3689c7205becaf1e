//! `roomcast doctor` end to end: a real process, a real Redis, real nodes behind a balancer, and what is
//! wrong with them.

#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "../../emitter/tests/support/mod.rs"]
mod redis;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use process::Program;
use redis::Redis;
use serde_json::{Value, from_slice};

/// What a run with `--json` reported.
struct Report {
    status: Option<i32>,
    json: Value,
}

impl Report {
    /// The one check of that name.
    fn check(&self, area: &str, check: &str) -> &Value {
        let checks = self.json["checks"].as_array().unwrap().iter();
        let mut found = checks.filter(|found| found["area"] == area && found["check"] == check);
        let first = found.next();
        assert!(found.next().is_none(), "{check} twice: {}", self.json);
        first.unwrap_or_else(|| panic!("no {area} {check}: {}", self.json))
    }

    #[track_caller]
    fn assert(&self, area: &str, check: &str, status: &str, text: &str) {
        let found = self.check(area, check);
        assert_eq!(found["status"], status, "{}", self.json);
        assert!(found.to_string().contains(text), "{text}: {}", self.json);
    }
}

fn roomcast(line: &[&str]) -> Command {
    let mut command = process::roomcast();
    command.arg("doctor").args(line);
    command
}

fn doctor(line: &[&str]) -> Report {
    let output = roomcast(line).arg("--json").output().unwrap();
    let json = from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let status = output.status.code();
    Report { status, json }
}

#[test]
fn a_healthy_redis_has_no_failures_and_nothing_is_left_in_it() {
    let redis = Redis::start();
    let report = doctor(&["--redis", &redis.url()]);
    for check in [
        "connection",
        "version",
        "role",
        "rights",
        "memory",
        "patterns",
    ] {
        assert_eq!(
            report.check("redis", check)["status"],
            "ok",
            "{}",
            report.json
        );
    }
    report.assert("redis", "clock", "ok", "differ by");
    report.assert("redis", "buffers", "ok", "pubsub 33554432");
    report.check("host", "descriptors");
    assert_eq!((report.status, &report.json["ok"]), (Some(0), &true.into()));
    assert!(redis.command(&["DBSIZE"]).starts_with(":0"));
    assert!(redis.command(&["PUBSUB", "NUMPAT"]).starts_with(":0"));
}

#[test]
fn without_json_each_check_is_a_line() {
    let redis = Redis::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let output = roomcast(&["--redis", &redis.url()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let statuses = ["ok    ", "warn  ", "FAIL  "];
    for line in text.lines() {
        assert!(
            statuses.iter().any(|status| line.starts_with(status)),
            "{line}"
        );
    }
    let memory = "FAIL  redis memory: maxmemory 104857600, maxmemory-policy allkeys-lru; set ";
    assert!(text.contains(memory), "{text}");
}

#[test]
fn a_replica_and_a_server_that_is_not_there_are_named() {
    let primary = Redis::start();
    let follows = format!("127.0.0.1 {}", primary.port);
    let replica = Redis::with(&["--replicaof", &follows]);
    let report = doctor(&["--redis", &replica.url()]);
    report.assert("redis", "role", "fail", "not a primary");
    assert_eq!(report.status, Some(1));
    let url = primary.url();
    drop(primary);
    let report = doctor(&["--redis", &url]);
    report.assert("redis", "connection", "fail", "cannot be reached");
    assert_eq!(report.status, Some(1));
}

#[test]
fn missing_rights_are_named_and_rights_for_the_checks_alone_are_not_needed() {
    let redis = Redis::start();
    let channels = ["&socket.io*", "~socket.io*", "+@pubsub", "+@sortedset"];
    let mut node = vec!["ACL", "SETUSER", "node", "on", ">secret", "resetchannels"];
    node.extend(channels);
    node.extend(["+time", "+ping", "+select", "+client|setname"]);
    redis.command(&node);
    let url = format!("redis://node:secret@127.0.0.1:{}", redis.port);
    let report = doctor(&["--redis", &url]);
    report.assert("redis", "rights", "warn", "&*");
    report.assert("redis", "memory", "warn", "+info");
    report.assert("redis", "buffers", "warn", "+config|get");
    assert_eq!(report.status, Some(0));
    redis.command(&["ACL", "SETUSER", "node", "-zadd"]);
    let report = doctor(&["--redis", &url]);
    report.assert("redis", "rights", "fail", "ZADD");
    assert_eq!(report.status, Some(1));
    assert!(!report.json.to_string().contains("secret"));
}

#[test]
fn patterns_without_a_node_are_reported() {
    let redis = Redis::start();
    let mut gone = TcpStream::connect(redis.address()).unwrap();
    gone.write_all(b"PSUBSCRIBE socket.io#/#*\r\n").unwrap();
    redis::until("a pattern", || {
        let patterns = redis.command(&["PUBSUB", "NUMPAT"]);
        patterns.starts_with(":1").then_some(())
    });
    let report = doctor(&["--redis", &redis.url()]);
    report.assert(
        "redis",
        "patterns",
        "warn",
        "1 subscribed; nodes that serve `/`: 0",
    );
    assert_eq!(report.status, Some(0));
}

#[test]
fn wrong_options_end_with_status_2() {
    let output = roomcast(&["--ping-interval", "often"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_password_of_a_wrong_url_is_not_shown() {
    let output = roomcast(&["--url", "http://ada:s3cret@localhost/"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("expected http://HOST"), "{text}");
    assert!(!text.contains("s3cret"), "the password is shown: {text}");
}

#[test]
fn a_redis_without_tls_is_named_where_the_url_asks_for_it() {
    // It answers no handshake, as Redis does, which waits for the end of a command.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rediss://{}", silent.local_addr().unwrap());
    let report = doctor(&["--redis", &url]);
    report.assert("redis", "connection", "fail", "speaks TLS on this port");
    assert_eq!(report.status, Some(1));
}

// --- Through a balancer ---------------------------------------------------------------------------

/// A node that is open to everybody, and its address.
fn node(more: &[&str]) -> (Program, String) {
    let (program, address, _) = process::serve(process::roomcast().arg("serve").args(more));
    (program, address)
}

/// What the balancer of a test does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Nothing.
    None,
    /// Removes the headers of an upgrade, as a proxy does that speaks HTTP/1.0 to its servers.
    DropsUpgrade,
    /// Passes a request on only when it is complete.
    Buffers,
    /// Closes a connection that was silent for this long.
    Silence(Duration),
}

/// A balancer that gives each connection to the next node.
fn balancer(nodes: &[&str], fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let nodes: Vec<_> = nodes.iter().map(|&node| node.to_owned()).collect();
    thread::spawn(move || {
        for (number, client) in listener.incoming().flatten().enumerate() {
            let server = TcpStream::connect(&nodes[number % nodes.len()]).unwrap();
            if let Fault::Silence(limit) = fault {
                client.set_read_timeout(Some(limit)).unwrap();
                server.set_read_timeout(Some(limit)).unwrap();
            }
            let (to_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || pass_request(client, to_server, fault));
            thread::spawn(move || pass(server, to_client));
        }
    });
    address
}

/// Passes the one request of a connection on, and what follows it.
fn pass_request(mut from: TcpStream, mut to: TcpStream, fault: Fault) {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") && from.read(&mut byte).is_ok_and(|read| read == 1) {
        bytes.push(byte[0]);
    }
    let mut head = String::from_utf8(bytes).unwrap();
    if fault == Fault::DropsUpgrade {
        let is_kept = |line: &&str| {
            let name = line.to_lowercase();
            !name.starts_with("upgrade:") && !name.starts_with("connection:")
        };
        head = head.split_inclusive("\r\n").filter(is_kept).collect();
    }
    if fault == Fault::Buffers {
        let lower = head.to_lowercase();
        let length = lower
            .split_once("content-length:")
            .map_or("0", |(_, rest)| rest.lines().next().unwrap().trim());
        let mut body = vec![0; length.parse().unwrap()];
        // Nothing is passed on if the client gives up before.
        if from.read_exact(&mut body).is_err() {
            return;
        }
        head.push_str(std::str::from_utf8(&body).unwrap());
    }
    if to.write_all(head.as_bytes()).is_ok() {
        pass(from, to);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn through(balancer: &str, more: &[&str]) -> Report {
    let url = format!("http://{balancer}");
    doctor(&[&["--url", &url], more].concat())
}

#[test]
fn a_good_balancer_passes_all_round_trips_to_open_and_to_closed_nodes() {
    for access in ["--access=open", "--access=closed"] {
        let (_node, address) = node(&[access, "--ping-interval=1s"]);
        let report = through(&balancer(&[&address], Fault::None), &["--wait"]);
        let checks = ["polling", "sessions", "upgrade", "bodies", "websocket"];
        for check in checks.into_iter().chain(["websocket ping", "polling ping"]) {
            assert_eq!(
                report.check("url", check)["status"],
                "ok",
                "{}",
                report.json
            );
        }
        assert_eq!(report.status, Some(0), "{}", report.json);
    }
}

#[test]
fn dropped_headers_of_an_upgrade_are_named_and_polling_is_fine() {
    let (_node, address) = node(&["--access=open"]);
    let report = through(&balancer(&[&address], Fault::DropsUpgrade), &[]);
    report.assert("url", "polling", "ok", "round trip");
    for check in ["websocket", "upgrade"] {
        report.assert("url", check, "fail", "proxy_set_header Upgrade");
    }
    assert_eq!(report.status, Some(1));
}

#[test]
fn sessions_that_are_spread_over_nodes_are_named_and_websockets_are_fine() {
    let nodes = [node(&["--access=open"]), node(&["--access=open"])];
    let addresses = [&*nodes[0].1, &*nodes[1].1];
    let report = through(&balancer(&addresses, Fault::None), &[]);
    report.assert("url", "sessions", "fail", "4 of 8 requests");
    report.assert("url", "sessions", "fail", "sticky");
    report.assert("url", "websocket", "ok", "round trip");
    assert_eq!(report.status, Some(1));
}

#[test]
fn buffered_bodies_are_a_warning() {
    let (_node, address) = node(&["--access=open"]);
    let report = through(&balancer(&[&address], Fault::Buffers), &[]);
    report.assert("url", "bodies", "warn", "proxy_request_buffering off");
    assert_eq!(report.status, Some(0), "{}", report.json);
}

#[test]
fn a_timeout_shorter_than_the_ping_is_named() {
    let (_node, address) = node(&["--access=open", "--ping-interval=20s"]);
    let fault = Fault::Silence(Duration::from_secs(2));
    let report = through(&balancer(&[&address], fault), &["--wait"]);
    report.assert("url", "websocket", "ok", "round trip");
    for check in ["websocket ping", "polling ping"] {
        report.assert("url", check, "fail", "above 40 s");
    }
    assert_eq!(report.status, Some(1));
}

#[test]
fn a_url_that_leads_elsewhere_is_named() {
    let (_node, address) = node(&["--access=open", "--path=/chat/"]);
    let report = through(&address, &[]);
    report.assert("url", "polling", "fail", "--path");
    assert_eq!(report.status, Some(1));
    assert_eq!(through(&address, &["--path=/chat/"]).status, Some(0));
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let report = through(&closed.to_string(), &[]);
    report.assert("url", "polling", "fail", "refused");
}
