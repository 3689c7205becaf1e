//! Every limit is reached once: what the client sees, what is counted, and that others go on being
//! served.
//!
//! The list below names the tests of each limit as metrics name it. A limit that the server counts
//! and that is not in the list fails the first test.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "limits/admission.rs"]
mod admission;
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use admission::*;
use futures_util::future::{self, FutureExt as _};
use roomcast::{
    AckError, BroadcastOperator, Builder, Limits, MemoryBus, Namespace, Recovery, Serve, Server,
    Socket, TrustedProxies,
};
use support::{
    Gate, Polling, TestServer, WebSocket, eventually, http, polling,
    server::{Sockets, echoing, main_namespace},
    websocket::{self, Message},
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

macro_rules! tests {
    ($($limit:literal: $($test:ident),+;)+) => {
        /// The limits that are reached below.
        const REACHED: &[&str] = &[$($limit),+];

        mod reach {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test($limit).await;
                }
            )+)+
        }
    };
}

tests! {
    "message_size":
        a_body_that_is_declared_too_large_is_refused_before_it_is_sent,
        a_body_that_grows_too_large_is_refused,
        a_websocket_frame_that_is_too_large_closes_with_1009,
        a_fragmented_message_that_grows_too_large_closes_with_1009;
    "attachments": too_many_attachments_close_the_connection;
    "json_depth": json_that_is_nested_too_deep_closes_the_connection;
    "namespaces": one_namespace_too_many_is_refused_and_the_others_go_on;
    "rooms": one_room_too_many_is_not_joined;
    "room_name": a_room_with_a_name_too_long_is_not_joined;
    "event_name": an_event_with_a_name_too_long_closes_the_connection;
    "namespace_name": a_namespace_with_a_name_too_long_closes_the_connection;
    "pending_acks":
        a_client_that_owes_too_many_acks_is_not_asked_again,
        a_broadcast_does_not_wait_for_a_client_that_owes_too_many_acks;
    "unacknowledged": the_oldest_unacknowledged_events_are_not_sent_again;
    "events_in_flight":
        events_over_a_websocket_wait_while_too_many_handlers_run,
        posted_events_wait_while_too_many_handlers_run,
        handlers_that_wait_for_their_client_are_answered_at_the_limit,
        a_disconnect_is_seen_at_the_limit_and_earlier_events_are_handled,
        reading_pauses_while_too_many_bytes_of_events_wait;
    "slow_consumer":
        a_client_that_never_reads_is_closed_and_costs_no_memory,
        a_client_that_never_polls_is_closed,
        a_client_that_takes_nothing_for_too_long_is_closed;
    "outbox_total": the_clients_for_which_most_waits_are_closed_when_too_much_waits;
    "inbox":
        a_client_that_posts_faster_than_it_is_served_is_closed,
        handlers_run_only_while_the_bytes_of_their_events_fit,
        an_event_that_is_observed_keeps_its_bytes_while_the_observer_runs;
    "handshake_timeout": a_proxy_header_that_does_not_come_in_time_closes_the_connection;
    "handshakes": one_unfinished_proxy_header_too_many_closes_its_connection;
    "header_timeout":
        half_a_request_head_is_not_waited_for,
        a_connection_without_a_next_request_is_not_kept;
    "body_timeout": half_a_request_body_is_not_waited_for;
    "response_timeout": a_response_that_is_not_read_is_given_up;
    "sockets": clients_beyond_the_sockets_that_may_be_open_are_refused_at_once;
    "unfinished_upgrades": one_unfinished_upgrade_too_many_is_refused;
    "fragments": a_message_of_too_many_fragments_closes_the_connection;
    "connections":
        one_connection_too_many_is_refused,
        handshakes_that_are_being_decided_count_as_connections;
    "connections_per_address":
        one_connection_too_many_of_an_address_is_refused,
        the_address_that_a_trusted_proxy_names_counts,
        a_limit_that_is_replaced_holds_for_new_connections;
    "connect_rate": new_connections_beyond_the_rate_come_later;
    "event_rate":
        events_beyond_the_rate_are_dropped_with_an_error,
        connects_beyond_the_rate_are_refused,
        events_beyond_the_rate_are_only_counted_if_the_policy_is_to_warn,
        events_beyond_the_rate_close_the_connection_if_the_policy_says_so;
    "byte_rate":
        bytes_beyond_the_rate_are_dropped_with_an_error,
        attachments_count_as_bytes;
    "server_side_events": one_server_side_event_too_many_is_answered_with_an_error;
}

#[tokio::test]
async fn every_limit_that_is_counted_has_a_test() {
    let io = Server::builder().build().await.unwrap();
    let metrics = io.metrics();
    let mut counted: Vec<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("roomcast_limit_reached_total{limit=\""))
        .filter_map(|line| line.split('"').next())
        .collect();
    let mut reached = REACHED.to_vec();
    counted.sort_unstable();
    reached.sort_unstable();
    assert_eq!(counted, reached);
}

