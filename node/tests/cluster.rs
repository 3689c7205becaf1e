//! Several servers of one process on a memory bus are one room space.

mod support;

use std::time::Duration;

use roomcast::{MemoryBus, Namespace, Server};
use serde_json::json;
use support::{
    TestServer, WebSocket,
    server::{Sockets, main_namespace},
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Two nodes, and a socket on each.
struct Pair {
    nodes: [TestServer; 2],
    clients: [WebSocket; 2],
    sockets: [roomcast::Socket; 2],
}

async fn pair() -> Pair {
    let bus = MemoryBus::new();
    let (a, socket_a, client_a) = node(&bus, main_namespace()).await;
    let (b, socket_b, client_b) = node(&bus, main_namespace()).await;
    Pair {
        nodes: [a, b],
        clients: [client_a, client_b],
        sockets: [socket_a, socket_b],
    }
}

async fn node(bus: &MemoryBus, namespace: Namespace) -> (TestServer, roomcast::Socket, WebSocket) {
    let (namespace, mut sockets) = Sockets::of(namespace);
    let builder = Server::builder().namespace(namespace).bus(bus.clone());
    let server = TestServer::start(builder).await;
    let client = WebSocket::connect(server.address).await;
    (server, sockets.next().await, client)
}

#[tokio::test]
async fn a_broadcast_reaches_the_sockets_of_all_nodes_in_order() {
    let mut pair = pair().await;
    for socket in &pair.sockets {
        socket.join("a").unwrap();
    }
    for number in 0..10 {
        let sent = pair.nodes[0].io.to("a").emit("n", number).await.unwrap();
        assert_eq!((sent.local_sockets, sent.nodes), (1, 1));
    }
    for client in &mut pair.clients {
        for number in 0..10 {
            assert_eq!(client.text().await, format!("42[\"n\",{number}]"));
        }
    }
}

#[tokio::test]
async fn a_local_broadcast_stays_and_a_socket_leaves_itself_out() {
    let mut pair = pair().await;
    let sent = pair.nodes[0].io.of("/").local().emit("x", 1).await.unwrap();
    assert_eq!((sent.local_sockets, sent.nodes), (1, 0));
    assert_eq!(pair.clients[0].text().await, "42[\"x\",1]");
    pair.sockets[0].broadcast().emit("y", 2).await.unwrap();
    assert_eq!(pair.clients[1].text().await, "42[\"y\",2]");
    pair.nodes[1].io.emit("z", 3).await.unwrap();
    assert_eq!(pair.clients[0].text().await, "42[\"z\",3]");
}

#[tokio::test]
async fn sockets_are_fetched_and_moved_wherever_they_are() {
    let pair = pair().await;
    pair.sockets[1].set_data(json!({"name": "b"}));
    let io = &pair.nodes[0].io;
    io.of("/").sockets_join(["r", "s"]).await.unwrap();
    io.of("/").sockets_leave("s").await.unwrap();
    let fetched = io.in_("r").fetch_sockets().await.unwrap();
    assert!(fetched.silent_nodes.is_empty());
    assert_eq!(fetched.sockets.len(), 2);
    let remote = fetched
        .sockets
        .iter()
        .find(|socket| socket.id() == pair.sockets[1].id())
        .unwrap();
    assert_eq!(remote.data_json(), &json!({"name": "b"}));
    assert_eq!(remote.rooms()[1..], [String::from("r")]);
    assert!(remote.handshake_json()["query"]["EIO"] == "4");
    remote.operator().disconnect_sockets(false).await.unwrap();
    support::eventually("the socket is gone", || !pair.sockets[1].is_connected()).await;
    assert!(pair.sockets[0].is_connected());
}

#[tokio::test]
async fn acknowledgements_are_collected_from_all_nodes() {
    let mut pair = pair().await;
    let io = pair.nodes[0].io.clone();
    let asking = tokio::spawn(async move {
        let all = io.of("/").timeout(TIMEOUT);
        all.emit_with_ack::<String>("vote?", ()).await.unwrap()
    });
    assert_eq!(pair.clients[0].text().await, "420[\"vote?\"]");
    pair.clients[0].send("430[\"yes\"]").await;
    assert_eq!(pair.clients[1].text().await, "420[\"vote?\"]");
    pair.clients[1].send("430[7]").await;
    let votes = asking.await.unwrap();
    assert_eq!(votes.answers, ["yes"]);
    assert_eq!(votes.missing, [pair.sockets[1].id().clone()]);
    assert!(votes.silent_nodes.is_empty());
}

#[tokio::test]
async fn a_node_without_the_namespace_is_not_counted() {
    let bus = MemoryBus::new();
    let (a, _, _client_a) = node(&bus, main_namespace()).await;
    let other = Server::builder()
        .namespace(Namespace::new("/other"))
        .bus(bus.clone());
    let _b = TestServer::start(other).await;
    assert_eq!(a.io.emit("x", 1).await.unwrap().nodes, 0);
}
