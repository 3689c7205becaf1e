//! Which channels a node hears.

use std::sync::Arc;

use roomcast_adapter::PrivateRooms;
use roomcast_protocol::channel::{Dialect, Mode};

use crate::{
    deployment::{Deployment, connect, metric},
    node::{Node, broadcast, eventually},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_rooms_of_others_does_not_reach_a_node() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)] {
        let deployment = Deployment::of(dialect);
        let (a, b) = (deployment.node().await, deployment.node().await);
        let socket = a.connect(1);
        b.join("r").await;
        let received = || metric(&b, "roomcast_bus_messages_received_total", "");
        let before = received();
        for number in 0..50 {
            a.publish(broadcast(&["elsewhere"], number)).await;
            if dialect == Dialect::Classic {
                a.publish(broadcast(&[socket.as_str()], number)).await;
            }
        }
        a.publish(broadcast(&["r"], 50)).await;
        assert_eq!(b.heard(1).await, [broadcast(&["r"], 50)]);
        assert!(received() - before == 1.0, "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_rooms_share_one_pattern_and_a_public_one_that_looks_alike_is_heard_once() {
    let deployment = Deployment::start();
    let (a, b) = (deployment.node().await, deployment.node().await);
    let channels = deployment.channels();
    for number in 0..20 {
        let socket = b.connect(number);
        let message = broadcast(&[socket.as_str()], number);
        assert_eq!(a.publish(message.clone()).await, 1);
        assert_eq!(b.heard(1).await, [message]);
        assert_eq!(
            deployment.subscribers(&channels.room("/", socket.as_str())),
            0
        );
    }
    assert_eq!(deployment.patterns(), 2);
    let alike = format!("{}sixteen letters!", &b.id.as_str()[..4]);
    assert_eq!(alike.len(), 20);
    b.join(&alike).await;
    a.publish(broadcast(&[&alike], 1)).await;
    a.publish(broadcast(&[], 2)).await;
    assert_eq!(
        b.heard(2).await,
        [broadcast(&[&alike], 1), broadcast(&[], 2)]
    );
    // The tag of another node is nothing special.
    a.join(&alike).await;
    b.publish(broadcast(&[&alike], 3)).await;
    b.publish(broadcast(&[], 4)).await;
    assert_eq!(
        a.heard(2).await,
        [broadcast(&[&alike], 3), broadcast(&[], 4)]
    );
}

/// How many patterns a node adds, and whether a socket of it has a channel; its messages arrive in
/// any case.
async fn private_rooms_of(deployment: &Deployment, is_dynamic: bool) -> (usize, bool) {
    let sender = deployment.node_in("/n").await;
    let before = deployment.patterns();
    let (bus, id) = connect(&deployment.config).await;
    let node = Node::attach_as(bus, id, "/n", is_dynamic);
    node.confirm("").await;
    let socket = node.connect(7);
    node.confirm(socket.as_str()).await;
    let message = broadcast(&[socket.as_str()], 7);
    sender.publish(message.clone()).await;
    sender.publish(broadcast(&[], 8)).await;
    assert_eq!(node.heard(2).await, [message, broadcast(&[], 8)]);
    let channel = deployment.channels().room("/n", socket.as_str());
    (
        deployment.patterns() - before,
        deployment.subscribers(&channel) == 1,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_that_come_and_go_make_no_pattern_and_neither_does_a_server_full_of_them() {
    let mut deployment = Deployment::start();
    assert_eq!(private_rooms_of(&deployment, false).await, (1, false));
    assert_eq!(private_rooms_of(&deployment, true).await, (0, true));
    deployment.config.private_rooms = PrivateRooms::Channel;
    assert_eq!(private_rooms_of(&deployment, false).await, (0, true));
    deployment.config.private_rooms = PrivateRooms::Auto;
    let mut others = deployment.plain();
    for number in 0..50 {
        others.command(&["PSUBSCRIBE".to_owned(), format!("other{number}*")]);
    }
    assert_eq!(private_rooms_of(&deployment, false).await, (0, true));
    deployment.config.private_rooms = PrivateRooms::Pattern;
    assert_eq!(private_rooms_of(&deployment, true).await, (1, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_was_left_is_given_up_and_one_with_a_member_again_is_not() {
    let deployment = Deployment::start();
    let node = deployment.node().await;
    let channels = deployment.channels();
    for room in ["left", "back", "left later"] {
        node.join(room).await;
        assert_eq!(deployment.subscribers(&channels.room("/", room)), 1);
    }
    node.leave("left");
    node.leave("back");
    node.join("back").await;
    node.leave("left later");
    // The last one that was left is given up last.
    let last = channels.room("/", "left later");
    deployment.until_subscribed(&last, 0).await;
    deployment
        .until_subscribed(&channels.room("/", "left"), 0)
        .await;
    assert_eq!(deployment.subscribers(&channels.room("/", "back")), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_of_a_moment_leave_nothing_behind() {
    const ROOMS: usize = 100_000;
    const AT_ONCE: usize = 1000;
    let deployment = Deployment::start();
    let node = deployment.node().await;
    for first in (0..ROOMS).step_by(AT_ONCE) {
        let rooms: Vec<_> = (first..first + AT_ONCE)
            .map(|room| format!("room {room}"))
            .collect();
        rooms.iter().for_each(|room| node.side.enter(room, false));
        node.handle.changed();
        rooms.iter().for_each(|room| node.side.leave(room));
        node.handle.changed();
    }
    let of_rooms = format!("{}*", deployment.channels().room("/", "room "));
    let of_rooms = of_rooms.replace("#*", "*");
    eventually("no channel is left", || {
        deployment
            .server
            .command(&["PUBSUB", "CHANNELS", &of_rooms])
            .starts_with("*0")
    })
    .await;
    // The probe, the node's channel, four channels of the namespace, and a pattern.
    eventually("the node wants no more than before", || {
        metric(&node, "roomcast_bus_subscriptions", "") == 7.0
    })
    .await;
    // Far less than one per room.
    let calls = deployment.calls("subscribe") + deployment.calls("unsubscribe");
    assert!((2..ROOMS / 20).contains(&calls), "{calls}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_made_anew_before_the_old_one_has_gone_is_heard() {
    let deployment = Deployment::start();
    let sender = deployment.node_in("/n").await;
    let (bus, id) = connect(&deployment.config).await;
    let old = Node::attach(Arc::clone(&bus) as _, id.clone(), "/n");
    old.join("left behind").await;
    let channel = deployment.channels().room("/n", "left behind");
    assert_eq!(deployment.subscribers(&channel), 1);
    let new = Node::attach(bus, id, "/n");
    drop(old);
    deployment.until_subscribed(&channel, 0).await;
    let socket = new.connect(1);
    new.join("r").await;
    for message in [
        broadcast(&[], 1),
        broadcast(&["r"], 2),
        broadcast(&[socket.as_str()], 3),
    ] {
        sender.publish(message.clone()).await;
        assert_eq!(new.heard(1).await, [message]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_has_gone_leaves_no_subscription_behind() {
    let deployment = Deployment::start();
    let (bus, id) = connect(&deployment.config).await;
    let node = Node::attach(bus, id, "/n");
    node.join("r").await;
    let channels = deployment.channels();
    let (uid, room) = (
        roomcast_protocol::channel::uid(&node.id, "/n", Dialect::Classic),
        channels.room("/n", "r"),
    );
    let names = [
        channels.broadcast("/n"),
        channels.request("/n"),
        channels.response("/n").unwrap(),
        channels.response_of("/n", uid.as_str()),
        room,
    ];
    for name in &names {
        assert_eq!(deployment.subscribers(name), 1, "{name}");
    }
    let Node { handle, .. } = node;
    drop(handle);
    for name in &names {
        deployment.until_subscribed(name, 0).await;
    }
    eventually("the pattern has gone, too", || deployment.patterns() == 0).await;
}