#[tokio::test]
async fn a_client_that_connects_to_no_namespace_is_closed() {
    let timeout = Duration::from_secs(1);
    let server = serve(|io, _| io.connect_timeout(timeout)).await;
    let mut bystander = server.bystander().await;
    let polling = Polling::open(server.address).await;
    let mut socket = WebSocket::open(server.address).await;

    assert_eq!(socket.closed().await, None);
    polling.assert_closed().await;
    server.closes("connect_timeout", 2).await;
    bystander.assert_served().await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_closed() {
    let server = serve(|io, _| {
        let io = io.ping_interval(Duration::from_millis(100));
        io.ping_timeout(Duration::from_secs(2))
    })
    .await;
    let mut bystander = server.bystander().await;
    let mut mute = WebSocket::connect(server.address).await;
    let polling = Polling::connect(server.address).await;

    let closed = async {
        assert_eq!(polling.get().await.body, "2");
        // A session that is silent for so long is not kept for a next request.
        let parked = polling.assert_closed();
        let mute = async {
            assert_eq!(mute.next().await, Message::Text(String::from("2")));
            assert_eq!(mute.closed().await, None);
        };
        tokio::join!(parked, mute);
        server.closes("ping_timeout", 2).await;
    };
    // The bystander answers its pings meanwhile.
    let serves = async { while bystander.text().await.is_empty() {} };
    tokio::select! {
        () = closed => {}
        () = serves => panic!("nobody speaks to the bystander"),
    }
    bystander.assert_served().await;
    assert_eq!(server.closed("ping_timeout"), 2);
}

#[tokio::test]
async fn a_client_of_revision_3_that_does_not_ping_is_closed() {
    let server = serve(|io, _| {
        let io = io.allow_eio3(true).ping_interval(Duration::from_millis(50));
        io.ping_timeout(Duration::from_millis(50))
    })
    .await;
    let target = "/socket.io/?EIO=3&transport=websocket";
    let mut mute = WebSocket::upgrade(server.address, target).await;
    assert_eq!(mute.closed().await, None);
    server.closes("ping_timeout", 1).await;
}

#[tokio::test]
async fn an_upgrade_that_is_never_finished_leaves_the_client_polling() {
    let server = serve(|io, _| io.upgrade_timeout(Duration::from_millis(100))).await;
    let mut polling = Polling::connect(server.address).await;
    let mut probe = polling.probe().await;
    within("the WebSocket ends", probe.rest()).await;

    polling.say(r#"420["echo","polling"]"#).await;
    loop {
        // The server sends polls home for as long as it takes the upgrade for possible.
        let packet = polling.packet().await;
        if packet != "6" {
            assert_eq!(packet, r#"430["polling"]"#);
            break;
        }
    }
    let (mut socket, _) = polling.upgrade().await;
    socket.assert_served().await;
}

#[tokio::test]
async fn a_second_websocket_of_a_session_is_closed_at_once() {
    let server = serve(|io, _| io).await;
    let polling = Polling::connect(server.address).await;
    let target = polling.upgrade_target();
    let mut first = polling.probe().await;
    let mut second = WebSocket::upgrade(server.address, &target).await;
    assert_eq!(second.closed().await, None);
    first.send("5").await;
    first.assert_served().await;
    let mut third = WebSocket::upgrade(server.address, &target).await;
    assert_eq!(third.closed().await, None);
    first.assert_served().await;
}

#[tokio::test]
async fn a_second_post_while_the_first_is_received_closes_the_session() {
    let server = serve(|io, _| io).await;
    let mut bystander = server.bystander().await;
    let polling = Polling::connect(server.address).await;
    let half = post(&polling, "Content-Length: 100") + r#"42["other","#;
    let _first = http::send(server.address, half).await;

    // Those that overtake the first one are taken.
    let refused = within("the first post is being received", async {
        loop {
            let response = polling.post(r#"42["other"]"#).await;
            if response.status != 200 {
                return response;
            }
        }
    })
    .await;
    assert_eq!((refused.status, &*refused.body), (400, ""));
    server.closes("overlapping_requests", 1).await;
    polling.assert_closed().await;
    bystander.assert_served().await;
}

// The tests of the list above; `limit` is the label that has to count.

async fn a_body_that_is_declared_too_large_is_refused_before_it_is_sent(limit: &str) {
    let (server, mut bystander) = with_payloads_of_a_kilobyte().await;
    let polling = Polling::connect(server.address).await;
    let head = post(&polling, "Content-Length: 1001");
    let mut stream = http::send(server.address, head).await;

    assert_eq!(http::response(&mut stream).await.status, 413);
    polling.assert_closed().await;
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

async fn a_body_that_grows_too_large_is_refused(limit: &str) {
    let (server, mut bystander) = with_payloads_of_a_kilobyte().await;
    let polling = Polling::connect(server.address).await;
    let chunk = format!("1f4\r\n{}\r\n", "4".repeat(500));
    let sent = post(&polling, "Transfer-Encoding: chunked") + &chunk.repeat(3);
    let mut stream = http::send(server.address, sent).await;

    assert_eq!(http::response(&mut stream).await.status, 413);
    polling.assert_closed().await;
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

async fn a_websocket_frame_that_is_too_large_closes_with_1009(limit: &str) {
    let (server, mut bystander) = with_payloads_of_a_kilobyte().await;
    let mut socket = WebSocket::connect(server.address).await;
    // A frame of exactly the limit passes.
    let largest = format!(r#"420["echo","{}"]"#, "x".repeat(986));
    assert_eq!(largest.len(), 1000);
    socket.send(&largest).await;
    assert_eq!(socket.text().await.len(), 993);
    // The length alone decides; not a byte of the payload has to come.
    let frame = websocket::frame(true, 1, &[b' '; 1001]);
    socket.stream.write_all(&frame[..8]).await.unwrap();

    assert_eq!(socket.closed().await, Some(1009));
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

async fn a_fragmented_message_that_grows_too_large_closes_with_1009(limit: &str) {
    let (server, mut bystander) = with_payloads_of_a_kilobyte().await;
    let mut socket = WebSocket::connect(server.address).await;
    socket.send_frame(false, 1, &[b'4'; 600]).await;
    socket.send_frame(false, 0, &[b'4'; 600]).await;

    assert_eq!(socket.closed().await, Some(1009));
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

async fn too_many_attachments_close_the_connection(limit: &str) {
    let server = limited(|limits| limits.attachments = 1).await;
    let mut socket = WebSocket::connect(server.address).await;
    socket
        .send(r#"451-["other",{"_placeholder":true,"num":0}]"#)
        .await;
    socket.send_frame(true, 2, b"one is taken").await;
    socket.assert_served().await;
    let packet = r#"452-["other",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
    assert_closed_by(&server, socket, packet, limit).await;
}

async fn json_that_is_nested_too_deep_closes_the_connection(limit: &str) {
    let server = limited(|limits| limits.json_depth = 4).await;
    let mut socket = WebSocket::connect(server.address).await;
    // The array of the packet is the first level.
    socket.send(r#"42["other",[[[]]]]"#).await;
    socket.assert_served().await;
    assert_closed_by(&server, socket, r#"42["other",[[[[]]]]]"#, limit).await;
}

async fn an_event_with_a_name_too_long_closes_the_connection(limit: &str) {
    let server = limited(|limits| limits.event_name_bytes = 8).await;
    let mut socket = WebSocket::connect(server.address).await;
    socket.send(r#"42["12345678"]"#).await;
    socket.assert_served().await;
    assert_closed_by(&server, socket, r#"42["123456789"]"#, limit).await;
}

async fn a_namespace_with_a_name_too_long_closes_the_connection(limit: &str) {
    let server = limited(|limits| limits.namespace_bytes = 8).await;
    let mut socket = WebSocket::connect(server.address).await;
    socket.send("40/2345678,").await;
    let reply = socket.text().await;
    assert_eq!(reply, r#"44/2345678,{"message":"Invalid namespace"}"#);
    assert_closed_by(&server, socket, "40/23456789,", limit).await;
}

async fn a_message_of_too_many_fragments_closes_the_connection(limit: &str) {
    let server = limited(|limits| limits.fragments = 3).await;
    let mut bystander = server.bystander().await;
    let mut socket = WebSocket::connect(server.address).await;
    // Three fragments are taken; empty ones count like others.
    socket.send_frame(false, 1, b"420[\"ec").await;
    socket.send_frame(false, 0, b"").await;
    socket.send_frame(true, 0, b"ho\",1]").await;
    assert!(socket.text().await.starts_with("430["));
    socket.send_frame(false, 1, b"4").await;
    for _ in 0..3 {
        socket.send_frame(false, 0, b"").await;
    }

    assert_eq!(socket.closed().await, None);
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

async fn one_namespace_too_many_is_refused_and_the_others_go_on(limit: &str) {
    let server = serve(|io, limits| {
        limits.namespaces_per_connection = 2;
        io.namespace(echoing("/b")).namespace(echoing("/c"))
    })
    .await;
    let mut socket = WebSocket::connect(server.address).await;
    socket.join("/b").await;
    socket.send("40/c,").await;
    let refused = r#"44/c,{"message":"too many namespaces on one connection"}"#;
    assert_eq!(socket.text().await, refused);
    assert_eq!(server.reached(limit), 1);
    socket.assert_served().await;

    // Leaving one makes room for another.
    socket.send("41/b,").await;
    socket.join("/c").await;
}

async fn one_room_too_many_is_not_joined(limit: &str) {
    let (server, mut sockets) = limited_sockets(|limits| limits.rooms_per_socket = 2).await;
    let (mut client, socket) = sockets.connect(&server).await;
    socket.join("a").unwrap();
    let refused = socket.join(["a", "b", "c"]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a socket can be in at most 2 rooms, and 1 more than now"
    );
    assert_eq!(socket.rooms(), [socket.id().as_str(), "a"]);
    assert_eq!(server.reached(limit), 1);
    socket.join(["a", "b", socket.id().as_str()]).unwrap();
    client.assert_served().await;
}

async fn a_room_with_a_name_too_long_is_not_joined(limit: &str) {
    let (server, mut sockets) = limited_sockets(|limits| limits.room_name_bytes = 20).await;
    let (mut client, socket) = sockets.connect(&server).await;
    let refused = socket.join(["short", &"x".repeat(21)]).unwrap_err();
    assert_eq!(refused.to_string(), "a room name can have at most 20 bytes");
    assert_eq!(socket.rooms(), [socket.id().as_str()]);
    assert_eq!(server.reached(limit), 1);
    socket.join("x".repeat(20)).unwrap();
    client.assert_served().await;
}

async fn a_client_that_owes_too_many_acks_is_not_asked_again(limit: &str) {
    let (server, mut sockets) = limited_sockets(|limits| limits.pending_acks = 2).await;
    let (mut client, socket) = sockets.connect(&server).await;
    let ask = || socket.emit_with_ack::<u32>("question", ());
    let mut owed = Box::pin(future::join(ask(), ask()));
    assert!((&mut owed).now_or_never().is_none());
    let refused = ask().await.unwrap_err();
    assert!(
        matches!(refused, AckError::TooManyPending { limit: 2 }),
        "{refused}"
    );
    assert_eq!(server.reached(limit), 1);

    // An acknowledged event no longer counts towards the limit.
    for _ in 0..2 {
        assert!(client.text().await.starts_with("42"));
    }
    client.send("430[1]").await;
    client.send("431[2]").await;
    let (first, second) = within("the answers", owed).await;
    assert_eq!((first.unwrap(), second.unwrap()), (1, 2));
    let mut third = Box::pin(ask());
    assert!((&mut third).now_or_never().is_none());
    client.send("433[3]").await;
    client.send("432[3]").await;
    assert_eq!(within("the third answer", third).await.unwrap(), 3);
    client.assert_served().await;
}

async fn a_broadcast_does_not_wait_for_a_client_that_owes_too_many_acks(limit: &str) {
    let (server, mut sockets) = limited_sockets(|limits| limits.pending_acks = 1).await;
    let (_debtor, debtor) = sockets.connect(&server).await;
    let mut owed = Box::pin(debtor.emit_with_ack::<u32>("question", ()));
    assert!((&mut owed).now_or_never().is_none());
    let mut other = WebSocket::connect(server.address).await;

    let vote = tokio::spawn(server.io.of("/").emit_with_ack::<u32>("vote", ()));
    assert_eq!(other.text().await, r#"421["vote"]"#);
    other.send("431[7]").await;
    let answers = within("the vote ends", vote).await.unwrap().unwrap();
    assert_eq!(answers.answers, [7]);
    assert_eq!(answers.missing, [debtor.id().clone()]);
    assert_eq!(server.reached(limit), 1);
}

async fn the_oldest_unacknowledged_events_are_not_sent_again(limit: &str) {
    let namespace = main_namespace().recovery(Recovery {
        at_least_once: true,
        ..Recovery::default()
    });
    let (namespace, mut sockets) = Sockets::of(namespace);
    let server = serve_namespace(namespace, |io, limits| {
        limits.unacknowledged_events = 2;
        limits.unacknowledged_bytes = 2000;
        io
    })
    .await;
    let mut stream = WebSocket::open(server.address).await;
    stream.send("40").await;
    let reply = stream.text().await;
    let (_, pid) = reply.split_once(r#""pid":""#).unwrap();
    let pid = pid.split('"').next().unwrap();
    let socket = sockets.next().await;
    let large = "x".repeat(900);
    for (number, text) in [(1, "small"), (2, "small"), (3, "small"), (4, &*large)] {
        let everybody = server.io.of("/").at_least_once();
        everybody.emit("n", (number, text)).await.unwrap();
        stream.text().await;
    }
    assert_eq!(server.reached(limit), 2);
    stream.reset();
    eventually("the socket has gone", || !socket.is_connected()).await;
    let mut stream = WebSocket::open(server.address).await;
    stream.send(&format!(r#"40{{"pid":"{pid}"}}"#)).await;
    for number in [3, 4] {
        let text = stream.text().await;
        assert!(text.contains(&format!(r#"["n",{number},"#)), "{text}");
    }
    assert_eq!(stream.text().await, reply);
}

async fn events_over_a_websocket_wait_while_too_many_handlers_run(limit: &str) {
    let (server, gate, begun) = held_up().await;
    let mut bystander = server.bystander().await;
    let mut socket = WebSocket::connect(server.address).await;
    // Everything at once, so that most of it is read before the pause.
    let mut all = Vec::new();
    for n in 0..EVENTS {
        let packet = format!(r#"42{n}["wait",{n}]"#);
        all.extend(websocket::frame(true, 1, packet.as_bytes()));
    }
    socket.stream.write_all(&all).await.unwrap();

    eventually("events wait", || server.reached(limit) > 0).await;
    assert_eq!(begun.load(Ordering::SeqCst), 3);
    bystander.assert_served().await;
    gate.admit(1);
    assert!(socket.text().await.starts_with("43"));
    eventually("one more begins", || begun.load(Ordering::SeqCst) == 4).await;
    gate.open();
    let mut answers = Vec::new();
    for _ in 1..EVENTS {
        answers.push(socket.text().await);
    }
    assert_answered(answers, EVENTS - 1);
    assert_eq!(begun.load(Ordering::SeqCst), EVENTS);
    socket.assert_served().await;
}

async fn posted_events_wait_while_too_many_handlers_run(limit: &str) {
    let (server, gate, begun) = held_up().await;
    let mut bystander = server.bystander().await;
    let mut polling = Polling::connect(server.address).await;
    let packets = |range: std::ops::Range<usize>| {
        let packets = range.map(|n| format!(r#"42{n}["wait",{n}]"#));
        packets.collect::<Vec<_>>().join("\u{1e}")
    };
    polling.say(&packets(0..EVENTS / 2)).await;
    polling.say(&packets(EVENTS / 2..EVENTS)).await;

    eventually("events wait", || server.reached(limit) > 0).await;
    assert_eq!(begun.load(Ordering::SeqCst), 3);
    bystander.assert_served().await;
    gate.open();
    let mut answers = Vec::new();
    for _ in 0..EVENTS {
        answers.push(polling.packet().await);
    }
    assert_answered(answers, EVENTS);
    assert_eq!(begun.load(Ordering::SeqCst), EVENTS);
}

async fn handlers_that_wait_for_their_client_are_answered_at_the_limit(limit: &str) {
    let namespace = main_namespace().on("ask", async |socket: Socket, n: usize| {
        socket.emit_with_ack::<usize>("back", n).await
    });
    let server = serve_namespace(namespace, |io, limits| {
        limits.events_in_flight = 3;
        io
    })
    .await;
    let mut socket = WebSocket::connect(server.address).await;
    for n in 0..EVENTS {
        socket.send(&format!(r#"42{n}["ask",{n}]"#)).await;
    }
    let mut answers = Vec::new();
    while answers.len() < EVENTS {
        let packet = socket.text().await;
        match packet.strip_prefix("42") {
            Some(asked) => {
                let (id, args) = asked.split_once(r#"["back","#).unwrap();
                socket.send(&format!("43{id}[{args}")).await;
            }
            None => answers.push(packet),
        }
    }
    assert_answered(answers, EVENTS);
    assert!(server.reached(limit) > 0);
}

async fn a_disconnect_is_seen_at_the_limit_and_earlier_events_are_handled(limit: &str) {
    let (server, gate, begun) = held_up().await;
    let mut socket = WebSocket::connect(server.address).await;
    for n in 0..EVENTS {
        socket.send(&format!(r#"42["wait",{n}]"#)).await;
    }
    socket.send("41").await;
    eventually("the socket leaves", || {
        server.metric(r#"roomcast_sockets{namespace="/"}"#) == 0
    })
    .await;
    assert_eq!(begun.load(Ordering::SeqCst), 3);
    gate.open();
    eventually("all events are handled", || {
        begun.load(Ordering::SeqCst) == EVENTS
    })
    .await;
    assert!(server.reached(limit) > 0);
}

async fn reading_pauses_while_too_many_bytes_of_events_wait(limit: &str) {
    let gate = Gate::new();
    let waits = gate.clone();
    let namespace = main_namespace().on("wait", move |_: Socket, (n, _): (usize, String)| {
        let gate = waits.clone();
        async move {
            gate.pass().await;
            n
        }
    });
    let server = serve_namespace(namespace, |io, limits| {
        limits.events_in_flight = 1;
        limits.inbox_bytes = 10_000;
        io.max_payload(10_000)
    })
    .await;
    let mut socket = WebSocket::connect(server.address).await;
    let text = "x".repeat(4_000);
    let before = server.metric("roomcast_events_received_total");
    for n in 0..EVENTS {
        let packet = format!(r#"42{n}["wait",{n},"{text}"]"#);
        socket.send(&packet).await;
    }
    eventually("events wait", || server.reached(limit) > 2).await;
    let received = server.metric("roomcast_events_received_total") - before;
    assert!(received < 5, "{received} are read");
    gate.open();
    let answers = socket.texts(EVENTS).await;
    assert_answered(answers, EVENTS);
}

/// A namespace whose events `wait` until the gate is open, with the number of those that run.
fn held_up_by(
    hold: impl FnOnce(Namespace, Gate, Arc<AtomicUsize>) -> Namespace,
) -> (Namespace, Gate, Arc<AtomicUsize>) {
    let (gate, running) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
    let namespace = hold(main_namespace(), gate.clone(), Arc::clone(&running));
    (namespace, gate, running)
}

/// Sends events of 4,000 bytes to a server that lets 10,000 bytes run.
async fn only_two_of_them_run(
    limit: &str,
    (namespace, gate, running): (Namespace, Gate, Arc<AtomicUsize>),
) {
    let server = serve_namespace(namespace, |io, limits| {
        limits.inbox_bytes = 10_000;
        io.max_payload(10_000)
    })
    .await;
    let mut socket = WebSocket::connect(server.address).await;
    let text = "x".repeat(4_000);
    let before = server.metric("roomcast_events_received_total");
    for n in 0..EVENTS {
        socket.send(&format!(r#"42["wait",{n},"{text}"]"#)).await;
    }
    eventually("reading pauses", || server.reached("events_in_flight") > 0).await;
    let received = server.metric("roomcast_events_received_total") - before;
    assert_eq!(running.load(Ordering::SeqCst), 2);
    // As many bytes wait.
    assert_eq!(received, 5);
    assert_eq!(server.reached(limit), 3);
    gate.open();
    eventually("all events are handled", || {
        running.load(Ordering::SeqCst) == EVENTS
    })
    .await;
}

async fn handlers_run_only_while_the_bytes_of_their_events_fit(limit: &str) {
    let held = held_up_by(|namespace, gate, running| {
        namespace.on("wait", move |_: Socket, _: (usize, String)| {
            running.fetch_add(1, Ordering::SeqCst);
            let gate = gate.clone();
            async move { gate.pass().await }
        })
    });
    only_two_of_them_run(limit, held).await;
}

async fn an_event_that_is_observed_keeps_its_bytes_while_the_observer_runs(limit: &str) {
    let held = held_up_by(|namespace, gate, running| {
        namespace.on_any(move |_: Socket| {
            running.fetch_add(1, Ordering::SeqCst);
            let gate = gate.clone();
            async move { gate.pass().await }
        })
    });
    only_two_of_them_run(limit, held).await;
}

/// 256 MiB are broadcast. If they were kept for the client that does not read, the process would
/// grow by as much. The bound leaves room for the memory of tests that run at the same time.
async fn a_client_that_never_reads_is_closed_and_costs_no_memory(limit: &str) {
    const BROADCASTS: usize = 4096;
    let server = limited(|limits| limits.outbox_bytes = 256 * 1024).await;
    let mut never_reads = WebSocket::connect(server.address).await;
    let (progress, mut received) = mpsc::unbounded_channel();
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut reader = WebSocket::connect(server.address).await;
        let progress = progress.clone();
        readers.push(tokio::spawn(async move {
            for n in 0..BROADCASTS {
                let text = reader.text().await;
                assert!(text.starts_with(&format!(r#"42["news",{n},"#)));
                progress.send(()).unwrap();
            }
            reader
        }));
    }
    let before = resident_bytes();
    let item = "x".repeat(64 * 1024);
    for n in 0..BROADCASTS {
        let delivery = server.io.emit("news", (n, &item)).await.unwrap();
        assert!(delivery.local_sockets >= 2);
        // The readers keep up, so that only one is slow.
        for _ in 0..2 {
            within("a reader reads", received.recv()).await.unwrap();
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 160 << 20, "grown by {grown} bytes");

    assert_counted(&server, limit).await;
    let texts = never_reads.rest().await;
    assert!(texts.len() < BROADCASTS, "the rest was given up");
    for reader in readers {
        reader.await.unwrap().assert_served().await;
    }
}

async fn a_client_that_never_polls_is_closed(limit: &str) {
    let server = limited(|limits| limits.outbox_bytes = 10_000).await;
    let mut bystander = server.bystander().await;
    let polling = Polling::connect(server.address).await;
    let item = "x".repeat(4_000);
    for n in 0..3 {
        server.io.emit("news", (n, &item)).await.unwrap();
        assert!(bystander.text().await.starts_with(r#"42["news","#));
    }

    polling.assert_closed().await;
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

async fn a_client_that_takes_nothing_for_too_long_is_closed(limit: &str) {
    let server = limited(|limits| limits.stall_timeout = Duration::from_secs(1)).await;
    let websocket = WebSocket::connect(server.address).await;
    let polling = Polling::connect(server.address).await;
    let mut bystander = server.bystander().await;
    // More than the system takes for a client that does not read.
    server.io.emit("news", "x".repeat(32 << 20)).await.unwrap();
    bystander.text().await;
    within("both are closed", async {
        while server.reached(limit) < 2 {
            server.io.emit("more", ()).await.unwrap();
            bystander.text().await;
        }
    })
    .await;
    polling.assert_closed().await;
    drop(websocket);
    bystander.assert_served().await;
}

async fn the_clients_for_which_most_waits_are_closed_when_too_much_waits(limit: &str) {
    let (server, mut sockets) =
        limited_sockets(|limits| limits.outbox_total_bytes = 20 << 20).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = WebSocket::connect(server.address).await;
        clients.push((client, sockets.next().await));
    }
    let text = "x".repeat(1 << 20);
    // More than the system takes, and less than may wait for all.
    for (_, socket) in &clients[..2] {
        (0..4).for_each(|_| socket.emit("item", &text).unwrap());
    }
    // A broadcast is stored once for all clients that do not read.
    for _ in 0..3 {
        server.io.emit("item", &text).await.unwrap();
    }
    assert_eq!(server.reached(limit), 0);
    for _ in 0..60 {
        let sent = clients[2].1.emit("item", &text);
        if sent.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    eventually("one is closed", || server.reached(limit) == 1).await;
    assert_eq!(server.closed(limit), 1);
    for (client, _) in &mut clients[..2] {
        for _ in 0..7 {
            assert!(client.text().await.starts_with(r#"42["item","#));
        }
        client.assert_served().await;
    }
}

async fn a_response_that_is_not_read_is_given_up(limit: &str) {
    let (server, mut sockets) =
        limited_sockets(|limits| limits.response_timeout = Duration::from_millis(200)).await;
    let polling = Polling::connect(server.address).await;
    let large = "x".repeat(32 << 20);
    sockets.next().await.emit("large", &large).unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: test\r\n\r\n", polling.target());
    let mut stream = http::send(server.address, request).await;
    eventually("it is given up", || server.reached(limit) == 1).await;
    let mut received = Vec::new();
    // It ends early, by a close or a reset.
    drop(within("the end of the response", stream.read_to_end(&mut received)).await);
    assert!(received.len() < large.len());
    eventually("its connection is not counted", || {
        server.metric("roomcast_http_connections") == 0
    })
    .await;
}

async fn clients_beyond_the_sockets_that_may_be_open_are_refused_at_once(limit: &str) {
    let server = limited(|limits| limits.sockets = 4).await;
    let mut websocket = WebSocket::connect(server.address).await;
    let polling = Polling::connect(server.address).await;
    let open = || server.metric("roomcast_http_connections");
    eventually("its requests have ended", || open() == 0).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    eventually("they are accepted", || open() == 3).await;
    let refused = http::get(server.address, polling::NEW).await;
    assert_eq!(refused.status, 503);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds), "{seconds}");
    assert_eq!(server.reached(limit), 1);
    websocket.assert_served().await;
    silent.clear();
    eventually("they are gone", || open() == 0).await;
    polling.say("42[\"echo\"]").await;
    assert_eq!(server.reached(limit), 1);
    assert_eq!(server.metric("roomcast_socket_limit"), 4);
}

async fn a_client_that_posts_faster_than_it_is_served_is_closed(limit: &str) {
    let gate = Gate::new();
    let waits = gate.clone();
    let namespace = main_namespace().on("wait", move |_: Socket| waits.pass());
    let server = serve_namespace(namespace, |io, limits| {
        limits.events_in_flight = 1;
        limits.inbox_bytes = 1000;
        io.max_payload(1000)
    })
    .await;
    let mut bystander = server.bystander().await;
    let polling = Polling::connect(server.address).await;
    polling.say(r#"42["wait"]"#).await;
    let large = format!(r#"42["other","{}"]"#, "x".repeat(600));
    let mut posts = 0;
    while polling.post(&large).await.status == 200 {
        posts += 1;
        assert!(posts < 10, "the inbox has no end");
    }
    bystander.assert_served().await;
    polling.assert_closed().await;
    assert_counted(&server, limit).await;
    gate.open();
}

/// A server behind a proxy on this machine, with the PROXY protocol.
async fn behind_proxy(limits: Limits) -> TestServer {
    let proxies = TrustedProxies::new(["127.0.0.1"]).unwrap();
    let io = Server::builder().trusted_proxies(proxies).limits(limits);
    TestServer::start_with(io.namespace(main_namespace()), Serve::with_proxy_protocol).await
}

const PROXY_HEADER: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n";

async fn bystander_behind_proxy(server: &TestServer) -> WebSocket {
    WebSocket::connect_over(http::send(server.address, PROXY_HEADER).await).await
}

async fn a_proxy_header_that_does_not_come_in_time_closes_the_connection(limit: &str) {
    let server = behind_proxy(Limits {
        handshake_timeout: Duration::from_secs(1),
        ..Limits::default()
    })
    .await;
    let mut bystander = bystander_behind_proxy(&server).await;
    let mut stream = http::send(server.address, &PROXY_HEADER[..9]).await;
    let ended = within("the connection ends", stream.read_u8()).await;
    assert!(ended.is_err());
    eventually("it is counted", || server.reached(limit) == 1).await;
    bystander.assert_served().await;
}

async fn one_unfinished_proxy_header_too_many_closes_its_connection(limit: &str) {
    let server = behind_proxy(Limits {
        handshake_timeout: Duration::from_secs(3600),
        handshakes: 1,
        ..Limits::default()
    })
    .await;
    let mut bystander = bystander_behind_proxy(&server).await;
    let mut one = http::send(server.address, &PROXY_HEADER[..9]).await;
    let mut other = http::send(server.address, &PROXY_HEADER[..9]).await;
    // The server may come to either first.
    let mut left = within("one of them ends", async {
        tokio::select! {
            ended = one.read_u8() => ended.map_or(other, |_| panic!("a response")),
            ended = other.read_u8() => ended.map_or(one, |_| panic!("a response")),
        }
    })
    .await;
    assert_eq!(server.reached(limit), 1);
    bystander.assert_served().await;
    left.write_all(&PROXY_HEADER[9..]).await.unwrap();
    drop(WebSocket::over(left, websocket::NEW).await);
    drop(bystander_behind_proxy(&server).await);
}

async fn half_a_request_head_is_not_waited_for(limit: &str) {
    let server = limited(|limits| limits.header_timeout = Duration::from_millis(500)).await;
    let mut bystander = server.bystander().await;
    let half = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: te";
    let mut stream = http::send(server.address, half).await;

    let mut answer = Vec::new();
    let read = within("the connection ends", stream.read_to_end(&mut answer)).await;
    read.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    eventually("it is counted", || server.reached(limit) == 1).await;
    bystander.assert_served().await;
}

async fn a_connection_without_a_next_request_is_not_kept(limit: &str) {
    let server = limited(|limits| limits.header_timeout = Duration::from_millis(500)).await;
    let mut bystander = server.bystander().await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let request = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut idle = http::send(server.address, request).await;
    assert_eq!(http::response(&mut idle).await.status, 200);

    for stream in [&mut silent, &mut idle] {
        let ended = within("the connection ends", stream.read_u8()).await;
        assert!(ended.is_err());
    }
    eventually("both are counted", || server.reached(limit) == 2).await;
    bystander.assert_served().await;
}

async fn half_a_request_body_is_not_waited_for(limit: &str) {
    let server = limited(|limits| limits.body_timeout = Duration::from_millis(500)).await;
    let mut bystander = server.bystander().await;
    let polling = Polling::connect(server.address).await;
    let half = post(&polling, "Content-Length: 100") + r#"42["echo","#;
    let mut stream = http::send(server.address, half).await;

    assert_eq!(http::response(&mut stream).await.status, 408);
    polling.assert_closed().await;
    assert_counted(&server, limit).await;
    bystander.assert_served().await;
}

async fn one_unfinished_upgrade_too_many_is_refused(limit: &str) {
    let server = limited(|limits| limits.unfinished_upgrades = 1).await;
    let first = Polling::connect(server.address).await;
    let mut second = Polling::connect(server.address).await;
    let mut probe = first.probe().await;
    let target = second.upgrade_target();
    assert_eq!(WebSocket::refused(server.address, &target).await, 503);
    assert_eq!(server.reached(limit), 1);

    // The one that was refused goes on polling; once the first is done, it can upgrade.
    second.say(r#"420["echo","polling"]"#).await;
    assert_eq!(second.packet().await, r#"430["polling"]"#);
    probe.send("5").await;
    probe.assert_served().await;
    let (mut socket, _) = second.upgrade().await;
    socket.assert_served().await;
}

async fn one_server_side_event_too_many_is_answered_with_an_error(limit: &str) {
    let (bus, gate) = (MemoryBus::new(), Gate::new());
    let asking = serve(|io, _| io.bus(bus.clone())).await;
    let inside = gate.clone();
    let (sender, mut begun) = mpsc::unbounded_channel();
    let slow = main_namespace().on_server_side("slow", move |_: BroadcastOperator| {
        let gate = inside.clone();
        sender.send(()).unwrap();
        async move { gate.pass().await }
    });
    let server = serve_namespace(slow, |io, limits| {
        limits.server_side_events = 1;
        io.bus(bus)
    })
    .await;
    let mut bystander = server.bystander().await;
    let io = || asking.io.of("/");
    io().server_side_emit("slow", ()).await.unwrap();
    within("the first one is in work", begun.recv()).await;

    let ask = || io().server_side_emit_with_ack::<serde_json::Value>("slow", ());
    let refused = ask().await.unwrap().answers;
    let error = "the server is handling too many server-side events";
    assert_eq!(refused, [serde_json::json!({ "error": error })]);
    assert_eq!(server.reached(limit), 1);
    io().server_side_emit("slow", ()).await.unwrap();
    assert_eq!(server.reached(limit), 2);
    assert!(begun.try_recv().is_err());

    gate.open();
    within("there is room again", async {
        while ask().await.unwrap().answers != [serde_json::Value::Null] {}
    })
    .await;
    bystander.assert_served().await;
}

async fn one_connection_too_many_is_refused(limit: &str) {
    let server = limited(|limits| limits.connections = 2).await;
    let mut first = WebSocket::connect(server.address).await;
    let polling = Polling::connect(server.address).await;
    let refused = http::get(server.address, polling::NEW).await;
    assert_eq!(refused.status, 503);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds), "{seconds}");
    assert_eq!(
        WebSocket::refused(server.address, websocket::NEW).await,
        503
    );
    assert_eq!(server.reached(limit), 2);

    first.assert_served().await;
    // A place that is given back can be taken.
    polling.say("1").await;
    assert_eq!(polling.get().await.body, "6");
    eventually("there is room", || server.io.connections() == 1).await;
    let mut third = WebSocket::connect(server.address).await;
    third.assert_served().await;
}

/// The application's decision about a handshake may take its time; so many at once must not
/// become more connections than are allowed.
async fn handshakes_that_are_being_decided_count_as_connections(limit: &str) {
    let gate = Gate::new();
    let waits = gate.clone();
    let server = serve(move |io, limits| {
        limits.connections = 2;
        io.allow_request(move || waits.pass())
    })
    .await;
    let handshake = || tokio::spawn(http::get(server.address, polling::NEW));
    let handshakes = [handshake(), handshake(), handshake()];
    eventually("one is refused", || server.reached(limit) == 1).await;
    gate.open();
    let mut statuses = Vec::new();
    for handshake in handshakes {
        statuses.push(handshake.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503]);
    assert_eq!(server.io.connections(), 2);
}

/// Events that are sent to a server that handles three at a time.
const EVENTS: usize = 40;

/// A server with one event whose handlers wait, and how many of them have begun.
async fn held_up() -> (TestServer, Gate, Arc<AtomicUsize>) {
    let (gate, begun) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
    let (waits, counts) = (gate.clone(), Arc::clone(&begun));
    let namespace = main_namespace().on("wait", move |_: Socket, n: usize| {
        let gate = waits.clone();
        counts.fetch_add(1, Ordering::SeqCst);
        async move {
            gate.pass().await;
            n
        }
    });
    let server = serve_namespace(namespace, |io, limits| {
        limits.events_in_flight = 3;
        io
    })
    .await;
    (server, gate, begun)
}

/// Each event that is acknowledged is acknowledged once, with what was sent with it.
fn assert_answered(mut answers: Vec<String>, count: usize) {
    answers.sort_unstable();
    answers.dedup();
    assert_eq!(answers.len(), count);
    for answer in answers {
        let (id, args) = answer[2..].split_once('[').unwrap();
        assert_eq!(args, format!("{id}]"), "{answer}");
    }
}

/// The packet closes the connection, without a code as Node's server does, and is counted.
async fn assert_closed_by(server: &TestServer, mut socket: WebSocket, packet: &str, limit: &str) {
    let mut bystander = server.bystander().await;
    socket.send(packet).await;
    assert_eq!(socket.closed().await, None);
    assert_counted(server, limit).await;
    bystander.assert_served().await;
}

/// One connection was closed for its limit. The count may come after what the client sees.
async fn assert_counted(server: &TestServer, limit: &str) {
    server.closes(limit, 1).await;
    assert_eq!(server.reached(limit), 1);
}

async fn serve(configure: impl FnOnce(Builder, &mut Limits) -> Builder) -> TestServer {
    serve_namespace(main_namespace(), configure).await
}

/// A server with payloads of at most 1,000 bytes, and a client of it that keeps to that.
async fn with_payloads_of_a_kilobyte() -> (TestServer, WebSocket) {
    let server = serve(|io, _| io.max_payload(1000)).await;
    let bystander = server.bystander().await;
    (server, bystander)
}

/// A server with the default settings except for some limits.
async fn limited(limit: impl FnOnce(&mut Limits)) -> TestServer {
    limited_sockets(limit).await.0
}

/// The same with the sockets that connect.
async fn limited_sockets(limit: impl FnOnce(&mut Limits)) -> (TestServer, Sockets) {
    let (namespace, sockets) = Sockets::of(main_namespace());
    let server = serve_namespace(namespace, |io, limits| {
        limit(limits);
        io
    });
    (server.await, sockets)
}

async fn serve_namespace(
    namespace: Namespace,
    configure: impl FnOnce(Builder, &mut Limits) -> Builder,
) -> TestServer {
    let mut limits = Limits::default();
    let builder = configure(Server::builder().namespace(namespace), &mut limits);
    TestServer::start(builder.limits(limits)).await
}

/// The head of a request that posts to a session.
fn post(polling: &Polling, header: &str) -> String {
    let target = polling.target();
    format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\n{header}\r\n\r\n")
}

/// The memory of this process that is in use.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}
