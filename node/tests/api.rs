//! What the library tells an application, and what an application may ask it for, where clients
//! notice little of it: handshakes, the decision about a request, volatile packets.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::disallowed_methods, reason = "a test reads the real clock")]

mod support;

use std::time::SystemTime;

use roomcast::{HandlerError, Handshake, Refused, Server, Socket};
use serde::Deserialize;
use support::{
    DEADLINE, Polling, TestServer, WebSocket, eventually, http,
    server::{Sockets, main_namespace},
    websocket, within,
};
use tokio::task;

const DROPPED: &str = "roomcast_volatile_dropped_total";

#[derive(Deserialize)]
struct Credentials {
    token: String,
}

#[tokio::test]
async fn a_handshake_has_what_came_with_the_request_and_with_the_connect() {
    let (server, mut sockets) = serve().await;
    let target = "/socket.io/?EIO=4&transport=websocket&colour=blue%20%26%20green&empty=";
    let request = websocket::request(target).replace("Host:", "X-Test: Yes\r\nHost:");
    let stream = http::send(server.address, request).await;
    let address = stream.local_addr().unwrap();
    let mut client = WebSocket::upgraded(stream).await;
    client.begin().await;
    client.send(r#"40{"token":"secret"}"#).await;

    let socket = sockets.next().await;
    let handshake = socket.handshake();
    assert_eq!(handshake.url(), target);
    assert_eq!(handshake.query("colour").unwrap(), "blue & green");
    assert_eq!(handshake.query("empty").unwrap(), "");
    assert_eq!(handshake.query("absent"), None);
    assert_eq!(handshake.header("x-test").unwrap(), "Yes");
    assert_eq!(handshake.header("x-absent"), None);
    assert_eq!(handshake.address(), Some(address));
    assert_eq!(handshake.auth::<Credentials>().unwrap().token, "secret");
    let age = SystemTime::now().duration_since(handshake.time()).unwrap();
    assert!(age < DEADLINE, "the time is not that of the request");
}

#[tokio::test]
async fn a_request_that_the_application_refuses_opens_no_session() {
    let builder = Server::builder().namespace(main_namespace());
    let server = TestServer::start(builder.allow_request(async |handshake: Handshake| {
        match handshake.query("key").as_deref() {
            Some("right") => Ok(()),
            Some("broken") => Err(HandlerError::from("the database is away")),
            _ => Err(Refused::new("the key is wrong").into()),
        }
    }))
    .await;
    let polling = "/socket.io/?EIO=4&transport=polling&key=";
    let refused = http::get(server.address, &format!("{polling}wrong")).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.body, r#"{"code":4,"message":"the key is wrong"}"#);
    let broken = http::get(server.address, &format!("{polling}broken")).await;
    assert_eq!(broken.body, r#"{"code":4,"message":"internal error"}"#);
    assert_eq!(server.handler_errors(), 1);
    assert_eq!(
        WebSocket::refused(server.address, websocket::NEW).await,
        403
    );
    let metric = r#"roomcast_http_refused_total{reason="forbidden"}"#;
    assert_eq!(server.metric(metric), 3);
    assert_eq!(server.io.connections(), 0);

    let opened = http::get(server.address, &format!("{polling}right")).await;
    assert_eq!(opened.status, 200);
    let target = format!("{}&key=right", websocket::NEW);
    let _client = WebSocket::open_at(server.address, &target).await;
    assert_eq!(server.io.connections(), 2);
}

#[tokio::test]
async fn a_volatile_packet_reaches_a_client_that_can_be_written_to() {
    let (server, mut sockets) = serve().await;
    let (mut client, socket) = sockets.connect(&server).await;
    for n in 0..10 {
        socket.volatile().emit("own", n).unwrap();
        assert_eq!(client.text().await, format!(r#"42["own",{n}]"#));
        server.io.of("/").volatile().emit("all", n).await.unwrap();
        assert_eq!(client.text().await, format!(r#"42["all",{n}]"#));
    }
    assert_eq!(server.metric(DROPPED), 0);
}

#[tokio::test]
async fn a_volatile_packet_is_dropped_for_a_client_that_does_not_read() {
    let (server, mut sockets) = serve().await;
    let (mut client, socket) = sockets.connect(&server).await;
    // More than the kernel takes for somebody who does not read.
    socket.emit("large", "x".repeat(32 << 20)).unwrap();
    let sent = send_volatile_until(&socket, || server.metric(DROPPED) >= 10).await;
    server.io.of("/").volatile().emit("v", sent).await.unwrap();
    let dropped = usize::try_from(server.metric(DROPPED)).unwrap();
    assert!(dropped > 10, "a broadcast is no different");
    socket.emit("end", ()).unwrap();

    assert!(client.text().await.starts_with(r#"42["large""#));
    // What was queued before the kernel was full comes, in order, and nothing else.
    for n in 0..sent + 1 - dropped {
        assert_eq!(client.text().await, format!(r#"42["v",{n}]"#));
    }
    assert_eq!(client.text().await, r#"42["end"]"#);
}

#[tokio::test]
async fn a_volatile_packet_waits_for_the_next_poll_as_long_as_it_fits_into_it() {
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let builder = Server::builder().namespace(namespace).max_payload(1000);
    let server = TestServer::start(builder).await;
    let mut polling = Polling::connect(server.address).await;
    let socket = sockets.next().await;
    for n in 0..3 {
        let text = "x".repeat(400);
        socket.volatile().emit("v", (n, text)).unwrap();
    }
    assert_eq!(server.metric(DROPPED), 1, "the third does not fit");
    for n in 0..2 {
        let packet = polling.packet().await;
        assert!(packet.starts_with(&format!(r#"42["v",{n},"#)), "{packet}");
    }
}

#[tokio::test]
async fn a_volatile_packet_reaches_a_client_that_polls() {
    let (server, mut sockets) = serve().await;
    let polling = Polling::connect(server.address).await;
    let socket = sockets.next().await;
    let poll = task::spawn(async move { polling.get().await });
    let sent = send_volatile_until(&socket, || poll.is_finished()).await;
    let body = poll.await.unwrap().body;
    let heard = body.split('\u{1e}').count();
    assert!(heard <= sent);
    let expected = (0..heard).map(|n| format!(r#"42["v",{n}]"#));
    assert_eq!(body, expected.collect::<Vec<_>>().join("\u{1e}"));
    assert_eq!(server.metric(DROPPED), 0);
}

#[tokio::test]
async fn to_ask_for_compression_changes_nothing() {
    let (server, mut sockets) = serve().await;
    let (mut client, socket) = sockets.connect(&server).await;
    for compress in [true, false] {
        socket.compress(compress).emit("own", compress).unwrap();
        assert_eq!(client.text().await, format!(r#"42["own",{compress}]"#));
        let all = server.io.of("/").compress(compress);
        all.emit("all", compress).await.unwrap();
        assert_eq!(client.text().await, format!(r#"42["all",{compress}]"#));
    }
}

#[tokio::test]
async fn a_client_that_reads_gets_more_than_its_outbox_holds_if_it_is_emitted_at_once() {
    let (server, mut sockets) = serve().await;
    let (mut client, socket) = sockets.connect(&server).await;
    let large = "x".repeat(2 << 20);
    socket.emit("large", &large).unwrap();
    socket.volatile().emit("small", 1).unwrap();
    socket.emit("large", &large).unwrap();
    let packet = format!(r#"42["large","{large}"]"#);
    assert!(client.text().await == packet);
    assert_eq!(client.text().await, r#"42["small",1]"#);
    assert!(client.text().await == packet);
    assert_eq!(server.closed("slow_consumer"), 0);
}

#[tokio::test]
async fn events_to_one_client_and_broadcasts_are_counted_apart() {
    let (server, mut sockets) = serve().await;
    let (mut client, socket) = sockets.connect(&server).await;
    socket.emit("x", 1).unwrap();
    assert_eq!(client.text().await, r#"42["x",1]"#);
    let asking = async { socket.emit_with_ack::<u32>("ask", ()).await.unwrap() };
    let answering = async {
        assert_eq!(client.text().await, r#"420["ask"]"#);
        client.send("430[5]").await;
    };
    assert_eq!(tokio::join!(asking, answering).0, 5);
    assert_eq!(server.metric("roomcast_events_sent_total"), 2);
    for _ in 0..3 {
        server.io.emit("all", ()).await.unwrap();
    }
    assert_eq!(server.metric("roomcast_events_sent_total"), 2);
    assert_eq!(server.metric("roomcast_fan_out_seconds_count"), 3);
}

#[tokio::test]
async fn bytes_that_wait_for_a_client_that_does_not_read_are_shown_until_it_reads_or_goes() {
    const WAITING: &str = "roomcast_outbox_bytes";
    let (server, mut sockets) = serve().await;
    let large = "x".repeat(32 << 20);
    for reads in [true, false] {
        let mut client = WebSocket::connect(server.address).await;
        assert_eq!(server.metric(WAITING), 0);
        sockets.next().await.emit("large", &large).unwrap();
        let waiting = || server.metric(WAITING) >= 32 << 20;
        eventually("the packet waits", waiting).await;
        if reads {
            client.text().await;
        } else {
            drop(client);
        }
        eventually("nothing waits", || server.metric(WAITING) == 0).await;
    }
}

async fn serve() -> (TestServer, Sockets) {
    TestServer::with_sockets(main_namespace()).await
}

/// Sends numbers as volatile events until it is enough; answers how many.
async fn send_volatile_until(socket: &Socket, is_enough: impl Fn() -> bool) -> usize {
    let mut sent = 0;
    within("enough volatile packets are sent", async {
        while !is_enough() {
            socket.volatile().emit("v", sent).unwrap();
            sent += 1;
            task::yield_now().await;
        }
    })
    .await;
    sent
}
