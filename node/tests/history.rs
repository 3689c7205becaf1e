//! Published events are kept, and arrive at all members in the order of their ids.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use roomcast::{
    Args, BroadcastOperator, EmitError, HistoryEntry, HistoryError, HistoryLimits, Limits,
    MemoryBus, Namespace, PublishError, Server,
};
use support::{
    TestServer, WebSocket,
    server::{Sockets, main_namespace},
};

/// A server whose main namespace keeps a history, and a client in the room `news`.
async fn node(bus: Option<&MemoryBus>) -> (TestServer, WebSocket) {
    let namespace = main_namespace().history(HistoryLimits::default());
    let (namespace, mut sockets) = Sockets::of(namespace);
    let mut builder = Server::builder().namespace(namespace);
    if let Some(bus) = bus {
        builder = builder.bus(bus.clone());
    }
    let server = TestServer::start(builder).await;
    let client = WebSocket::connect(server.address).await;
    sockets.next().await.join("news").unwrap();
    (server, client)
}

fn numbers(entries: &[HistoryEntry]) -> Vec<u32> {
    let number = |entry: &HistoryEntry| entry.args.decode::<(u32,)>().unwrap().0;
    entries.iter().map(number).collect()
}

#[tokio::test]
async fn what_is_published_is_emitted_and_kept() {
    let (server, mut client) = node(None).await;
    let room = server.io.to("news");
    let mut ids = Vec::new();
    for number in 0..5 {
        let position = room.clone().publish("n", number).await.unwrap();
        ids.push(position.id);
        assert_eq!(client.text().await, format!("42[\"n\",{number}]"));
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let history = server.io.of("/").history("news");
    assert_eq!(
        numbers(&history.after(0, 100).await.unwrap()),
        [0, 1, 2, 3, 4]
    );
    assert_eq!(numbers(&history.after(ids[1], 2).await.unwrap()), [2, 3]);
    assert_eq!(numbers(&history.before(ids[3], 2).await.unwrap()), [1, 2]);
    assert_eq!(numbers(&history.latest(1).await.unwrap()), [4]);
    let entry = history.get(ids[2]).await.unwrap().unwrap();
    assert_eq!(
        (entry.id, &*entry.room, &*entry.event),
        (ids[2], "news", "n")
    );
    assert!(history.get(ids[4] + 1).await.unwrap().is_none());
    assert!(history.latest(0).await.unwrap().is_empty());
}

#[tokio::test]
async fn arguments_that_other_nodes_would_refuse_are_neither_emitted_nor_kept() {
    let bus = MemoryBus::new();
    for bus in [None, Some(&bus)] {
        let (server, mut client) = node(bus).await;
        let nested = |depth: usize| {
            let json = "[".repeat(depth) + &"]".repeat(depth);
            Args::from_text(json.into(), Vec::new()).unwrap()
        };
        let limit = Limits::default().json_depth;
        let room = server.io.to("news");
        for depth in [limit + 1, 450, 499, 500, 501] {
            let too_deep = format!("JSON nested deeper than {limit}");
            let error = room.clone().publish("n", nested(depth)).await.unwrap_err();
            assert!(
                matches!(error, PublishError::Emit(EmitError::Args(_))),
                "{error}"
            );
            assert_eq!(error.to_string(), too_deep);
            let error = room.clone().emit("n", nested(depth)).await.unwrap_err();
            assert_eq!(error.to_string(), too_deep);
            let asked = room.clone().emit_with_ack::<()>("n", nested(depth)).await;
            assert_eq!(asked.unwrap_err().to_string(), too_deep);
            let all = server.io.of("/");
            let error = all.server_side_emit("n", nested(depth)).await.unwrap_err();
            assert_eq!(error.to_string(), too_deep);
        }
        room.clone().publish("n", nested(limit)).await.unwrap();
        let args = nested(limit);
        let expected = format!("42[\"n\",{}", &args.json()[1..]);
        assert_eq!(client.text().await, expected);
        let kept = server.io.of("/").history("news").latest(9).await.unwrap();
        assert_eq!(kept.len(), 1);
    }
}

#[tokio::test]
async fn what_is_only_emitted_is_not_kept() {
    let (server, mut client) = node(None).await;
    server.io.to("news").emit("n", 1).await.unwrap();
    assert_eq!(client.text().await, "42[\"n\",1]");
    let history = server.io.of("/").history("news");
    assert!(history.latest(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn only_one_whole_room_can_be_published_to() {
    let (server, _client) = node(None).await;
    let all = server.io.of("/");
    let wrong: [BroadcastOperator; 5] = [
        all.clone(),
        all.clone().to(["a", "b"]),
        all.clone().to("a").except("b"),
        all.clone().to("a").local(),
        all.clone().to("a").volatile(),
    ];
    for selection in wrong {
        let refused = selection.publish("n", 1).await.unwrap_err();
        assert!(matches!(refused, PublishError::NotOneRoom), "{refused:?}");
    }
    let reserved = all.to("a").publish("disconnect", 1).await.unwrap_err();
    assert!(matches!(reserved, PublishError::Emit(_)), "{reserved:?}");
}

#[tokio::test]
async fn a_namespace_without_history_keeps_nothing() {
    let server = TestServer::of(main_namespace()).await;
    let refused = server.io.to("a").publish("n", 1).await.unwrap_err();
    assert!(matches!(refused, PublishError::NotKept), "{refused:?}");
    let history = server.io.of("/").history("a");
    assert!(matches!(
        history.latest(1).await,
        Err(HistoryError::NotKept)
    ));
    let unknown = server.io.of("/other").history("a").latest(1).await;
    assert!(matches!(unknown, Err(HistoryError::UnknownNamespace(_))));
}

#[tokio::test]
async fn an_event_that_is_larger_than_the_history_of_a_room_is_refused() {
    let limits = HistoryLimits {
        bytes: 100,
        age: Duration::from_secs(60),
        ..HistoryLimits::default()
    };
    let server = TestServer::of(main_namespace().history(limits)).await;
    let publish = |length| server.io.to("a").publish("n", "x".repeat(length));
    publish(90).await.unwrap();
    let refused = publish(100).await.unwrap_err();
    assert!(
        matches!(refused, PublishError::TooLarge { limit: 100 }),
        "{refused:?}"
    );
}

/// The history of a namespace that clients create is kept while none of them is there.
#[tokio::test]
async fn a_dynamic_namespace_keeps_its_history_without_clients() {
    let namespace = Namespace::matching("/org-{id}").history(HistoryLimits::default());
    let bus = MemoryBus::new();
    let builder = Server::builder().namespace(namespace).bus(bus);
    let server = TestServer::start(builder).await;
    let org = |room: &str| server.io.of("/org-7").to(room);
    org("a").publish("n", 1).await.unwrap();
    assert!(server.io.namespaces().is_empty());
    let history = server.io.of("/org-7").history("a");
    assert_eq!(numbers(&history.latest(9).await.unwrap()), [1]);
}

/// Members on both nodes see one order, which is that of the ids in the history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_publish_in_parallel_give_all_members_one_order() {
    const EACH: u32 = 200;
    let bus = MemoryBus::new();
    let (a, mut client_a) = node(Some(&bus)).await;
    let (b, mut client_b) = node(Some(&bus)).await;
    let publishing: Vec<_> = [(&a, 0), (&b, EACH)]
        .map(|(node, first)| {
            let room = node.io.to("news");
            tokio::spawn(async move {
                let mut ids = BTreeMap::new();
                for number in first..first + EACH {
                    let position = room.clone().publish("n", number).await.unwrap();
                    ids.insert(position.id, number);
                }
                ids
            })
        })
        .into();
    let mut order = BTreeMap::new();
    for ids in publishing {
        order.append(&mut ids.await.unwrap());
    }
    let order: Vec<_> = order.into_values().collect();
    for client in [&mut client_a, &mut client_b] {
        let mut seen = Vec::new();
        for _ in 0..2 * EACH {
            let text = client.text().await;
            seen.push(text[7..text.len() - 1].parse::<u32>().unwrap());
        }
        assert_eq!(seen, order);
    }
    for node in [&a, &b] {
        let kept = node.io.of("/").history("news").after(0, 1000).await;
        assert_eq!(numbers(&kept.unwrap()), order);
    }
}
