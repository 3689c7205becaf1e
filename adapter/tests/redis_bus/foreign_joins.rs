//! Node's servers and emitters have sockets join a room and emit to it at once.

use std::sync::Arc;

use parking_lot::Mutex;
use roomcast_adapter::{Gap, Health};
use roomcast_protocol::{
    channel::EMITTER_UID,
    message::Message,
    msgpack::TranscodeLimits,
    target::Target,
    wire::{Parser, Publication, Wire},
};
use serde_json::json;

use crate::{
    deployment::{Deployment, connect, metric},
    node::{Node, broadcast, eventually},
    support::Plain,
};

/// Publishes both in one step, so that nothing is heard in between.
const AT_ONCE: &str =
    "redis.call('publish', ARGV[1], ARGV[2]); redis.call('publish', ARGV[3], ARGV[4])";

/// What a Node emitter publishes.
struct NodeEmitter {
    connection: Plain,
    wire: Wire,
}

impl NodeEmitter {
    fn connect(deployment: &Deployment) -> Self {
        let limits = TranscodeLimits::default();
        Self {
            connection: deployment.plain(),
            wire: Wire::new(deployment.channels(), Parser::default(), limits),
        }
    }

    /// Has all sockets join a room, and emits to it. Returns what a node hears.
    fn join_and_emit(&mut self, room: &str, number: u32) -> [Message; 2] {
        let target = json!({"rooms": [], "except": []});
        let join = json!({"type": 2, "opts": target, "rooms": [room]}).to_string();
        let request = self.wire.channels().request("/");
        let message = broadcast(&[room], number);
        let emit = self.wire.message("/", EMITTER_UID, &message, None).unwrap();
        let Publication { channel, payload } = emit;
        let parts: [&[u8]; 7] = [
            b"EVAL",
            AT_ONCE.as_bytes(),
            b"0",
            request.as_bytes(),
            join.as_bytes(),
            channel.as_bytes(),
            &payload,
        ];
        self.connection.command(&parts);
        let join = Message::SocketsJoin {
            target: Target::default(),
            rooms: vec![room.into()],
        };
        [join, message]
    }
}

/// Holds the channels by which servers are counted, as a Node server does.
fn node_server(deployment: &Deployment) -> Plain {
    let mut listening = deployment.plain();
    let channels = deployment.channels();
    for channel in [channels.request("/"), channels.response("/").unwrap()] {
        listening.command(&["SUBSCRIBE", &channel]);
    }
    listening
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emit_behind_a_join_of_a_node_emitter_arrives_once() {
    let deployment = Deployment::start();
    let node = deployment.node().await;
    let gaps = Arc::<Mutex<Vec<Gap>>>::default();
    let noted = Arc::clone(&gaps);
    node.bus
        .on_gap(Box::new(move |gap| noted.lock().push(*gap)));
    let mut emitter = NodeEmitter::connect(&deployment);
    // Nobody knows of an emitter before its first command.
    let [first, _] = emitter.join_and_emit("first", 0);
    node.hears(&first).await;
    eventually("what may be missing is reported", || gaps.lock().len() == 1).await;
    let rest = node.side.take_heard();
    assert!(rest.len() <= 2, "{rest:?}");
    for number in 1..200 {
        let room = format!("room {number}");
        let sent = emitter.join_and_emit(&room, number);
        assert_eq!(node.heard(2).await, sent);
    }
    assert_eq!(gaps.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_node_servers_nothing_is_missed_from_the_first_join_on() {
    let deployment = Deployment::start();
    let node = deployment.node().await;
    node.join("r").await;
    let _server = node_server(&deployment);
    // The channel of the room is given up once the pattern is there.
    let channel = deployment.channels().room("/", "r");
    deployment.until_subscribed(&channel, 0).await;
    let mut emitter = NodeEmitter::connect(&deployment);
    for number in 0..100 {
        let sent = emitter.join_and_emit(&format!("room {number}"), number);
        assert_eq!(node.heard(2).await, sent);
    }
    assert!(metric(&node, "roomcast_bus_gaps_total", "") == 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_node_servers_all_rooms_are_heard_and_each_node_counts_once() {
    let deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    b.join("r").await;
    let socket = b.connect(1);
    b.confirm(socket.as_str()).await;
    let channel = deployment.channels().room("/", "r");
    let server = node_server(&deployment);
    // The channel of the room is given up once the pattern is there.
    deployment.until_subscribed(&channel, 0).await;
    eventually("both hear by one pattern", || deployment.patterns() == 1).await;
    for rooms in [&["r"][..], &[socket.as_str()], &[]] {
        assert_eq!(a.publish(broadcast(rooms, 7)).await, 1);
        assert_eq!(b.heard(1).await, [broadcast(rooms, 7)]);
    }
    // Without Node servers, rooms have channels again, and nothing is lost or doubled meanwhile.
    drop(server);
    let mut number = 100;
    for subscribers in [1, 2] {
        eventually("the node has changed its mind", || {
            let is_done = match subscribers {
                1 => deployment.subscribers(&channel) == 1,
                _ => deployment.patterns() == 2,
            };
            if !is_done {
                number += 1;
                let sent = broadcast(&["r"], number);
                drop(a.handle.publish(sent));
            }
            is_done
        })
        .await;
    }
    let sent: Vec<_> = (101..=number).map(|n| broadcast(&["r"], n)).collect();
    assert_eq!(b.heard(sent.len()).await, sent);
    a.publish(broadcast(&["r"], 0)).await;
    assert_eq!(b.heard(1).await, [broadcast(&["r"], 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_started_without_redis_follows_joins_like_any_other() {
    let mut deployment = Deployment::start();
    deployment.config.is_required = false;
    deployment.server.kill();
    let (bus, id) = connect(&deployment.config).await;
    let node = Node::attach(bus, id, "/");
    assert!(matches!(node.bus.health(), Health::Interrupted(_)));
    deployment.server.restart();
    eventually("messages flow", || node.bus.health() == Health::Flowing).await;
    let _server = node_server(&deployment);
    // Only now is it known whether the user may subscribe the pattern.
    eventually("all rooms are heard", || deployment.patterns() == 1).await;
}
