//! Several servers of one process on a memory bus are one room space.

mod support;

use std::{future::pending, time::Duration};

use roomcast::{BroadcastOperator, MemoryBus, Namespace, Server};
use serde_json::json;
use support::{
    TestServer, WebSocket,
    server::{Sockets, main_namespace},
    within,
};
use tokio::sync::mpsc;

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
    for (client, answer) in pair.clients.iter_mut().zip([r#"["yes"]"#, "[7]"]) {
        let id = client.asked(r#"["vote?"]"#).await;
        client.acknowledge(id, answer).await;
    }
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

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Failure {
    error: String,
}

#[tokio::test]
async fn a_server_side_event_runs_on_the_other_servers_and_not_here() {
    let bus = MemoryBus::new();
    let (sender, mut heard) = mpsc::unbounded_channel();
    let namespace = |name: &'static str| {
        let sender = sender.clone();
        main_namespace().on_server_side("reload", move |io: BroadcastOperator, number: u32| {
            let sender = sender.clone();
            async move {
                io.emit("reloaded", number).await.unwrap();
                sender.send((name, number)).unwrap();
            }
        })
    };
    let (a, _, _client_a) = node(&bus, namespace("a")).await;
    let (_b, _, mut client_b) = node(&bus, namespace("b")).await;
    let (_c, _, _client_c) = node(&bus, namespace("c")).await;
    let nodes = a.io.of("/").server_side_emit("reload", 7).await.unwrap();
    assert_eq!(nodes, 2);
    let mut names = Vec::new();
    for _ in 0..2 {
        let (name, number) = within("a handler runs", heard.recv()).await.unwrap();
        assert_eq!(number, 7);
        names.push(name);
    }
    names.sort_unstable();
    assert_eq!(names, ["b", "c"]);
    for _ in 0..2 {
        assert_eq!(client_b.text().await, r#"42["reloaded",7]"#);
    }
    assert!(heard.try_recv().is_err(), "not on the sender");
}

#[tokio::test]
async fn what_the_other_servers_return_is_collected() {
    let bus = MemoryBus::new();
    let (a, _, _client_a) = node(&bus, main_namespace()).await;
    let answering = |load: u32| {
        main_namespace()
            .on_server_side("load", move |_: BroadcastOperator| async move { load })
            .on_server_side("fail", async |_: BroadcastOperator| {
                Err::<u32, _>("overloaded")
            })
            .on_server_side("panic", async |_: BroadcastOperator| {
                if tokio::runtime::Handle::try_current().is_ok() {
                    panic!("in a server-side handler");
                }
            })
            .on_server_side("typed", async |_: BroadcastOperator, number: u32| number)
    };
    let (b, _, _client_b) = node(&bus, answering(3)).await;
    let (_c, _, _client_c) = node(&bus, answering(4)).await;
    let (_d, _, _client_d) = node(&bus, main_namespace()).await;
    let all = || a.io.of("/").timeout(TIMEOUT);

    let loads = all().server_side_emit_with_ack::<u32>("load", ()).await;
    let mut loads = loads.unwrap();
    loads.answers.sort_unstable();
    assert_eq!(loads.answers, [3, 4]);
    assert_eq!((loads.undecodable, loads.without_handler), (0, 1));
    assert!(loads.silent_nodes.is_empty());

    let failed = |text: &str| Failure { error: text.into() };
    let all_fail = [
        ("fail", failed("overloaded")),
        ("panic", failed("the handler panicked")),
    ];
    for (event, failure) in all_fail {
        let answers = all().server_side_emit_with_ack::<Failure>(event, ()).await;
        assert_eq!(answers.unwrap().answers[1], failure);
    }
    assert_eq!(b.metric("roomcast_handler_panics_total"), 1);

    let answers = all()
        .server_side_emit_with_ack::<u32>("typed", "text")
        .await;
    let answers = answers.unwrap();
    assert_eq!((answers.answers.len(), answers.undecodable), (0, 2));
    assert_eq!(b.metric("roomcast_events_undecodable_total"), 1);
}

#[tokio::test]
async fn a_server_side_handler_that_does_not_return_makes_its_node_silent() {
    let bus = MemoryBus::new();
    let (a, _, _client_a) = node(&bus, main_namespace()).await;
    let hanging = main_namespace().on_server_side("x", |_: BroadcastOperator| pending::<()>());
    let (b, _, _client_b) = node(&bus, hanging).await;
    let soon = a.io.of("/").timeout(Duration::from_millis(50));
    let answers = soon.server_side_emit_with_ack::<()>("x", ()).await.unwrap();
    assert_eq!(answers.silent_nodes, [b.io.node().to_string()]);
}

#[tokio::test]
async fn the_rooms_of_all_nodes_are_listed() {
    let pair = pair().await;
    pair.sockets[0].join(["a", "both"]).unwrap();
    pair.sockets[1].join(["b", "both"]).unwrap();
    let [id_a, id_b] = pair.sockets.each_ref().map(|socket| socket.id().as_str());
    let listed = pair.nodes[0].io.of("/").rooms().await.unwrap();
    let mut expected = ["a", "b", "both", id_a, id_b];
    expected.sort_unstable();
    assert_eq!(listed.rooms, expected);
    assert!(listed.silent_nodes.is_empty());
    let local = pair.nodes[1].io.of("/").local().rooms().await.unwrap();
    let mut expected = ["b", "both", id_b];
    expected.sort_unstable();
    assert_eq!(local.rooms, expected);
}

#[tokio::test]
async fn the_sockets_of_a_node_are_listed_without_asking_others() {
    let pair = pair().await;
    for socket in &pair.sockets {
        socket.join("both").unwrap();
    }
    for (node, socket) in pair.nodes.iter().zip(&pair.sockets) {
        let ids = |namespace: BroadcastOperator| -> Vec<_> {
            let sockets = namespace.local_sockets().into_iter();
            sockets.map(|socket| socket.id().clone()).collect()
        };
        assert_eq!(ids(node.io.of("/")), [socket.id().clone()]);
        assert_eq!(ids(node.io.to("both")), [socket.id().clone()]);
        assert_eq!(ids(node.io.to("both").except(socket.id())), []);
        assert_eq!(ids(node.io.of("/unknown")), []);
    }
}

#[tokio::test]
async fn a_confirmed_join_is_reached_from_another_node() {
    let mut pair = pair().await;
    pair.sockets[1].join_confirmed("r").await.unwrap();
    pair.nodes[0].io.to("r").emit("x", 1).await.unwrap();
    assert_eq!(pair.clients[1].text().await, r#"42["x",1]"#);
}

#[tokio::test]
async fn a_node_that_has_closed_is_neither_asked_nor_missed() {
    let pair = pair().await;
    pair.nodes[1].io.close().await;
    let fetched = pair.nodes[0].io.of("/").fetch_sockets().await.unwrap();
    assert_eq!(fetched.sockets.len(), 1);
    assert!(fetched.silent_nodes.is_empty());
    assert_eq!(pair.nodes[0].io.emit("x", 1).await.unwrap().nodes, 0);
}

#[tokio::test]
async fn a_dynamic_namespace_is_reached_from_a_node_without_clients_in_it() {
    let bus = MemoryBus::new();
    let start = async || {
        let orgs = Namespace::matching("/org-{id}");
        let builder = Server::builder()
            .namespace(main_namespace())
            .namespace(orgs);
        TestServer::start(builder.bus(bus.clone())).await
    };
    let (a, b) = (start().await, start().await);
    let mut client = WebSocket::open(b.address).await;
    let joined = client.join("/org-7").await;
    let sent = a.io.of("/org-7").emit("n", 1).await.unwrap();
    assert_eq!((sent.local_sockets, sent.nodes), (0, 1));
    assert_eq!(client.text().await, "42/org-7,[\"n\",1]");
    let fetched = a.io.of("/org-7").fetch_sockets().await.unwrap();
    assert_eq!(fetched.sockets.len(), 1, "{joined}");
    let remote = fetched.sockets[0].operator();
    assert_eq!(remote.emit("n", 2).await.unwrap().nodes, 1);
    assert_eq!(client.text().await, "42/org-7,[\"n\",2]");
    drop(fetched);
    // It is gone with the last use: only the main namespace is left.
    assert_eq!(a.metric("roomcast_namespaces"), 1);
    assert!(a.io.of("/nobody").emit("n", 3).await.is_err());
}
