//! Names of all kinds, and names that mean two things.

use std::sync::Arc;

use roomcast_protocol::channel::{Dialect, Mode};

use crate::{
    deployment::{Deployment, connect, node},
    node::{Node, broadcast},
};

const NAMESPACES: [&str; 5] = ["/", "/a#b", "/*", "/a?[x]\\", "/ü"];

fn rooms() -> Vec<String> {
    let mut rooms: Vec<String> = ["#", "a#b", "*", "?", "[a]", "\\", "a b", "a\r\nb", "{a}"]
        .map(str::to_owned)
        .into();
    rooms.extend([20, 10, 5].map(|count| "é".repeat(count)));
    rooms.push("x".repeat(20));
    rooms.push("long ".repeat(200));
    rooms
}

async fn rooms_are_heard_once(dialect: Dialect) {
    let deployment = Deployment::of(dialect);
    let (one, one_id) = connect(&deployment.config).await;
    let (two, two_id) = connect(&deployment.config).await;
    for namespace in NAMESPACES {
        let a = Node::attach(Arc::clone(&one) as _, one_id.clone(), namespace);
        let b = Node::attach(Arc::clone(&two) as _, two_id.clone(), namespace);
        b.confirm("").await;
        for room in rooms() {
            b.join(&room).await;
            a.publish(broadcast(&[&room], 1)).await;
            a.publish(broadcast(&[], 2)).await;
            let expected = [broadcast(&[&room], 1), broadcast(&[], 2)];
            assert_eq!(b.heard(2).await, expected, "{dialect:?} {namespace} {room}");
        }
        let socket = b.connect(1);
        b.confirm(socket.as_str()).await;
        a.publish(broadcast(&[socket.as_str()], 3)).await;
        assert_eq!(b.heard(1).await, [broadcast(&[socket.as_str()], 3)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_and_namespaces_of_any_name_are_heard_once() {
    rooms_are_heard_once(Dialect::Classic).await;
    rooms_are_heard_once(Dialect::Sharded(Mode::Dynamic)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_two_namespaces_share_is_given_up_by_the_last_of_them() {
    let deployment = Deployment::start();
    let (one, one_id) = connect(&deployment.config).await;
    let (two, two_id) = connect(&deployment.config).await;
    let sender = |namespace| Node::attach(Arc::clone(&one) as _, one_id.clone(), namespace);
    let hearer = |namespace| Node::attach(Arc::clone(&two) as _, two_id.clone(), namespace);
    let (to_outer, to_inner) = (sender("/a"), sender("/a#b"));
    let (outer, inner) = (hearer("/a"), hearer("/a#b"));
    inner.confirm("").await;
    let shared = deployment.channels().broadcast("/a#b");
    assert_eq!(shared, deployment.channels().room("/a", "b"));
    // The room goes, the namespace stays.
    outer.join("b").await;
    outer.join("later").await;
    outer.leave("b");
    outer.leave("later");
    let later = deployment.channels().room("/a", "later");
    deployment.until_subscribed(&later, 0).await;
    to_inner.publish(broadcast(&[], 1)).await;
    assert_eq!(inner.heard(1).await, [broadcast(&[], 1)]);
    // The namespace goes, the room stays.
    outer.join("b").await;
    let Node { handle, .. } = inner;
    drop(handle);
    let request = deployment.channels().request("/a#b");
    deployment.until_subscribed(&request, 1).await;
    to_outer.publish(broadcast(&["b"], 2)).await;
    assert_eq!(outer.heard(1).await, [broadcast(&["b"], 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_with_different_prefixes_do_not_hear_each_other() {
    let deployment = Deployment::start();
    let with_prefix = |prefix: &str| {
        let mut config = deployment.config.clone();
        config.prefix = prefix.into();
        config
    };
    let (first, second) = (with_prefix("app"), with_prefix("app1"));
    let (a, b) = (node(&first, "/").await, node(&first, "/").await);
    let (c, d) = (node(&second, "/").await, node(&second, "/").await);
    for node in [&a, &b, &c, &d] {
        node.join("r").await;
    }
    for (number, rooms) in [(0, &[][..]), (1, &["r"])] {
        assert_eq!(a.publish(broadcast(rooms, number)).await, 1);
        assert_eq!(b.heard(1).await, [broadcast(rooms, number)]);
        assert_eq!(c.publish(broadcast(rooms, number + 10)).await, 1);
        assert_eq!(d.heard(1).await, [broadcast(rooms, number + 10)]);
    }
    // Had they heard the others, it would have been before these.
    b.publish(broadcast(&[], 20)).await;
    d.publish(broadcast(&[], 21)).await;
    assert_eq!(a.heard(1).await, [broadcast(&[], 20)]);
    assert_eq!(c.heard(1).await, [broadcast(&[], 21)]);
}
