//! Whatever anybody publishes, a node goes on.

use std::{fs, path::Path, time::Duration};

use roomcast_adapter::Question;
use roomcast_protocol::{
    channel::{Dialect, Mode},
    target::Target,
};
use serde_json::Value;

use crate::{
    deployment::{Deployment, metric, uid_of},
    node::broadcast,
};

/// What was published to try Node's servers, with the channels.
fn tried(file: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/fixtures");
    let text = fs::read_to_string(path.join(file)).unwrap();
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let digits = line["payload_hex"].as_str().unwrap().as_bytes();
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).unwrap();
            u8::from_str_radix(pair, 16).unwrap()
        };
        let payload = digits.chunks(2).map(byte).collect();
        (line["channel"].as_str().unwrap().to_owned(), payload)
    });
    lines.collect()
}

/// Bytes without sense, the same each time; some begin as what has sense.
fn garbage() -> impl Iterator<Item = Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..200).map(move |number| {
        let length = next() % 120;
        let mut bytes: Vec<u8> = (0..length).map(|_| next().to_be_bytes()[0]).collect();
        match number % 4 {
            0 => bytes.insert(0, b'{'),
            1 => bytes.insert(0, 0x93),
            2 => bytes.splice(0..0, *b"[\"x\",{").for_each(drop),
            _ => {}
        }
        bytes
    })
}

async fn check(dialect: Dialect, file: &str) {
    let deployment = Deployment::of(dialect);
    let (a, b) = (deployment.node().await, deployment.node().await);
    a.join("r").await;
    let socket = a.connect(1);
    a.confirm(socket.as_str()).await;
    let (channels, uid) = (deployment.channels(), uid_of(&a, dialect));
    let mut names = vec![
        channels.broadcast("/"),
        channels.request("/"),
        channels.room("/", "r"),
        channels.room("/", socket.as_str()),
        channels.response_of("/", uid.as_str()),
    ];
    names.extend(channels.response("/"));
    // Answers are read only by who waits for some.
    b.be_mute();
    let question = Question::Sockets(Target::default());
    let asked = a.handle.ask(question, Duration::from_secs(3600));
    let asking = tokio::spawn(asked);
    let mut stranger = deployment.plain();
    let publish = deployment.publish_command().as_bytes();
    for (channel, payload) in tried(file) {
        for name in std::iter::once(&channel).chain(&names) {
            stranger.command(&[publish, name.as_bytes(), &payload]);
        }
    }
    for payload in garbage() {
        for name in &names {
            stranger.command(&[publish, name.as_bytes(), &payload]);
        }
    }
    // It comes behind all of that.
    let good = broadcast(&["r"], 4711);
    b.publish(good.clone()).await;
    a.hears(&good).await;
    let dropped = |reason| metric(&a, "roomcast_bus_messages_dropped_total", reason);
    assert!(dropped("undecodable") > 100.0, "{}", dropped("undecodable"));
    assert!(dropped("unknown_namespace") > 0.0);
    let reconnects = metric(&a, "roomcast_bus_reconnects_total", "subscriber");
    assert!(reconnects == 0.0, "{reconnects}");
    assert!(!asking.is_finished());
    asking.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_survives_everything_that_is_published() {
    check(Dialect::Classic, "tolerance-classic.jsonl").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_survives_everything_that_is_published_on_sharded_channels() {
    let dialect = Dialect::Sharded(Mode::DynamicPrivate);
    check(dialect, "tolerance-sharded.jsonl").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_is_dropped_and_counted() {
    let deployment = Deployment::of(Dialect::Classic);
    let (a, b) = (deployment.node().await, deployment.node().await);
    a.join("r").await;
    let mut stranger = deployment.plain();
    // Redis would close the connection of a subscriber that has more than 32 MB before it.
    let unlimited = [
        "CONFIG",
        "SET",
        "client-output-buffer-limit",
        "pubsub 0 0 0",
    ];
    stranger.command(&unlimited.map(str::as_bytes));
    let room = deployment.channels().room("/", "r");
    for bytes in [64 << 20, (64 << 20) + 1] {
        stranger.command(&[b"PUBLISH", room.as_bytes(), &vec![0; bytes]]);
    }
    let good = broadcast(&["r"], 4711);
    b.publish(good.clone()).await;
    a.hears(&good).await;
    let dropped = |reason| metric(&a, "roomcast_bus_messages_dropped_total", reason);
    assert_eq!((dropped("undecodable"), dropped("too_large")), (1.0, 1.0));
}
