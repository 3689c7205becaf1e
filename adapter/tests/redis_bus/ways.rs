//! The ways to a Redis server, each with a message that makes it.

use roomcast_adapter::RedisConfig;
use roomcast_protocol::channel::Dialect;

use crate::{
    deployment::{metric, node},
    node::broadcast,
    support::{Certificates, Directory, Redis},
};

async fn messages_flow(url: &str) {
    let config = RedisConfig::new(url.parse().unwrap());
    let (a, b) = (node(&config, "/").await, node(&config, "/").await);
    assert_eq!(a.publish(broadcast(&[], 1)).await, 1, "{url}");
    assert_eq!(b.heard(1).await, [broadcast(&[], 1)]);
    assert!(metric(&b, "roomcast_bus_messages_received_total", "") == 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_with_a_password_and_whatever_the_database() {
    let server = Redis::with(&["--requirepass", "secret"]);
    messages_flow(&format!("redis://:secret@{}/3", server.address())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_through_a_unix_socket() {
    let directory = Directory::new();
    let socket = directory.file("redis.sock");
    let _server = Redis::with(&["--unixsocket", &socket]);
    messages_flow(&format!("unix://{socket}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_over_tls() {
    let certificates = Certificates::make();
    let (_server, port) = certificates.redis(&["--tls-auth-clients", "no"]);
    let ca = certificates.file("ca.pem");
    messages_flow(&format!("rediss://127.0.0.1:{port}?ca={ca}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_through_the_primary_that_sentinels_name() {
    let primary = Redis::start();
    let sentinel = Redis::sentinel(primary.port, "");
    let url = format!("redis+sentinel://{}/mymaster", sentinel.address());
    messages_flow(&url).await;
    // A stream is read from the primary, too. The former nodes are another cluster.
    let mut config = RedisConfig::new(url.parse().unwrap());
    (config.dialect, config.prefix) = (Dialect::Streams, "streams".into());
    let (a, b) = (node(&config, "/").await, node(&config, "/").await);
    a.publish(broadcast(&[], 1)).await;
    assert_eq!(b.heard(1).await, [broadcast(&[], 1)]);
}
