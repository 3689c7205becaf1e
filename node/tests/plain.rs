//! Plain connections: clients that speak no Socket.IO are sockets of a namespace like any other.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{body::Body, response::Response, routing::get};
use futures_util::StreamExt as _;
use http::{StatusCode, request::Parts};
use roomcast::{
    AckError, Args, Builder, CloseReason, Drain, EmitError, Gap, Handshake, HistoryEntry,
    HistoryLimits, JoinError, JoinFromError, Limit, Limits, Namespace, Parser, Position, Rate,
    RatePolicy, Refused, Server, Socket, Value,
    bus::{Broadcast, Message, Target},
    plain::{Event, Form, Heartbeat, Open, Stream},
};
use support::{
    TestServer, WebSocket, bus::FakeBus, eventually, http::read_head, server::main_namespace,
    within,
};
use tokio::{io::AsyncReadExt as _, sync::mpsc};

const AT_ONCE: Drain = Drain {
    grace: Duration::ZERO,
    over: Duration::ZERO,
};

/// Lines of text, and how often it was asked for one.
#[derive(Default)]
struct Lines {
    written: AtomicUsize,
    heartbeat: Heartbeat,
}

impl Form for Lines {
    fn event(&self, event: &Event<'_>, out: &mut Vec<u8>) {
        self.written.fetch_add(1, Ordering::Relaxed);
        let room = event.room.unwrap_or("-");
        if event.name != "hidden" {
            out.extend_from_slice(format!("{room} {} {}\n", event.name, event.args).as_bytes());
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        self.heartbeat
    }
}

fn lines() -> Arc<Lines> {
    Arc::default()
}

fn parts() -> Parts {
    let request = http::Request::builder()
        .uri("/events?token=a")
        .header("x-key", "k");
    request.body(()).unwrap().into_parts().0
}

fn open(form: &Arc<Lines>) -> Open {
    let form: Arc<dyn Form> = Arc::<Lines>::clone(form);
    Open {
        namespace: "/".to_owned(),
        auth: None,
        form,
    }
}

async fn stream(io: &Server, form: &Arc<Lines>) -> Stream {
    io.open_stream(&parts(), open(form)).await.unwrap()
}

async fn next(stream: &mut Stream) -> String {
    let chunk = within("a chunk of a stream", stream.next()).await;
    String::from_utf8(chunk.unwrap().bytes.into()).unwrap()
}

/// What is left of a stream that ends.
async fn rest(stream: &mut Stream) -> Vec<String> {
    let mut rest = Vec::new();
    while let Some(chunk) = within("the end of a stream", stream.next()).await {
        rest.push(String::from_utf8(chunk.bytes.into()).unwrap());
    }
    rest
}

fn builder() -> Builder {
    Server::builder().namespace(main_namespace())
}

/// A server whose route `/events` is a stream of the room `news`.
async fn serve_events(builder: Builder, form: &Arc<Lines>) -> TestServer {
    let form = Arc::clone(form);
    TestServer::start_app(builder, move |io| {
        let server = io.clone();
        let events = move |request: http::Request<Body>| async move {
            let parts = request.into_parts().0;
            let stream = server.open_stream(&parts, open(&form)).await.unwrap();
            stream.socket().join("news").unwrap();
            let chunks = stream.map(|chunk| Ok::<_, std::io::Error>(chunk.bytes));
            Response::new(Body::from_stream(chunks))
        };
        io.router().route("/events", get(events))
    })
    .await
}

#[tokio::test]
async fn a_stream_receives_what_its_rooms_receive_in_order_beside_clients_of_socket_io() {
    let server = TestServer::start(builder()).await;
    let form = lines();
    let mut stream = stream(&server.io, &form).await;
    let mut client = WebSocket::connect(server.address).await;
    stream.socket().join("news").unwrap();
    server.io.to("news").emit("one", (1, "a")).await.unwrap();
    server.io.emit("two", ()).await.unwrap();
    server.io.to("other").emit("three", ()).await.unwrap();
    let both = server.io.to(["news", "other"]);
    both.emit("four", ()).await.unwrap();
    stream.socket().emit("five", [true]).unwrap();
    stream.socket().send_text("six").unwrap();
    let mut received = Vec::new();
    for _ in 0..5 {
        received.push(next(&mut stream).await);
    }
    let expected = [
        "news one [1,\"a\"]\n",
        "- two []\n",
        "- four []\n",
        "- five [true]\n",
        "six",
    ];
    assert_eq!(received, expected);
    assert_eq!(client.text().await, r#"42["two"]"#);
    client.assert_served().await;
}

#[tokio::test]
async fn binary_values_are_base64_in_their_place_with_either_parser() {
    for parser in [Parser::Json, Parser::Msgpack] {
        let io = builder().parser(parser).build().await.unwrap();
        let mut stream = stream(&io, &lines()).await;
        let value = Value::Map(vec![("b".into(), Value::Binary(vec![0, 1, 2]))]);
        io.emit("binary", (value, "text")).await.unwrap();
        let expected = "- binary [{\"b\":{\"$binary\":\"AAEC\"}},\"text\"]\n";
        assert_eq!(next(&mut stream).await, expected);
    }
}

#[tokio::test]
async fn a_form_writes_an_event_once_for_all_its_streams_and_may_leave_it_out() {
    let io = builder().build().await.unwrap();
    let (form, other) = (lines(), lines());
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(stream(&io, &form).await);
    }
    streams.push(stream(&io, &other).await);
    io.emit("hidden", ()).await.unwrap();
    io.emit("shown", ()).await.unwrap();
    for stream in &mut streams {
        assert_eq!(next(stream).await, "- shown []\n");
    }
    assert_eq!(form.written.load(Ordering::Relaxed), 2);
    assert_eq!(other.written.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_stream_is_a_socket_with_authorizers_handlers_rooms_data_and_a_listing() {
    let (left, mut gone) = mpsc::unbounded_channel();
    let namespace = Namespace::new("/")
        .authorize(async |handshake: Handshake| {
            assert_eq!(handshake.query("token").as_deref(), Some("a"));
            assert_eq!(handshake.header("x-key").as_deref(), Some("k"));
            assert_eq!(handshake.auth_json(), Some(r#"{"user":"7"}"#));
            Ok::<_, Refused>(())
        })
        .on_connect(async |socket: Socket| socket.join("user:7"))
        .on_disconnect(move |socket: Socket| {
            left.send(socket.rooms().len()).unwrap();
            std::future::ready(())
        });
    let io = build(namespace).await;
    let form = lines();
    let auth = Some(r#"{"user":"7"}"#.to_owned());
    let open = Open {
        auth,
        ..open(&form)
    };
    let mut stream = io.open_stream(&parts(), open).await.unwrap();
    assert_eq!(stream.socket().transport(), "stream");
    // The connect handler has started, and this one does not wait.
    assert!(stream.socket().rooms().contains(&"user:7".to_owned()));
    let fetched = io.to("user:7").fetch_sockets().await.unwrap();
    assert_eq!(fetched.sockets[0].id(), stream.socket().id());
    io.to("user:7").emit("hello", ()).await.unwrap();
    assert_eq!(next(&mut stream).await, "user:7 hello []\n");
    let series = "roomcast_connections{transport=\"stream\"}";
    assert_eq!(support::server::metric(&io, series), 1);
    io.to("user:7").disconnect_sockets(false).await.unwrap();
    assert!(rest(&mut stream).await.is_empty());
    assert_eq!(stream.close_reason(), Some(CloseReason::ServerDisconnect));
    assert_eq!(within("the disconnect handler", gone.recv()).await, Some(2));
    eventually("the connection is gone", || io.connections() == 0).await;
    assert_eq!(support::server::metric(&io, series), 0);
}

#[tokio::test]
async fn what_was_emitted_before_a_disconnect_still_arrives() {
    let io = builder().build().await.unwrap();
    let mut stream = stream(&io, &lines()).await;
    stream.socket().emit("last", ()).unwrap();
    stream.socket().disconnect(true);
    assert_eq!(rest(&mut stream).await, ["- last []\n"]);
}

#[tokio::test]
async fn refusals_come_in_the_words_of_http_and_open_nothing() {
    let namespace = Namespace::new("/").authorize(async |handshake: Handshake| {
        match handshake.auth_json() {
            Some(r#"{"panic":1}"#) => panic!("as the test wants"),
            Some(r#"{"fail":1}"#) => Err("the database is away".into()),
            Some(_) => Ok(()),
            None => Err(Refused::new("who are you?")
                .data(&[1])
                .reason("nobody")
                .into()),
        }
        .map_err(|error: roomcast::HandlerError| error)
    });
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let io = Server::builder()
        .namespace(namespace)
        .limits(limits)
        .build()
        .await
        .unwrap();
    let form = lines();
    let refused = async |namespace: &str, auth: Option<&str>| {
        let open = Open {
            namespace: namespace.to_owned(),
            auth: auth.map(str::to_owned),
            ..open(&form)
        };
        let refused = io.open_stream(&parts(), open).await.unwrap_err();
        eventually("its place is free", || io.connections() <= 1).await;
        refused
    };
    let error = refused("/", None).await;
    assert_eq!(error.status, StatusCode::FORBIDDEN);
    assert_eq!(error.reason, "nobody");
    assert_eq!(error.message, "who are you?");
    assert_eq!(error.data.as_deref(), Some("[1]"));
    let error = refused("/nowhere", None).await;
    assert_eq!(error.status, StatusCode::NOT_FOUND);
    assert_eq!(error.reason, "unknown");
    for auth in [r#"{"panic":1}"#, r#"{"fail":1}"#] {
        let error = refused("/", Some(auth)).await;
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(error.message, "internal error");
    }
    assert_eq!(io.connections(), 0);
    let auth = Some("{}".to_owned());
    let authorized = Open {
        auth,
        ..open(&form)
    };
    let _open = io.open_stream(&parts(), authorized).await.unwrap();
    let error = refused("/", Some("{}")).await;
    assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(error.reason, Limit::Connections.label());
    assert!(error.retry_after.is_some());
}

#[tokio::test]
async fn a_dropped_stream_disconnects_its_socket_at_once() {
    let server = TestServer::start(builder()).await;
    let form = lines();
    let stream = stream(&server.io, &form).await;
    let socket = stream.socket().clone();
    socket.join("news").unwrap();
    drop(stream);
    server.closes("transport_close", 1).await;
    server.assert_empty().await;
    assert!(matches!(
        socket.emit("late", ()),
        Err(EmitError::Disconnected)
    ));
    assert!(matches!(socket.join("late"), Err(JoinError::Disconnected)));
}

#[tokio::test]
async fn the_body_of_a_response_carries_events_until_its_client_goes() {
    let form = lines();
    let server = serve_events(builder(), &form).await;
    let io = &server.io;
    let mut client = support::http::send(
        server.address,
        b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n",
    )
    .await;
    let mut received = Vec::new();
    let head = read_head(&mut client, &mut received).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    io.to("news").emit("one", ()).await.unwrap();
    within("an event", async {
        while !String::from_utf8_lossy(&received).contains("news one []\n") {
            client.read_buf(&mut received).await.unwrap();
        }
    })
    .await;
    drop(client);
    eventually("the connection is gone", || io.connections() == 0).await;
    assert!(io.of("/").socket_ids().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_take_its_events_is_cut_off() {
    let limits = Limits {
        outbox_bytes: 10_000,
        ..Limits::default()
    };
    let server = TestServer::start(builder().limits(limits)).await;
    let mut stalled = stream(&server.io, &lines()).await;
    let mut quick = stream(&server.io, &lines()).await;
    let text = "x".repeat(1_000);
    for _ in 0..20 {
        server.io.emit("much", &text).await.unwrap();
        next(&mut quick).await;
    }
    let reason = CloseReason::LimitReached(Limit::Outbox);
    assert_eq!(stalled.close_reason(), Some(reason));
    assert!(rest(&mut stalled).await.is_empty());
    server.closes("slow_consumer", 1).await;
    assert_eq!(server.metric("roomcast_outbox_bytes"), 0);
}

#[tokio::test]
async fn a_heartbeat_comes_between_events_and_needs_no_answer() {
    let quick = builder()
        .ping_interval(Duration::from_millis(20))
        .ping_timeout(Duration::from_millis(20));
    let io = quick.build().await.unwrap();
    let form = Arc::new(Lines {
        heartbeat: Heartbeat::Bytes(b":\n\n"),
        ..Lines::default()
    });
    let mut stream = stream(&io, &form).await;
    for _ in 0..5 {
        assert_eq!(next(&mut stream).await, ":\n\n");
    }
    io.emit("one", ()).await.unwrap();
    within("the event", async {
        while next(&mut stream).await != "- one []\n" {}
    })
    .await;
}

#[tokio::test]
async fn a_drain_ends_streams_after_what_they_were_sent_and_opens_no_more() {
    let server = TestServer::start(builder()).await;
    let form = lines();
    let mut stream = stream(&server.io, &form).await;
    stream.socket().emit("last", ()).unwrap();
    within("the drain", server.io.drain(AT_ONCE)).await;
    assert_eq!(rest(&mut stream).await, ["- last []\n"]);
    assert_eq!(stream.close_reason(), Some(CloseReason::ServerShutdown));
    let refused = server.io.open_stream(&parts(), open(&form)).await;
    let error = refused.unwrap_err();
    assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE);
    within("the close", server.io.close()).await;
    assert_eq!(server.io.connections(), 0);
}

#[tokio::test]
async fn a_broadcast_with_acknowledgement_reaches_streams_and_does_not_wait_for_them() {
    let namespace = Namespace::new("/");
    let server = TestServer::of(namespace).await;
    let mut stream = stream(&server.io, &lines()).await;
    let asked = server
        .io
        .timeout(Duration::from_secs(3600))
        .emit_with_ack::<Value>("vote", ());
    let answers = within("the answers", asked).await.unwrap();
    assert!(answers.answers.is_empty() && answers.missing.is_empty());
    assert_eq!(next(&mut stream).await, "- vote []\n");
    let asked = stream.socket().emit_with_ack::<Value>("vote", ());
    assert!(matches!(asked.await, Err(AckError::Plain)));
}

#[tokio::test]
async fn an_event_of_a_log_reaches_a_stream_with_its_id_and_time() {
    let io = with_history().await;
    let mut stream = stream(&io, &lines()).await;
    stream.socket().join_confirmed("news").await.unwrap();
    let position = io.to("news").publish("one", 1).await.unwrap();
    let chunk = within("the event", stream.next()).await.unwrap();
    assert_eq!(chunk.id, Some(position.id));
    assert_eq!(chunk.bytes, "news one [1]\n");
    io.to("news").emit("two", 2).await.unwrap();
    let chunk = within("the event", stream.next()).await.unwrap();
    assert_eq!(chunk.id, None);
}

/// A server whose route `/ws` is a plain WebSocket. It joins the room `news`, and the server answers
/// what it sends, except for some words.
async fn serve_websockets(builder: Builder, form: &Arc<Lines>) -> TestServer {
    let form = Arc::clone(form);
    TestServer::start_app(builder, move |io| {
        let server = io.clone();
        let handler = move |request: http::Request<Body>| async move {
            let on_open = async |socket: Socket| {
                tokio::task::yield_now().await;
                socket.join("news").unwrap();
                socket.send_text("welcome").unwrap();
            };
            let opened = server
                .open_websocket(request, open(&form), on_open, answer)
                .await;
            opened.unwrap_or_else(|error| {
                let mut response = Response::new(Body::from(error.message.into_owned()));
                *response.status_mut() = error.status;
                response
            })
        };
        io.router().route("/ws", get(handler))
    })
    .await
}

async fn answer(socket: Socket, text: String) {
    match &*text {
        "leave" => socket.disconnect(false),
        "panic" => panic!("as the test wants"),
        "slow" => tokio::time::sleep(Duration::from_millis(20)).await,
        _ => {}
    }
    drop(socket.send_text(&format!("{text}?")));
}

#[tokio::test]
async fn a_plain_websocket_receives_events_as_text_and_its_messages_are_handled_in_order() {
    let form = lines();
    let server = serve_websockets(builder(), &form).await;
    let mut client = WebSocket::upgrade(server.address, "/ws").await;
    // What comes before the connection is open waits for `on_open`.
    for text in ["a", "slow", "b"] {
        client.send(text).await;
    }
    assert_eq!(client.text().await, "welcome");
    for text in ["a?", "slow?", "b?"] {
        assert_eq!(client.text().await, text);
    }
    let mut other = server.bystander().await;
    server.io.emit("hidden", ()).await.unwrap();
    server.io.to("news").emit("one", (1, "ä")).await.unwrap();
    server.io.emit("two", ()).await.unwrap();
    assert_eq!(client.text().await, "news one [1,\"ä\"]\n");
    assert_eq!(client.text().await, "- two []\n");
    other.assert_served().await;
    let series = "roomcast_connections{transport=\"websocket\"}";
    assert_eq!(server.metric(series), 2);
    client.send("leave").await;
    assert_eq!(client.closed().await, Some(1000));
    server.closes("server_disconnect", 1).await;
    drop(other);
    server.assert_empty().await;
}

#[tokio::test]
async fn a_plain_websocket_that_is_refused_gets_a_status_and_no_upgrade() {
    let namespace = Namespace::new("/").authorize(async || Err::<(), _>(Refused::new("no")));
    let server = serve_websockets(Server::builder().namespace(namespace), &lines()).await;
    let response = support::http::get(server.address, "/ws").await;
    assert_eq!(response.status, 400);
    let request = support::websocket::request("/ws");
    let mut stream = support::http::send(server.address, request).await;
    let response = support::http::response(&mut stream).await;
    assert_eq!((response.status, &*response.body), (403, "no"));
    server.assert_empty().await;
}

#[tokio::test]
async fn a_plain_websocket_ends_with_the_codes_of_its_standard() {
    let limits = Limits {
        event_rate: Some(Rate {
            per_second: 3,
            burst: 3,
        }),
        rate_policy: RatePolicy::Close,
        ..Limits::default()
    };
    let server = serve_websockets(builder().limits(limits), &lines()).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(WebSocket::upgrade(server.address, "/ws").await);
    }
    clients[0].send_frame(true, 2, b"binary").await;
    clients[1].send("panic").await;
    for _ in 0..5 {
        clients[2].send("often").await;
    }
    clients[3]
        .send_frame(true, 8, &1000_u16.to_be_bytes())
        .await;
    for (client, code) in clients.iter_mut().zip([1003, 1000, 1008, 1000]) {
        assert_eq!(client.closed().await, Some(code));
    }
    within("the drain", server.io.drain(AT_ONCE)).await;
    assert_eq!(clients[4].closed().await, Some(1001));
    assert_eq!(server.metric("roomcast_handler_panics_total"), 1);
    drop(clients);
    server.assert_empty().await;
}

#[tokio::test]
async fn a_plain_websocket_that_answers_no_ping_is_closed() {
    let form = Arc::new(Lines {
        heartbeat: Heartbeat::Ping,
        ..Lines::default()
    });
    let quick = builder()
        .ping_interval(Duration::from_millis(20))
        .ping_timeout(Duration::from_millis(50));
    let server = serve_websockets(quick, &form).await;
    let _silent = WebSocket::upgrade(server.address, "/ws").await;
    server.closes("ping_timeout", 1).await;
    server.assert_empty().await;
}

#[tokio::test]
async fn a_plain_websocket_is_not_read_while_too_many_messages_wait() {
    let limits = Limits {
        events_in_flight: 4,
        ..Limits::default()
    };
    let server = serve_websockets(builder().limits(limits), &lines()).await;
    let mut client = WebSocket::upgrade(server.address, "/ws").await;
    for _ in 0..8 {
        client.send("slow").await;
    }
    client.send("last").await;
    assert_eq!(client.text().await, "welcome");
    for _ in 0..8 {
        assert_eq!(client.text().await, "slow?");
    }
    assert_eq!(client.text().await, "last?");
    assert!(server.reached("events_in_flight") > 0);
}

/// The ids of the next events of a stream.
async fn ids(stream: &mut Stream, count: usize) -> Vec<u64> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let chunk = within("an event", stream.next()).await.unwrap();
        ids.push(chunk.id.unwrap());
    }
    ids
}

async fn build(namespace: Namespace) -> Server {
    let builder = Server::builder().namespace(namespace);
    builder.build().await.unwrap()
}

async fn with_history() -> Server {
    build(Namespace::new("/").history(HistoryLimits::default())).await
}

#[tokio::test]
async fn a_socket_that_joins_from_an_id_receives_what_is_kept_of_all_rooms_in_order_and_then_goes_on()
 {
    let io = with_history().await;
    let mut all = Vec::new();
    for n in 0..6 {
        let room = ["a", "b", "c"][n % 3];
        all.push(io.to(room).publish("n", n).await.unwrap().id);
    }
    let mut stream = stream(&io, &lines()).await;
    let joined = stream.socket().join_from(["a", "b"], Some(all[0]));
    assert_eq!(joined.await.unwrap(), all[4]);
    let next = io.to("a").publish("n", 6).await.unwrap().id;
    assert_eq!(ids(&mut stream, 4).await, [all[1], all[3], all[4], next]);
    // The room `c` comes later, with what is kept of it.
    let last = stream.socket().join_from("c", Some(0)).await.unwrap();
    assert_eq!(last, all[5]);
    assert_eq!(ids(&mut stream, 2).await, [all[2], all[5]]);
}

#[tokio::test]
async fn a_socket_that_joins_without_an_id_begins_with_what_comes() {
    let io = with_history().await;
    let mut stream = stream(&io, &lines()).await;
    assert_eq!(stream.socket().join_from("empty", None).await.unwrap(), 0);
    let kept = io.to("a").publish("n", 0).await.unwrap().id;
    assert_eq!(stream.socket().join_from("a", None).await.unwrap(), kept);
    let next = io.to("a").publish("n", 1).await.unwrap().id;
    assert_eq!(ids(&mut stream, 1).await, [next]);
    // From a log that was lost: all that is kept.
    let mut other = self::stream(&io, &lines()).await;
    let joined = other.socket().join_from("a", Some(next + 1_000_000));
    assert_eq!(joined.await.unwrap(), next);
    assert_eq!(ids(&mut other, 2).await, [kept, next]);
    let later = io.to("a").publish("n", 2).await.unwrap().id;
    assert_eq!(ids(&mut other, 1).await, [later]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_others_publish() {
    let io = with_history().await;
    let first = io.to("a").publish("n", "first").await.unwrap().id;
    let publisher = io.clone();
    let publishing = tokio::spawn(async move {
        let mut all = Vec::new();
        for n in 0..600 {
            all.push(publisher.to("a").publish("n", n).await.unwrap().id);
            if n % 10 == 0 {
                tokio::task::yield_now().await;
            }
        }
        all
    });
    let mut streams = Vec::new();
    while !publishing.is_finished() {
        let stream = stream(&io, &lines()).await;
        stream.socket().join_from("a", Some(first)).await.unwrap();
        streams.push(stream);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let all = publishing.await.unwrap();
    for stream in &mut streams {
        assert_eq!(ids(stream, all.len()).await, all);
    }
}

#[tokio::test]
async fn only_plain_sockets_of_namespaces_with_a_history_join_from_an_id() {
    let (server, mut sockets) = TestServer::with_sockets(main_namespace()).await;
    let _client = server.bystander().await;
    let refused = sockets.next().await.join_from("a", None).await;
    assert!(matches!(
        refused,
        Err(JoinFromError::Emit(EmitError::NotPlain))
    ));
    let stream = stream(&server.io, &lines()).await;
    let refused = stream.socket().join_from("a", None).await;
    assert!(matches!(refused, Err(JoinFromError::History(_))));
    assert!(!stream.socket().rooms().contains(&"a".to_owned()));
}

/// A server of a bus with logs, and what happens in the log of the room `a`.
struct Logged {
    io: Server,
    bus: FakeBus,
}

impl Logged {
    async fn start() -> Self {
        let bus = FakeBus::new();
        let namespace = Namespace::new("/").history(HistoryLimits::default());
        let builder = Server::builder().namespace(namespace);
        let io = builder.bus(bus.clone()).build().await.unwrap();
        Self { io, bus }
    }

    /// Stores an event.
    fn keep(&self, id: u64, time: u64) {
        self.bus.keep(HistoryEntry {
            id,
            time,
            room: "a".into(),
            event: "n".into(),
            args: Args::encode(&id).unwrap(),
        });
    }

    /// Has a stored event arrive. Returns how many sockets it is for.
    fn arrives(&self, id: u64, time: u64) -> usize {
        let mut target = Target::default();
        target.add_rooms("a");
        let message = Message::Broadcast(Broadcast {
            target,
            event: "n".into(),
            args: Args::encode(&id).unwrap(),
        });
        let after = None;
        let position = Position { id, time, after };
        self.bus.listener("/").receive(&message, Some(position))
    }

    fn publish(&self, id: u64, time: u64) {
        self.keep(id, time);
        assert_ne!(self.arrives(id, time), 0);
    }

    /// Reports a gap since the beginning of time.
    fn gap(&self) {
        self.gap_since(SystemTime::UNIX_EPOCH);
    }

    fn gap_since(&self, from: SystemTime) {
        let to = from + Duration::from_secs(1);
        self.bus.report(Gap { from, to });
    }

    async fn follow(&self, after: Option<u64>) -> Stream {
        let stream = stream(&self.io, &lines()).await;
        stream.socket().join_from("a", after).await.unwrap();
        stream
    }
}

#[tokio::test]
async fn followers_of_a_history_receive_once_what_a_gap_has_kept_from_them() {
    let log = Logged::start().await;
    (1..=2).for_each(|id| log.keep(id, id));
    let mut early = stream(&log.io, &lines()).await;
    assert_eq!(early.socket().join_from("a", Some(1)).await.unwrap(), 2);
    log.keep(3, 3);
    assert_eq!(log.arrives(3, 3), 1);
    // 4 and 5 do not arrive, 6 arrives before the gap is reported.
    (4..=5).for_each(|id| log.keep(id, id));
    let mut late = stream(&log.io, &lines()).await;
    late.socket().join_from("a", Some(4)).await.unwrap();
    log.keep(6, 6);
    assert_eq!(log.arrives(6, 6), 2);
    log.gap();
    assert_eq!(ids(&mut early, 5).await, [2, 3, 6, 4, 5]);
    assert_eq!(ids(&mut late, 2).await, [5, 6]);
    // The same gap again brings nothing again, and what comes later comes once.
    log.gap();
    log.keep(7, 7);
    assert_eq!(log.arrives(7, 7), 2);
    assert_eq!(ids(&mut early, 1).await, [7]);
    assert_eq!(ids(&mut late, 1).await, [7]);
    // A socket that has left the room does not receive the events that were missed there.
    early.socket().leave("a");
    log.keep(8, 8);
    log.gap();
    assert_eq!(ids(&mut late, 1).await, [8]);
    early.socket().emit("own", ()).unwrap();
    assert_eq!(next(&mut early).await, "- own []\n");
}

#[tokio::test]
async fn a_follower_goes_on_when_the_log_has_lost_its_data_and_its_ids_fall() {
    let log = Logged::start().await;
    (101..=102).for_each(|id| log.keep(id, id));
    let mut late = log.follow(None).await;
    let mut early = log.follow(Some(101)).await;
    // An event that was published before it joined may still arrive.
    log.arrives(102, 102);
    log.publish(103, 103);
    log.bus.lose();
    (11..=12).for_each(|id| log.publish(id, 200 + id));
    assert_eq!(ids(&mut late, 3).await, [103, 11, 12]);
    assert_eq!(ids(&mut early, 4).await, [102, 103, 11, 12]);
    // A client that comes with an id of the lost log receives all that is kept.
    let mut lost = log.follow(Some(103)).await;
    log.publish(13, 213);
    assert_eq!(ids(&mut lost, 3).await, [11, 12, 13]);
    assert_eq!(ids(&mut early, 1).await, [13]);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a test reads the real clock")]
async fn followers_receive_once_what_a_gap_has_kept_from_them_of_a_log_that_began_again() {
    let log = Logged::start().await;
    let mut stream = log.follow(None).await;
    (101..=103).for_each(|id| log.publish(id, id));
    // Beginnings of gaps are compared with times in milliseconds.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let from = SystemTime::now();
    log.bus.lose();
    // The ids of the new log pass those of the lost one, and some are the same.
    (100..=102).for_each(|id| log.keep(id, 200 + id));
    log.publish(103, 303);
    log.keep(104, 304);
    log.gap_since(from);
    assert_eq!(ids(&mut stream, 4).await, [101, 102, 103, 103]);
    assert_eq!(ids(&mut stream, 4).await, [100, 101, 102, 104]);
    log.publish(105, 305);
    assert_eq!(ids(&mut stream, 1).await, [105]);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_after_a_gap_is_read_again_until_it_can() {
    let log = Logged::start().await;
    log.keep(1, 1);
    let mut stream = log.follow(None).await;
    let reads = async |count| {
        let mut seen = 0;
        let waiting = async {
            while seen < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let log = log.bus.log().into_iter();
                seen += log.filter(|line| line == "read a").count();
            }
        };
        within("reads of the log", waiting).await;
    };
    log.bus.log();
    log.bus.set_readable(false);
    log.keep(2, 2);
    log.gap();
    reads(3).await;
    log.publish(3, 3);
    log.bus.set_readable(true);
    assert_eq!(ids(&mut stream, 2).await, [3, 2]);
    log.publish(4, 4);
    assert_eq!(ids(&mut stream, 1).await, [4]);
}
