//! A node and its Redis: it starts without one, and its sockets are subscribed when they are known.

#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;
#[path = "../../emitter/tests/support/mod.rs"]
mod server;

use std::net::TcpStream;

use process::{Program, client::Client, field, http, roomcast, roomcast_within, serve};
use rustix::process::Signal;
use server::{Redis, free_port, until};

/// A node of a cluster, and the address of its internal port.
fn start(redis: &Redis, options: &[&str]) -> (Program, String) {
    let internal = format!("127.0.0.1:{}", free_port());
    let mut command = roomcast();
    command
        .args(["serve", "--access=open", "--listen", "127.0.0.1:0"])
        .args(["--internal-listen", &internal, "--redis", &redis.url()])
        .args(options);
    (Program::start(&mut command), internal)
}

#[track_caller]
fn wait_until_ready(internal: &str) {
    until("the node is ready", || {
        (http(internal, "GET /readyz", "").0 == 200).then_some(())
    });
}

#[test]
fn a_link_to_redis_comes_back_while_clients_hold_every_connection_that_they_may() {
    let mut redis = Redis::start();
    let descriptors = 200;
    let mut command = roomcast_within(descriptors);
    command.args(["serve", "--access=open", "--redis", &redis.url()]);
    let (_node, address, internal) = serve(&mut command);
    wait_until_ready(&internal);
    let held: Vec<_> = (0..descriptors + 30)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    until("clients are refused", || {
        let refused = http(&address, "GET /socket.io/?EIO=4&transport=polling", "");
        (refused.0 == 503).then_some(())
    });
    redis.kill();
    until("the node is not ready", || {
        (http(&internal, "GET /readyz", "").0 == 503).then_some(())
    });
    redis.restart();
    wait_until_ready(&internal);
    drop(held);
}

#[test]
fn a_node_that_starts_before_redis_waits_for_it_and_gives_the_reason() {
    let mut redis = Redis::start();
    redis.kill();
    let (mut node, internal) = start(&redis, &[]);
    node.line_with("waiting for Redis");
    let (status, reason) = http(&internal, "GET /readyz", "");
    assert_eq!(status, 503);
    assert!(
        reason.starts_with("starting: ") && reason.contains(&redis.address()),
        "{reason}"
    );
    redis.restart();
    node.line_with("listening address=");
    wait_until_ready(&internal);
}

#[test]
fn a_node_that_starts_while_redis_refuses_writes_waits_and_gives_what_redis_said() {
    let redis = Redis::start();
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let (mut node, internal) = start(&redis, &[]);
    let line = node.line_with("waiting for Redis");
    assert!(!line.contains("its user needs"), "{line}");
    let (status, reason) = http(&internal, "GET /readyz", "");
    assert_eq!(status, 503);
    assert!(reason.contains("NOREPLICAS"), "{reason}");
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    node.line_with("listening address=");
    wait_until_ready(&internal);
}

#[test]
fn a_node_that_waits_for_redis_ends_at_a_signal() {
    let mut redis = Redis::start();
    redis.kill();
    let (mut node, _) = start(&redis, &[]);
    node.line_with("waiting for Redis");
    node.signal(Signal::TERM);
    let (status, said) = node.end();
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn a_node_that_does_not_require_redis_serves_its_clients_meanwhile() {
    let mut redis = Redis::start();
    redis.kill();
    let (mut node, internal) = start(&redis, &["--redis-required=false"]);
    let line = node.line_with("listening address=");
    let client = Client::connect(&field(&line, "address="));
    assert!(!client.id().is_empty());
    let (status, reason) = http(&internal, "GET /readyz", "");
    assert_eq!(status, 503);
    assert!(reason.starts_with("interrupted: "), "{reason}");
    redis.restart();
    wait_until_ready(&internal);
}

#[test]
fn a_missing_right_ends_a_node_at_once() {
    let redis = Redis::start();
    let user = ["ACL", "SETUSER", "default", "-zadd"];
    redis.command(&user);
    let (node, _) = start(&redis, &["--redis-required=false"]);
    let (status, said) = node.end();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("its user needs"), "{said}");
}

/// In the channel's name is the id that the client has just been told.
#[test]
fn a_socket_is_subscribed_before_its_client_knows_its_id() {
    let redis = Redis::start();
    let (mut node, _) = start(&redis, &["--redis-private-rooms", "channel"]);
    let address = field(&node.line_with("listening address="), "address=");
    for _ in 0..50 {
        let client = Client::connect(&address);
        let channel = format!("socket.io#/#{}#", client.id());
        let receivers = redis.command(&["PUBSUB", "NUMSUB", &channel]);
        assert!(receivers.ends_with(":1\r\n"), "{receivers}");
    }
}
