//! What happens when something ends, fails or is answered by the wrong one; and that the server
//! works on whatever it is served with.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    collections::BTreeMap,
    future::{self, Ready},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, extract::Request, middleware, response::Response as AxumResponse, routing};
use bytes::Bytes;
use futures_util::future::FutureExt as _;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use roomcast::{
    AckError, CloseReason, DisconnectReason, Drain, Handshake, Limits, Namespace, Refused, Server,
    Socket,
};
use support::{
    DEADLINE, Gate, Polling, TestServer, WebSocket, eventually, http, polling,
    server::{Sockets, echoing, listen, main_namespace, metric},
    websocket::{self, Message},
    within,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream, Join},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{self, UnboundedReceiver},
};

const PANICS: &str = "roomcast_handler_panics_total";

#[tokio::test]
async fn a_panic_in_a_handler_disconnects_its_socket_only() {
    let namespace = main_namespace()
        .on("at once", |_: Socket| -> Ready<()> { panic!("at once") })
        .on("first", async |_: Socket| fail())
        .on("later", async |_: Socket| {
            tokio::task::yield_now().await;
            fail();
        });
    let server = two_namespaces(namespace).await;
    let mut bystander = server.bystander().await;
    let mut client = WebSocket::connect(server.address).await;
    client.join("/other").await;
    for (count, event) in ["at once", "first", "later"].iter().enumerate() {
        client.send(&format!(r#"421["{event}"]"#)).await;
        assert_eq!(client.text().await, "41", "no answer, but the end");
        assert_eq!(server.metric(PANICS), count as u64 + 1);
        assert_served_in_other(&mut client).await;
        client.join("/").await;
        client.assert_served().await;
    }
    bystander.assert_served().await;
}

#[tokio::test]
async fn a_panic_on_connect_disconnects_the_socket_only() {
    let namespace = echoing("/fails").on_connect(async |_: Socket| fail());
    let (server, mut client) = in_other(namespace).await;
    client.join("/fails").await;
    assert_eq!(client.text().await, "41/fails,");
    assert_eq!(server.metric(PANICS), 1);
    assert_served_in_other(&mut client).await;
    assert_eq!(sockets_in(&server, "/fails"), 0);
}

#[tokio::test]
async fn a_panic_while_authorizing_refuses_the_connect_only() {
    type Decision = Result<(), Refused>;
    let at_once = echoing("/at-once").authorize(|_: Handshake| -> Ready<Decision> { panic!() });
    let later = echoing("/later").authorize(async |_: Handshake| -> Decision {
        tokio::task::yield_now().await;
        panic!()
    });
    let builder = Server::builder().namespace(at_once).namespace(later);
    let server = TestServer::start(builder.namespace(echoing("/other"))).await;
    let mut client = WebSocket::open(server.address).await;
    for namespace in ["/at-once", "/later"] {
        client.send(&format!("40{namespace},")).await;
        let refused = format!(r#"44{namespace},{{"message":"internal error"}}"#);
        assert_eq!(client.text().await, refused);
        assert_eq!(sockets_in(&server, namespace), 0);
    }
    assert_eq!(server.metric(PANICS), 2);
    client.join("/other").await;
    assert_served_in_other(&mut client).await;
}

/// As with the pages of some frameworks, which connect, disconnect and connect again at once.
#[tokio::test]
async fn a_second_connect_takes_the_place_of_one_that_is_being_decided() {
    let (gate, decisions) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
    let (waits, counts) = (gate.clone(), Arc::clone(&decisions));
    let namespace = Namespace::new("/slow")
        .authorize(move |handshake: Handshake| {
            counts.fetch_add(1, Ordering::SeqCst);
            let auth = handshake.auth::<BTreeMap<String, String>>();
            waits
                .pass()
                .map(|()| Ok::<_, Refused>(auth.unwrap_or_default()))
        })
        .on("who", async |socket: Socket| {
            socket.data::<BTreeMap<String, String>>().unwrap()["who"].clone()
        });
    let (server, mut client) = in_other(namespace).await;
    client.send(r#"40/slow,{"who":"first"}"#).await;
    client.send(r#"40/slow,{"who":"second"}"#).await;
    eventually("both are being decided", || {
        decisions.load(Ordering::SeqCst) == 2
    })
    .await;
    gate.open();
    assert!(client.text().await.starts_with(r#"40/slow,{"sid":"#));
    client.send(r#"42/slow,7["who"]"#).await;
    assert_eq!(client.text().await, r#"43/slow,7["second"]"#);
    assert_eq!(sockets_in(&server, "/slow"), 1);
    assert_served_in_other(&mut client).await;
}

#[tokio::test]
async fn a_second_connect_takes_the_place_of_the_socket() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let namespace =
        echoing("/fast").on_disconnect(move |socket: Socket, reason: DisconnectReason| {
            ended.send((socket.id().to_string(), reason)).unwrap();
            async {}
        });
    let (server, mut client) = in_other(namespace).await;
    let first = client.join("/fast").await;
    let second = client.join("/fast").await;
    assert_ne!(first, second);
    let (id, reason) = ends.recv().await.unwrap();
    assert_eq!(first, id);
    assert_eq!(reason, DisconnectReason::ClientDisconnect);
    assert_eq!(sockets_in(&server, "/fast"), 1);
    assert_served_in_other(&mut client).await;
}

#[tokio::test]
async fn a_disconnect_ends_the_decision_about_a_connect() {
    let gate = Gate::new();
    let waits = gate.clone();
    let namespace =
        Namespace::new("/slow").authorize(move |_: Handshake| waits.pass().map(Ok::<_, Refused>));
    let (server, mut client) = in_other(namespace).await;
    client.send("40/slow,").await;
    client.send("41/slow,").await;
    assert_served_in_other(&mut client).await;
    gate.open();
    client.join("/slow").await;
    assert_eq!(sockets_in(&server, "/slow"), 1);
    assert_served_in_other(&mut client).await;
}

#[tokio::test]
async fn a_panic_on_disconnect_leaves_nothing_behind() {
    let namespace = main_namespace().on_disconnect(async |_: Socket, _: DisconnectReason| fail());
    let (server, mut client) = in_both(namespace).await;
    client.send("41").await;
    assert_served_in_other(&mut client).await;
    assert_eq!(server.metric(PANICS), 1);
    drop(client);
    server.assert_empty().await;
}

#[tokio::test]
async fn a_panic_in_the_catch_all_handler_keeps_the_event_from_its_own() {
    let (sender, mut handled) = mpsc::unbounded_channel();
    let namespace =
        Namespace::new("/")
            .on_any(async |_: Socket| fail())
            .on("event", move |_: Socket| {
                sender.send(()).unwrap();
                async {}
            });
    let (_server, mut client) = in_both(namespace).await;
    client.send(r#"42["event"]"#).await;
    assert_eq!(client.text().await, "41");
    assert_served_in_other(&mut client).await;
    assert!(handled.try_recv().is_err());
}

#[tokio::test]
async fn another_task_disconnects_a_socket_from_its_namespace() {
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let (_server, mut client) = in_both(namespace).await;
    let socket = sockets.next().await;
    socket.disconnect(false);
    socket.disconnect(true);
    assert_eq!(client.text().await, "41", "the first word counts");
    assert_served_in_other(&mut client).await;
    assert!(!socket.is_connected());
    assert!(socket.emit("late", ()).is_err());

    let id = client.join("/").await;
    assert_ne!(id, socket.id().as_str());
    client.assert_served().await;
}

#[tokio::test]
async fn another_task_disconnects_the_whole_client() {
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let (server, mut client) = in_both(namespace).await;
    let socket = sockets.next().await;
    tokio::spawn(async move { socket.disconnect(true) });
    assert_eq!(client.text().await, "41");
    assert_eq!(client.text().await, "41/other,");
    assert_eq!(client.closed().await, None);
    server.closes("server_disconnect", 1).await;
    drop(client);
    server.assert_empty().await;
}

#[tokio::test]
async fn a_polling_client_hears_that_it_was_disconnected() {
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let server = two_namespaces(namespace).await;
    let mut client = Polling::connect(server.address).await;
    sockets.next().await.disconnect(true);
    assert_eq!(client.packet().await, "41");
    client.assert_closed().await;
    server.assert_empty().await;
}

/// They were sent before the client could know.
#[tokio::test]
async fn packets_after_a_disconnect_by_the_server_are_ignored() {
    let namespace = main_namespace().on("leave", async |socket: Socket| socket.disconnect(false));
    let (_server, mut client) = in_both(namespace).await;
    let mut sent = Vec::new();
    for packet in [r#"42["leave"]"#, r#"420["echo","late"]"#, "430[]", "41"] {
        sent.extend(websocket::frame(true, 1, packet.as_bytes()));
    }
    client.stream.write_all(&sent).await.unwrap();
    assert_eq!(client.text().await, "41");
    for packet in [r#"421["echo","later"]"#, "431[]", "41"] {
        client.send(packet).await;
    }
    assert_served_in_other(&mut client).await;
}

/// Every way in which a socket can end, and what its handler is told.
#[tokio::test]
async fn a_disconnect_is_told_once_with_its_reason_and_the_rooms() {
    use CloseReason as Close;
    use DisconnectReason as Reason;
    let (namespace, mut sockets, mut ends) = recording();
    let namespace = namespace.on("panic", async |_: Socket| fail());
    let server = TestServer::of(namespace).await;
    let ways: [(&str, Reason); 9] = [
        ("close frame", Reason::Connection(Close::TransportClose)),
        ("end of stream", Reason::Connection(Close::TransportClose)),
        ("close packet", Reason::Connection(Close::TransportClose)),
        ("reset", Reason::Connection(Close::TransportError)),
        ("41", Reason::ClientDisconnect),
        ("disconnect", Reason::ServerDisconnect),
        ("disconnect and close", Reason::ServerDisconnect),
        ("panic", Reason::HandlerPanic),
        (
            "garbage",
            Reason::Connection(Close::ParseError {
                kind: "unexpected_packet",
                code: None,
            }),
        ),
    ];
    for (way, reason) in ways {
        let mut client = WebSocket::connect(server.address).await;
        let socket = join_next(&mut sockets).await;
        let mut kept = None;
        match way {
            "close frame" => client.send_frame(true, 8, &[]).await,
            "end of stream" => client.stream.shutdown().await.unwrap(),
            "close packet" => client.send("1").await,
            "disconnect" => socket.disconnect(false),
            "disconnect and close" => socket.disconnect(true),
            "panic" => client.send(r#"42["panic"]"#).await,
            "garbage" => client.send("2").await,
            "reset" => {}
            packet => client.send(packet).await,
        }
        match way {
            "reset" => client.reset(),
            _ => kept = Some(client),
        }
        assert_end(&mut ends, &socket, reason, way).await;
        drop(kept);
        server.assert_empty().await;
        assert!(socket.rooms().is_empty(), "{way}");
    }
    assert!(ends.try_recv().is_err(), "each was told once");
}

#[tokio::test]
async fn a_disconnect_of_a_polling_client_is_told_once() {
    use CloseReason as Close;
    let (namespace, mut sockets, mut ends) = recording();
    let server = TestServer::of(namespace).await;

    let (client, socket) = polling_in_room(&server, &mut sockets).await;
    client.say("1").await;
    let reason = DisconnectReason::Connection(Close::TransportClose);
    assert_end(&mut ends, &socket, reason, "close packet").await;
    assert_eq!(client.get().await.body, "6");
    server.assert_empty().await;

    // A poll that the client gives up is how a closed page looks.
    let (client, socket) = polling_in_room(&server, &mut sockets).await;
    let poll = format!("GET {} HTTP/1.1\r\nHost: test\r\n\r\n", client.target());
    drop(http::send(server.address, poll).await);
    let reason = DisconnectReason::Connection(Close::TransportError);
    assert_end(&mut ends, &socket, reason, "poll given up").await;
    server.assert_empty().await;

    let (client, socket) = polling_in_room(&server, &mut sockets).await;
    let (first, second) = tokio::join!(client.get(), client.get());
    let mut answers = [(first.status, first.body), (second.status, second.body)];
    answers.sort_unstable();
    assert_eq!(answers, [(200, "1".into()), (400, String::new())]);
    let reason = DisconnectReason::Connection(Close::OverlappingRequests);
    assert_end(&mut ends, &socket, reason, "two polls").await;
    server.assert_empty().await;
    assert!(ends.try_recv().is_err(), "each was told once");
}

#[tokio::test]
async fn a_disconnect_by_ping_timeout_is_told_once() {
    let (namespace, mut sockets, mut ends) = recording();
    let builder = Server::builder()
        .namespace(namespace)
        .ping_interval(Duration::from_millis(500))
        .ping_timeout(Duration::from_millis(500));
    let server = TestServer::start(builder).await;
    let client = WebSocket::connect(server.address).await;
    let socket = join_next(&mut sockets).await;
    let reason = DisconnectReason::Connection(CloseReason::PingTimeout);
    assert_end(&mut ends, &socket, reason, "ping timeout").await;
    drop(client);
    server.assert_empty().await;
    assert!(ends.try_recv().is_err(), "it was told once");
}

#[tokio::test]
async fn a_disconnect_by_shutdown_is_told_once() {
    let (namespace, mut sockets, mut ends) = recording();
    let server = TestServer::of(namespace).await;
    let mut client = WebSocket::connect(server.address).await;
    let socket = join_next(&mut sockets).await;
    let closed = server.close();
    assert_eq!(client.closed().await, None);
    let reason = DisconnectReason::Connection(CloseReason::ServerShutdown);
    assert_end(&mut ends, &socket, reason, "shutdown").await;
    drop(client);
    within("the server is closed", closed).await.unwrap();
    server.assert_empty().await;
    assert!(ends.try_recv().is_err(), "it was told once");
}

#[tokio::test]
async fn what_is_counted_by_namespace_goes_with_it() {
    let orgs = Namespace::matching("/org-{id}").on("join", async |socket: Socket, room: String| {
        socket.join(room)
    });
    let server = two_namespaces(orgs).await;
    let series = |name: &str| -> u64 {
        let metrics = server.io.metrics();
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.count() as u64
    };
    let (sockets, rooms) = (series("roomcast_sockets{"), series("roomcast_rooms{"));
    let rooms_in =
        |namespace: &str| server.metric(&format!("roomcast_rooms{{namespace=\"{namespace}\"}}"));
    let mut client = WebSocket::open(server.address).await;
    // One after the other, more than may be counted by name at a time.
    for n in 0..100 {
        let namespace = format!("/org-{n}");
        client.join(&namespace).await;
        for room in ["a", "b"] {
            client
                .send(&format!(r#"42{namespace},1["join","{room}"]"#))
                .await;
            assert_eq!(client.text().await, format!("43{namespace},1[]"));
        }
        assert_eq!(
            (sockets_in(&server, &namespace), rooms_in(&namespace)),
            (1, 2)
        );
        client.send(&format!("41{namespace},")).await;
        eventually("it is gone", || series("roomcast_rooms{") == rooms).await;
    }
    assert_eq!(series("roomcast_sockets{"), sockets);

    // At the same time, those beyond the limit have one label together.
    let mut second = WebSocket::open(server.address).await;
    for n in 0..50 {
        client.join(&format!("/org-{n}")).await;
        second.join(&format!("/org-{}", n + 50)).await;
    }
    assert_eq!(
        (series("roomcast_sockets{"), series("roomcast_rooms{")),
        (65, 65)
    );
    assert_eq!(sockets_in(&server, "other"), 100 + sockets - 64);
    drop((client, second));
    eventually("all are gone", || series("roomcast_rooms{") == rooms).await;
    assert_eq!(series("roomcast_sockets{"), sockets);
    server.assert_empty().await;
}

#[tokio::test]
async fn a_dynamic_namespace_goes_with_its_last_client() {
    let gate = Gate::new();
    let waits = gate.clone();
    let rooms = Namespace::matching("/org-{id}")
        .on("which", async |socket: Socket| {
            socket.param("id").map(str::to_owned)
        })
        .authorize(move |handshake: Handshake| {
            let gate = waits.clone();
            async move {
                match handshake.auth_json() {
                    Some(r#"{"wait":true}"#) => gate.pass().await,
                    Some(r#"{"refuse":true}"#) => return Err(Refused::new("no")),
                    _ => {}
                }
                Ok(())
            }
        });
    let server = two_namespaces(rooms).await;
    let namespaces = || server.metric("roomcast_namespaces");
    let fixed = namespaces();
    let mut first = WebSocket::open(server.address).await;
    let mut second = WebSocket::open(server.address).await;
    first.join("/org-7").await;
    second.join("/org-7").await;
    second.join("/org-8").await;
    assert_eq!(namespaces(), fixed + 2);
    first.send(r#"42/org-7,1["which"]"#).await;
    assert_eq!(first.text().await, r#"43/org-7,1["7"]"#);

    first.send("41/org-7,").await;
    first.join("/other").await;
    assert_eq!(namespaces(), fixed + 2, "one is still there");
    drop(second);
    eventually("both go", || namespaces() == fixed).await;
    assert!(server.io.of("/org-7").emit("x", ()).await.is_err());

    // One that is refused, or leaves before it was let in, leaves nothing behind either.
    first.send(r#"40/org-9,{"refuse":true}"#).await;
    assert_eq!(first.text().await, r#"44/org-9,{"message":"no"}"#);
    assert_eq!(namespaces(), fixed);
    let mut third = WebSocket::open(server.address).await;
    third.send(r#"40/org-9,{"wait":true}"#).await;
    eventually("it is being let in", || namespaces() == fixed + 1).await;
    drop(third);
    server.closes("transport_close", 2).await;
    gate.open();
    eventually("it goes", || namespaces() == fixed).await;
    drop(first);
    server.assert_empty().await;
}

#[tokio::test]
async fn a_broadcast_collects_answers_and_says_who_is_missing() {
    let (server, mut sockets) = TestServer::with_sockets(main_namespace()).await;
    let mut clients = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..4 {
        clients.push(WebSocket::connect(server.address).await);
        ids.push(sockets.next().await.id().clone());
    }
    let asked = server.io.of("/").except(&ids[3]);
    let asked = asked.timeout(Duration::from_secs(2));
    let vote = tokio::spawn(asked.emit_with_ack::<u32>("vote", ()));
    for client in &mut clients[..3] {
        assert_eq!(client.text().await, r#"420["vote"]"#);
    }
    clients[0].send("430[7]").await;
    clients[0].send("430[8]").await;
    clients[1].send(r#"430["not a number"]"#).await;
    clients[3].send("430[9]").await;
    let answers = within("the vote ends", vote).await.unwrap().unwrap();
    assert_eq!(answers.answers, [7], "each answers once, if asked");
    let mut missing = answers.missing;
    missing.sort_by_key(|id| *id != ids[1]);
    assert_eq!(missing, ids[1..3]);
    for client in &mut clients {
        client.assert_served().await;
    }
}

#[tokio::test]
async fn a_broadcast_does_not_wait_for_who_has_gone() {
    let (server, mut sockets) = TestServer::with_sockets(main_namespace()).await;
    let mut stays = WebSocket::connect(server.address).await;
    sockets.next().await;
    let (mut goes, gone) = sockets.connect(&server).await;
    let asked = server.io.of("/").timeout(10 * DEADLINE);
    let vote = tokio::spawn(asked.emit_with_ack::<u32>("vote", ()));
    assert_eq!(stays.text().await, r#"420["vote"]"#);
    stays.send("430[1]").await;
    assert_eq!(goes.text().await, r#"420["vote"]"#);
    drop(goes);
    let answers = within("the vote ends", vote).await.unwrap().unwrap();
    assert_eq!(
        (answers.answers, answers.missing),
        (vec![1], vec![gone.id().clone()])
    );

    // Nobody is asked: nobody is waited for.
    let asked = server.io.to("empty").timeout(10 * DEADLINE);
    let vote = within("the vote ends", asked.emit_with_ack::<u32>("vote", ())).await;
    assert!(vote.unwrap().answers.is_empty());
}

#[tokio::test]
async fn nobody_answers_for_another() {
    let (server, mut sockets) = TestServer::with_sockets(main_namespace()).await;
    let (mut asked, socket) = sockets.connect(&server).await;
    let mut other = WebSocket::connect(server.address).await;
    let answer = tokio::spawn(async move { socket.emit_with_ack::<String>("who", ()).await });
    assert_eq!(asked.text().await, r#"420["who"]"#);
    other.send(r#"430["the other"]"#).await;
    other.assert_served().await;
    asked.send(r#"430["the one"]"#).await;
    let answer = within("the answer", answer).await.unwrap();
    assert_eq!(answer.unwrap(), "the one");
}

#[tokio::test]
async fn a_question_ends_by_timeout_and_by_disconnect() {
    let (server, mut sockets) = TestServer::with_sockets(main_namespace()).await;
    let (client, socket) = sockets.connect(&server).await;
    let short = socket.timeout(Duration::from_millis(20));
    let outcome = within("the timeout", short.emit_with_ack::<u32>("question", ())).await;
    assert!(matches!(outcome, Err(AckError::TimedOut(_))), "{outcome:?}");

    let mut question = Box::pin(socket.emit_with_ack::<u32>("question", ()));
    assert!((&mut question).now_or_never().is_none());
    drop(client);
    let outcome = within("the disconnect", question).await;
    assert!(
        matches!(outcome, Err(AckError::Disconnected)),
        "{outcome:?}"
    );
}

/// With one question allowed at a time, each that is not settled would be the last.
#[tokio::test]
async fn a_question_that_is_dropped_is_not_owed() {
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let limits = Limits {
        pending_acks: 1,
        ..Limits::default()
    };
    let builder = Server::builder().namespace(namespace).limits(limits);
    let server = TestServer::start(builder).await;
    let (mut client, socket) = sockets.connect(&server).await;

    let mut unanswered = Box::pin(socket.emit_with_ack::<u32>("question", ()));
    assert!((&mut unanswered).now_or_never().is_none());
    drop(unanswered);
    // The answer has come, but nobody looked before it was dropped.
    let mut answered = Box::pin(socket.emit_with_ack::<u32>("question", ()));
    assert!((&mut answered).now_or_never().is_none());
    client.send("431[1]").await;
    client.assert_served().await;
    drop(answered);
    let mut broadcast = Box::pin(server.io.of("/").emit_with_ack::<u32>("vote", ()));
    assert!((&mut broadcast).now_or_never().is_none());
    drop(broadcast);
    let short = socket.timeout(Duration::from_millis(20));
    assert!(short.emit_with_ack::<u32>("question", ()).await.is_err());
    let short = server.io.of("/").timeout(Duration::from_millis(20));
    let vote = short.emit_with_ack::<u32>("vote", ()).await.unwrap();
    assert_eq!(vote.missing, [socket.id().clone()]);

    let last = tokio::spawn(async move { socket.emit_with_ack::<u32>("last", ()).await });
    while client.text().await != r#"425["last"]"# {}
    client.send("435[5]").await;
    let answer = within("the answer", last).await.unwrap();
    assert_eq!(answer.unwrap(), 5);
    assert_eq!(server.reached("pending_acks"), 0);
}

#[tokio::test]
async fn a_client_of_revision_3_is_served_by_websocket() {
    let (server, mut sockets) = revision_3().await;
    let target = "/socket.io/?EIO=3&transport=websocket";
    let mut client = WebSocket::upgrade(server.address, target).await;
    let open = client.text().await;
    assert!(open.starts_with(r#"0{"sid":""#), "{open}");
    assert_eq!(client.text().await, "40");
    client.send(r#"420["echo","x"]"#).await;
    assert_eq!(client.text().await, r#"430["x"]"#);
    client.send("2hello").await;
    assert_eq!(client.text().await, "3hello");
    client.send("40/other").await;
    assert_eq!(client.text().await, "40/other,");

    let socket = sockets.next().await;
    assert!(open.contains(socket.id().as_str()), "the ids are the same");
    socket
        .emit("bytes", Bytes::from_static(b"\x01\x02"))
        .unwrap();
    let header = r#"451-["bytes",{"_placeholder":true,"num":0}]"#;
    assert_eq!(client.text().await, header);
    assert_eq!(client.next().await, Message::Binary(vec![4, 1, 2]));
    client.send("41").await;
    client.rest().await;
    drop(client);
    server.assert_empty().await;
}

/// JavaScript's `slice` may cut an emoji in two. The half is passed on in JSON, and U+FFFD to Rust.
#[tokio::test]
async fn a_typed_handler_gets_u_fffd_for_half_of_an_emoji() {
    let namespace = echoing("/").on("raw", async |_: Socket, args: roomcast::Args| args);
    let server = TestServer::of(namespace).await;
    let mut client = WebSocket::connect(server.address).await;
    assert_eq!(client.ask(r#"["echo","a\ud83d"]"#).await, "[\"a\u{fffd}\"]");
    assert_eq!(client.ask(r#"["raw","a\ud83d"]"#).await, r#"["a\ud83d"]"#);
    assert_eq!(client.ask(r#"["raw",1.0,-0.0]"#).await, "[1,0]");
}

/// Clients that cannot receive binary frames say so with `b64=1`, as official clients do with the
/// option `forceBase64`.
#[tokio::test]
async fn a_websocket_with_b64_carries_binary_as_base64_in_both_revisions() {
    for (revision, sent, expected) in [(4, "bAQID", "bAQID"), (3, "b4AQID", "b4AQID")] {
        let namespace = Namespace::new("/").on("echo", async |_: Socket, bytes: Bytes| bytes);
        let builder = Server::builder().namespace(namespace).allow_eio3(true);
        let server = TestServer::start(builder).await;
        let target = format!("/socket.io/?EIO={revision}&transport=websocket&b64=1");
        let mut client = WebSocket::open_at(server.address, &target).await;
        if revision == 4 {
            client.send("40").await;
        }
        assert!(client.text().await.starts_with("40"));
        let header = r#"0["echo",{"_placeholder":true,"num":0}]"#;
        client.send(&format!("451-{header}")).await;
        client.send(sent).await;
        assert_eq!(
            client.text().await,
            r#"461-0[{"_placeholder":true,"num":0}]"#
        );
        assert_eq!(client.text().await, expected);
    }
}

/// As in Node, each transport has its own `b64`.
#[tokio::test]
async fn a_session_takes_base64_from_its_upgrade_on_if_the_websocket_asks_for_it() {
    for (of_polling, of_websocket) in [("", "&b64=1"), ("&b64=1", "")] {
        let (server, mut sockets) = TestServer::with_sockets(Namespace::new("/")).await;
        let target = format!("/socket.io/?EIO=4&transport=polling{of_polling}");
        let mut polling = Polling::open_at(server.address, &target).await;
        polling.say("40").await;
        assert!(polling.packet().await.starts_with("40"));
        let socket = sockets.next().await;
        let target = polling.target().replace("polling", "websocket") + of_websocket;
        let mut client = WebSocket::upgrade(server.address, &target).await;
        client.send("2probe").await;
        assert_eq!(client.text().await, "3probe");
        assert_eq!(polling.get().await.body, "6");
        client.send("5").await;
        socket.emit("e", Bytes::from_static(&[1, 2, 3])).unwrap();
        let header = r#"451-["e",{"_placeholder":true,"num":0}]"#;
        assert_eq!(client.text().await, header);
        let expected = match of_websocket {
            "" => Message::Binary(vec![1, 2, 3]),
            _ => Message::Text("bAQID".to_owned()),
        };
        assert_eq!(client.next().await, expected);
    }
}

#[tokio::test]
async fn a_client_of_revision_3_is_served_by_polling() {
    let (server, _) = revision_3().await;
    let target = "/socket.io/?EIO=3&transport=polling";
    let open = http::get(server.address, target).await.body;
    let (_, rest) = open.split_once(r#"{"sid":""#).unwrap();
    let target = format!("{target}&sid={}", rest.split('"').next().unwrap());
    if !open.ends_with("2:40") {
        let connected = http::get(server.address, &target).await;
        assert_eq!(connected.body, "2:40");
    }
    // Lengths are counted in UTF-16 code units.
    let packets = r#"17:420["echo","ü😀"]1:2"#;
    let posted = http::request(server.address, "POST", &target, packets).await;
    assert_eq!((posted.status, &*posted.body), (200, "ok"));
    let mut answer = String::new();
    while answer.len() < 19 {
        let response = http::get(server.address, &target).await;
        assert_eq!(response.status, 200);
        answer += &response.body;
    }
    assert_eq!(answer, r#"10:430["ü😀"]1:3"#);
}

#[tokio::test]
async fn data_may_come_right_behind_the_handshake() {
    let server = two_namespaces(main_namespace()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut sent = websocket::request(websocket::NEW).into_bytes();
    for packet in ["40", r#"420["echo","early"]"#] {
        sent.extend(websocket::frame(true, 1, packet.as_bytes()));
    }
    // The last frame is cut.
    let rest = sent.split_off(sent.len() - 3);
    stream.write_all(&sent).await.unwrap();
    let mut client = WebSocket::upgraded(stream).await;
    client.begin().await;
    assert!(client.text().await.starts_with("40{"));
    client.stream.write_all(&rest).await.unwrap();
    assert_eq!(client.text().await, r#"430["early"]"#);
}

/// On a pipe that holds one byte, nothing ever arrives in one piece.
#[tokio::test]
async fn requests_and_frames_may_come_byte_by_byte() {
    let io = Server::builder().namespace(main_namespace());
    let io = io.build().await.unwrap();
    let mut client = WebSocket::connect_over(serve_pipe(&io, 1)).await;
    client.assert_served().await;
    let long = "x".repeat(300);
    let answer = client.ask(&format!(r#"["echo","{long}"]"#)).await;
    assert_eq!(answer, format!(r#"["{long}"]"#));
    let delivery = io.emit("news", "ü").await.unwrap();
    assert_eq!(delivery.local_sockets, 1);
    assert_eq!(client.text().await, r#"42["news","ü"]"#);
    client.send_frame(true, 9, b"ping").await;
    assert_eq!(client.next().await, Message::Pong(b"ping".to_vec()));
    client.send_frame(true, 8, &[]).await;
    assert_eq!(client.closed().await, None);
    drop(client);
    eventually("it has gone", || io.connections() == 0).await;
}

#[tokio::test]
async fn a_stream_that_is_not_tcp_carries_more_than_it_holds() {
    let (namespace, mut sockets) = Sockets::of(main_namespace());
    let io = Server::builder().namespace(namespace);
    let io = io.build().await.unwrap();
    let mut client = WebSocket::connect_over(serve_pipe(&io, 4096)).await;
    let socket = sockets.next().await;
    assert_carries_more_than_it_holds(&io, &socket, &mut client).await;
}

#[tokio::test]
async fn a_tcp_stream_carries_more_than_it_holds() {
    let (server, mut sockets) = TestServer::with_sockets(main_namespace()).await;
    let (mut client, socket) = sockets.connect(&server).await;
    assert_carries_more_than_it_holds(&server.io, &socket, &mut client).await;
}

#[tokio::test]
async fn the_router_works_within_an_application() {
    let io = Server::builder().namespace(main_namespace());
    let io = io.build().await.unwrap();
    let tag = async |mut response: AxumResponse| {
        response
            .headers_mut()
            .insert("x-layer", "passed".parse().unwrap());
        response
    };
    let app = Router::new()
        .route("/", routing::get(async || "hello"))
        .merge(io.router())
        .layer(middleware::map_response(tag));
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, app).into_future());
    let home = http::get(address, "/").await;
    assert_eq!(
        (&*home.body, home.header("x-layer")),
        ("hello", Some("passed"))
    );
    assert_eq!(http::get(address, "/other").await.status, 404);
    assert_serves_all_transports(&io, address).await;
    serving.abort();
}

#[tokio::test]
async fn the_router_works_over_a_listener_of_the_application() {
    let io = Server::builder().namespace(main_namespace());
    let io = io.build().await.unwrap();
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let serve = axum::serve(Wrapped(listener), io.router());
    let serving = tokio::spawn(serve.into_future());
    assert_serves_all_transports(&io, address).await;
    serving.abort();
}

#[tokio::test]
async fn a_graceful_shutdown_closes_transports_and_no_namespaces() {
    let io = Server::builder().namespace(main_namespace());
    let io = io.build().await.unwrap();
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let signal = Gate::new();
    let waits = signal.clone();
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let app = io
        .router()
        .layer(middleware::map_request(move |request: Request| {
            arrived.send(()).unwrap();
            future::ready(request)
        }));
    let serve = io.serve(listener, app);
    let serve = serve.with_graceful_shutdown(async move { waits.pass().await });
    let serving = tokio::spawn(serve.into_future());
    let mut client = WebSocket::connect(address).await;
    let polling = Polling::connect(address).await;
    while arrivals.try_recv().is_ok() {}
    let poll = tokio::spawn(async move { polling.get().await });
    within("the poll arrives", arrivals.recv()).await.unwrap();

    signal.open();
    // A packet `41` would keep official clients from reconnecting.
    assert_eq!(client.next().await, Message::Close(None));
    assert_eq!(poll.await.unwrap().body, "1");
    drop(client);
    within("serving ends", serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(io.connections(), 0);
    let closed = "roomcast_connections_closed_total{reason=\"server_shutdown\"}";
    assert_eq!(metric(&io, closed), 2);
}

#[tokio::test]
async fn a_drain_closes_transports_and_no_namespaces_and_refuses_newcomers() {
    let server = TestServer::of(main_namespace()).await;
    let mut websocket = WebSocket::connect(server.address).await;
    let polling = Polling::connect(server.address).await;
    let grace = Duration::ZERO;
    let over = Duration::from_secs(3600);
    within("the drain", server.io.drain(Drain { grace, over })).await;
    assert_eq!(websocket.next().await, Message::Close(None));
    polling.assert_closed().await;
    server.closes("server_shutdown", 2).await;
    assert_eq!(server.metric("roomcast_drained_connections_total"), 2);
    assert_eq!(server.metric("roomcast_draining_connections"), 0);
    // The listener goes on as long as the server is not closed.
    let refused = http::get(server.address, polling::NEW).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    within("the server closes", server.io.close()).await;
}

#[tokio::test]
async fn a_draining_server_accepts_clients_while_balancers_have_not_noticed() {
    let server = TestServer::of(main_namespace()).await;
    let mut early = WebSocket::connect(server.address).await;
    assert!(server.io.is_ready());
    let io = server.io.clone();
    let drain = Drain {
        grace: Duration::from_secs(3600),
        ..Drain::default()
    };
    let draining = tokio::spawn(async move { io.drain(drain).await });
    eventually("it is not ready", || !server.io.is_ready()).await;
    let mut late = WebSocket::connect(server.address).await;
    assert_eq!(server.metric("roomcast_drained_connections_total"), 0);
    // The rest of the drain is skipped.
    draining.abort();
    within("the server closes", server.io.close()).await;
    assert_eq!(early.next().await, Message::Close(None));
    assert_eq!(late.next().await, Message::Close(None));
    assert_eq!(server.metric("roomcast_drained_connections_total"), 2);
}

#[tokio::test]
async fn a_closing_server_waits_for_handlers_and_refuses_newcomers() {
    let gate = Gate::new();
    let waits = gate.clone();
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let namespace = main_namespace().on("wait", move |_: Socket| {
        let gate = waits.clone();
        begun.send(()).unwrap();
        async move { gate.pass().await }
    });
    let server = two_namespaces(namespace).await;
    let mut client = WebSocket::connect(server.address).await;
    client.send(r#"42["wait"]"#).await;
    within("the handler begins", has_begun.recv())
        .await
        .unwrap();
    let mut closed = Box::pin(server.close());
    assert_eq!(client.closed().await, None);
    drop(client);

    assert!(!server.io.is_ready());
    let refused = http::get(server.address, polling::NEW).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(
        WebSocket::refused(server.address, websocket::NEW).await,
        503
    );
    assert!((&mut closed).now_or_never().is_none());
    gate.open();
    within("the server is closed", closed).await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_is_being_decided_does_not_outlive_the_server() {
    let gate = Gate::new();
    let waits = gate.clone();
    let builder = Server::builder().namespace(main_namespace());
    let server = TestServer::start(builder.allow_request(move || waits.pass())).await;
    let handshake = tokio::spawn(http::get(server.address, polling::NEW));
    eventually("it is being decided", || server.io.connections() == 1).await;
    let closed = server.close();
    eventually("the server closes", || !server.io.is_ready()).await;
    gate.open();
    assert_eq!(handshake.await.unwrap().status, 503);
    within("the server is closed", closed).await.unwrap();
    server.assert_empty().await;
}

/// The next ping counts from the pong, not from the time by which the pong had to come: who
/// answers is pinged many times before one who is mute is given up.
#[tokio::test]
async fn pings_follow_pongs_also_if_the_timeout_is_longer_than_the_interval() {
    let builder = Server::builder()
        .namespace(main_namespace())
        .ping_interval(Duration::from_millis(200))
        .ping_timeout(Duration::from_secs(2));
    let server = TestServer::start(builder).await;
    let mut client = WebSocket::connect(server.address).await;
    let mut mute = WebSocket::connect(server.address).await;
    let mut pings = 0;
    let answers = async {
        while client.next().await == Message::Text(String::from("2")) {
            pings += 1;
            client.send("3").await;
        }
    };
    tokio::select! {
        _ = mute.closed() => {}
        () = answers => panic!("the client is served"),
    }
    assert!(pings > 3, "pinged {pings} times");
}

/// On one thread, with a task that never rests, the lane finds something new to write whenever it
/// has written, and is never done.
#[tokio::test]
async fn pings_are_sent_while_broadcasts_never_pause() {
    let builder = Server::builder().namespace(main_namespace());
    let server = TestServer::start(builder.ping_interval(Duration::from_millis(50))).await;
    let mut client = WebSocket::connect(server.address).await;
    let io = server.io.clone();
    let mut polls = 0_u32;
    let broadcasts = tokio::spawn(future::poll_fn(move |cx| -> Poll<()> {
        // Often enough for the lane, seldom enough for the client to keep up.
        polls += 1;
        if polls.is_multiple_of(16) {
            let sent = io.emit("news", ()).now_or_never();
            assert_eq!(sent.unwrap().unwrap().local_sockets, 1);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
    within("three pings come", async {
        for _ in 0..3 {
            while client.next().await != Message::Text(String::from("2")) {}
            client.send("3").await;
        }
    })
    .await;
    broadcasts.abort();
}

#[tokio::test]
async fn two_servers_share_nothing() {
    let first = TestServer::of(main_namespace()).await;
    let second = TestServer::of(main_namespace()).await;
    let mut client = WebSocket::connect(first.address).await;
    let polling = Polling::connect(first.address).await;
    assert_eq!(second.io.emit("news", 1).await.unwrap().local_sockets, 0);
    assert_eq!(first.io.emit("news", 2).await.unwrap().local_sockets, 2);
    assert_eq!(client.text().await, r#"42["news",2]"#);
    let stranger = http::get(second.address, &polling.target()).await;
    assert_eq!(stranger.status, 400);
    assert_eq!((first.io.connections(), second.io.connections()), (2, 0));
    let broadcasts = "roomcast_deliveries_total";
    assert_eq!(
        (first.metric(broadcasts), second.metric(broadcasts)),
        (2, 0)
    );
    second.io.close().await;
    client.assert_served().await;
}

#[test]
fn a_server_without_handles_and_clients_has_no_tasks() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let tasks = || runtime.metrics().num_alive_tasks();
    let builder = || Server::builder().namespace(main_namespace()).lanes(3);
    runtime.block_on(async {
        let io = builder().build().await.unwrap();
        assert_eq!(tasks(), 3, "one for each lane");
        drop(io);
        eventually("they end", || tasks() == 0).await;

        // Clients keep a server alive, and the last one takes it along.
        let server = TestServer::start(builder()).await;
        let mut client = WebSocket::connect(server.address).await;
        let polling = Polling::connect(server.address).await;
        drop(server);
        client.assert_served().await;
        eventually("nobody polls any more", || tasks() == 3 + 2).await;
        drop((client, polling));
        eventually("only the one who polled is left", || tasks() == 3 + 1).await;
    });
}

/// What handlers do that fail.
fn fail() {
    panic!("as the test wants it");
}

/// Tells of each disconnect: the socket, its rooms, the reason.
type Ends = UnboundedReceiver<(Socket, Vec<String>, DisconnectReason)>;

fn recording() -> (Namespace, Sockets, Ends) {
    let (sender, ends) = mpsc::unbounded_channel();
    let (namespace, sockets) = Sockets::of(main_namespace());
    let namespace = namespace.on_disconnect(move |socket: Socket, reason: DisconnectReason| {
        let rooms = socket.rooms();
        sender.send((socket, rooms, reason)).unwrap();
        async {}
    });
    (namespace, sockets, ends)
}

async fn join_next(sockets: &mut Sockets) -> Socket {
    let socket = sockets.next().await;
    socket.join("room").unwrap();
    socket
}

async fn polling_in_room(server: &TestServer, sockets: &mut Sockets) -> (Polling, Socket) {
    let client = Polling::connect(server.address).await;
    (client, join_next(sockets).await)
}

async fn assert_end(ends: &mut Ends, socket: &Socket, reason: DisconnectReason, way: &str) {
    let (ended, rooms, told) = within(way, ends.recv()).await.unwrap();
    assert_eq!(ended, *socket, "{way}");
    assert_eq!(rooms, [socket.id().as_str(), "room"], "{way}");
    assert_eq!(told, reason, "{way}");
}

async fn two_namespaces(namespace: Namespace) -> TestServer {
    let builder = Server::builder().namespace(namespace);
    TestServer::start(builder.namespace(echoing("/other"))).await
}

/// A client that is connected to the namespace `/other` only, and its server.
async fn in_other(namespace: Namespace) -> (TestServer, WebSocket) {
    let server = two_namespaces(namespace).await;
    let mut client = WebSocket::open(server.address).await;
    client.join("/other").await;
    (server, client)
}

/// The same in the main namespace, too.
async fn in_both(namespace: Namespace) -> (TestServer, WebSocket) {
    let server = two_namespaces(namespace).await;
    let mut client = WebSocket::connect(server.address).await;
    client.join("/other").await;
    (server, client)
}

async fn revision_3() -> (TestServer, Sockets) {
    let (namespace, sockets) = Sockets::of(main_namespace());
    let builder = Server::builder().namespace(namespace).allow_eio3(true);
    let server = TestServer::start(builder.namespace(echoing("/other"))).await;
    (server, sockets)
}

async fn assert_served_in_other(client: &mut WebSocket) {
    client.send(r#"42/other,9["echo","still here"]"#).await;
    assert_eq!(client.text().await, r#"43/other,9["still here"]"#);
}

fn sockets_in(server: &TestServer, namespace: &str) -> u64 {
    server.metric(&format!("roomcast_sockets{{namespace=\"{namespace}\"}}"))
}

/// Serves one client over a pipe in memory.
fn serve_pipe(io: &Server, bytes: usize) -> DuplexStream {
    let (client, server) = tokio::io::duplex(bytes);
    let service = TowerToHyperService::new(io.router());
    let connection = http1::Builder::new().serve_connection(TokioIo::new(server), service);
    tokio::spawn(connection.with_upgrades());
    client
}

/// The client does not read until everything was sent.
async fn assert_carries_more_than_it_holds<S: AsyncRead + AsyncWrite + Unpin>(
    io: &Server,
    socket: &Socket,
    client: &mut WebSocket<S>,
) {
    socket.emit("large", "x".repeat(5_000_000)).unwrap();
    let item = "y".repeat(100_000);
    for n in 0..100 {
        let delivery = io.emit("news", (n, &item)).await.unwrap();
        assert_eq!(delivery.local_sockets, 1);
    }
    assert_eq!(
        client.text().await.len(),
        r#"42["large",""]"#.len() + 5_000_000
    );
    for n in 0..100 {
        let text = client.text().await;
        assert!(text.starts_with(&format!(r#"42["news",{n},"yyy"#)), "{n}");
    }
    client.assert_served().await;
    let large = "z".repeat(900_000);
    let answer = client.ask(&format!(r#"["echo","{large}"]"#)).await;
    assert_eq!(answer, format!(r#"["{large}"]"#));
}

async fn assert_serves_all_transports(io: &Server, address: SocketAddr) {
    let mut socket = WebSocket::connect(address).await;
    socket.assert_served().await;
    let mut polling = Polling::connect(address).await;
    polling.say(r#"420["echo","x"]"#).await;
    assert_eq!(polling.packet().await, r#"430["x"]"#);
    let (mut upgraded, _) = Polling::connect(address).await.upgrade().await;
    upgraded.assert_served().await;
    assert_eq!(io.emit("news", 1).await.unwrap().local_sockets, 3);
    assert_eq!(socket.text().await, r#"42["news",1]"#);
    assert_eq!(polling.packet().await, r#"42["news",1]"#);
    assert_eq!(upgraded.text().await, r#"42["news",1]"#);
}

/// A listener whose streams are not those that the server knows.
struct Wrapped(TcpListener);

impl axum::serve::Listener for Wrapped {
    type Io = Join<OwnedReadHalf, OwnedWriteHalf>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let (stream, address) = self.0.accept().await.unwrap();
        let (read, write) = stream.into_split();
        (tokio::io::join(read, write), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
