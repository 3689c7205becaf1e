//! `roomcast doctor` end to end: a real process, a real Redis, and what is wrong with it.

#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../emitter/tests/support/mod.rs"]
mod redis;

use std::process::Command;

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
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
    command.env_clear().arg("doctor").args(line);
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
    let mut gone = std::net::TcpStream::connect(redis.address()).unwrap();
    std::io::Write::write_all(&mut gone, b"PSUBSCRIBE socket.io#/#*\r\n").unwrap();
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
