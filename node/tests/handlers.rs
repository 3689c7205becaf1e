//! What handlers take and return, and what their clients see of it.

mod support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::Extension;
use roomcast::{
    Ack, Args, BuildError, EngineId, Event, HandlerError, HandlerResult, Handshake, MemoryBus,
    Namespace, Observation, Refused, Server, Socket, SocketId, State, Value,
};
use support::{Polling, TestServer, WebSocket, eventually, server::Sockets, within};
use tokio::{
    sync::{Notify, mpsc},
    task::yield_now,
};

struct Prefix(&'static str);

async fn serve(namespace: Namespace) -> TestServer {
    TestServer::start(Server::builder().state(Prefix(">")).namespace(namespace)).await
}

/// Connects a client and returns its answers to these packets.
async fn answers(namespace: Namespace, packets: &[&str]) -> (TestServer, Vec<String>) {
    let server = serve(namespace).await;
    let mut client = WebSocket::connect(server.address).await;
    let mut answers = Vec::new();
    for packet in packets {
        client.send(packet).await;
        answers.push(client.text().await);
    }
    (server, answers)
}

/// Asserts the answers to these packets, and returns the server.
async fn assert_answers<const N: usize>(
    namespace: Namespace,
    packets: [(&str, &str); N],
) -> TestServer {
    let (server, answers) = answers(namespace, &packets.map(|(packet, _)| packet)).await;
    assert_eq!(answers, packets.map(|(_, answer)| answer));
    server
}

#[tokio::test]
async fn a_handler_takes_its_arguments_in_any_order_or_leaves_them_out() {
    let namespace = Namespace::new("/")
        .on("none", async || 1)
        .on("payload", async |text: String| text)
        .on("tuple", async |(a, b): (u8, u8)| a + b)
        .on("two", async |a: u8, socket: Socket, b: Option<u8>| {
            (a, b, socket.is_connected())
        })
        .on("list", async |pair: (u8, u8), text: String| {
            (pair.0, pair.1, text)
        })
        .on(
            "rest",
            async |first: String, rest: Args| -> HandlerResult<Vec<String>> {
                assert_eq!(first, "x");
                let rest = rest.split()?;
                Ok(rest.iter().map(|args| args.json().to_owned()).collect())
            },
        )
        .on("state", async |prefix: State<Prefix>, text: String| {
            format!("{}{text}", prefix.0)
        })
        .on("ack", async |ack: Ack, number: u8| {
            ack.send((number, number))
        })
        .on("event", async |event: Event| event.name().to_owned());
    let packets = [
        (r#"421["none"]"#, "431[1]"),
        (r#"422["payload","a"]"#, r#"432["a"]"#),
        (r#"423["tuple",1,2]"#, "433[3]"),
        (r#"424["two",1]"#, "434[1,null,true]"),
        (r#"425["list",[1,2],"t",9]"#, r#"435[1,2,"t"]"#),
        (
            r#"426["rest","x",[1], {"a":","} ]"#,
            r#"436[["[[1]]","[{\"a\":\",\"}]"]]"#,
        ),
        (r#"427["state","b"]"#, r#"437[">b"]"#),
        (r#"428["ack",5]"#, "438[5,5]"),
        (r#"429["event"]"#, r#"439["event"]"#),
    ];
    assert_answers(namespace, packets).await;
}

#[tokio::test]
async fn a_client_sees_of_an_error_what_is_refused_and_nothing_else() {
    let namespace = Namespace::new("/")
        .on("io", async || -> HandlerResult {
            Err(io::Error::other("secret"))?;
            Ok(())
        })
        .on("text", async || Err::<(), HandlerError>("secret".into()))
        .on("later", async || {
            yield_now().await;
            Err::<(), HandlerError>("secret".into())
        })
        .on("refused", async || Err::<(), _>(Refused::new("no")))
        .on("data", async || -> HandlerResult {
            Err(Refused::new("no").data(&[1, 2]))?;
            Ok(())
        })
        .on("shown", async || Err::<(), _>("for you"))
        .on("number", async |_: u8| ())
        .on("join", async |socket: Socket| socket.join("x".repeat(1000)))
        .on("emit", async |socket: Socket| {
            socket.namespace().emit("news", 1).await
        });
    let packets = [
        (r#"421["io"]"#, r#"431[{"error":"internal error"}]"#),
        (r#"422["text"]"#, r#"432[{"error":"internal error"}]"#),
        (r#"423["later"]"#, r#"433[{"error":"internal error"}]"#),
        (r#"424["refused"]"#, r#"434[{"error":"no"}]"#),
        (r#"425["data"]"#, r#"435[{"error":"no","data":[1,2]}]"#),
        (r#"426["shown"]"#, r#"436[{"error":"for you"}]"#),
        (
            r#"427["number","x"]"#,
            r#"437[{"error":"invalid arguments"}]"#,
        ),
        (r#"428["join"]"#, r#"438[{"error":"internal error"}]"#),
    ];
    let server = assert_answers(namespace, packets).await;
    assert_eq!(server.handler_errors(), 4);
    assert_eq!(server.metric("roomcast_events_undecodable_total"), 1);
}

#[tokio::test]
async fn how_many_sockets_an_emit_reached_is_not_told_to_clients() {
    let namespace = Namespace::new("/").on("emit", async |socket: Socket| {
        socket.to("nobody").emit("news", 1).await
    });
    assert_answers(namespace, [(r#"427["emit"]"#, "437[]")]).await;
}

#[tokio::test]
async fn errors_of_hooks_are_counted() {
    let failing = async || Err::<(), _>("it failed");
    let namespace = Namespace::new("/")
        .on_connect(failing)
        .on_any(failing)
        .on_disconnect(failing)
        .on("ack", async |_: Ack| {
            Err::<(), HandlerError>("after the ack".into())
        });
    let server = serve(namespace).await;
    let mut client = WebSocket::connect(server.address).await;
    client.send(r#"42["ack"]"#).await;
    client.send("41").await;
    eventually("all are counted", || server.handler_errors() == 4).await;
}

#[tokio::test]
async fn authorizers_run_in_order_and_the_first_error_refuses() {
    let decided = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&decided);
    let namespace = Namespace::new("/")
        .authorize(async move |handshake: Handshake| {
            match handshake.query("token").as_deref().unwrap_or_default() {
                "" => Err(Refused::new("no token").into()),
                "broken" => Err(HandlerError::from("the database is away")),
                token => Ok(token.to_owned()),
            }
        })
        .authorize(move |_: State<Prefix>| {
            counts.fetch_add(1, Ordering::SeqCst);
            async { Ok::<(), Refused>(()) }
        })
        .on("who", async |socket: Socket| {
            socket.data::<String>().map(|name| name.to_string())
        });
    let server = serve(namespace).await;
    let connect = async |query: &str| {
        let target = format!("/socket.io/?EIO=4&transport=websocket{query}");
        let mut client = WebSocket::open_at(server.address, &target).await;
        client.send("40").await;
        (client.text().await, client)
    };
    assert_eq!(connect("").await.0, r#"44{"message":"no token"}"#);
    assert_eq!(
        connect("&token=broken").await.0,
        r#"44{"message":"internal error"}"#
    );
    assert_eq!(decided.load(Ordering::SeqCst), 0);
    let (connected, mut client) = connect("&token=ada").await;
    assert!(connected.starts_with("40"), "{connected}");
    assert_eq!(decided.load(Ordering::SeqCst), 1);
    client.send(r#"421["who"]"#).await;
    assert_eq!(client.text().await, r#"431["ada"]"#);
}

#[tokio::test]
async fn an_authorizer_knows_the_ids_that_the_socket_will_have() {
    let namespace = Namespace::new("/")
        .authorize(async |id: SocketId, connection: EngineId| {
            Ok::<_, Refused>((id.to_string(), connection.as_str().to_owned()))
        })
        .on("both", async |socket: Socket| {
            let noted = socket.data::<(String, String)>().map(|ids| (*ids).clone());
            let own = (socket.id().to_string(), socket.connection_id().to_owned());
            (own, noted)
        });
    let (_server, answers) = answers(namespace, &[r#"421["both"]"#]).await;
    let json = answers[0].strip_prefix("431").expect("an answer");
    type Ids = (String, String);
    let (own, noted): (Ids, Option<Ids>) = serde_json::from_str(json).expect("ids");
    assert_eq!(noted, Some(own));
}

#[tokio::test]
async fn middleware_sees_each_event_and_can_refuse_it() {
    let namespace = Namespace::new("/")
        .middleware(async |event: Event| {
            yield_now().await;
            match event.name() {
                "forbidden" => Err(Refused::new("not for you").into()),
                "broken" => Err(HandlerError::from("secret")),
                _ => Ok(()),
            }
        })
        .middleware(async |socket: Socket, event: Event| socket.emit("seen", event.name()))
        .on("fine", async |n: u8| n)
        .on("forbidden", async || "reached");
    let packets = [
        (r#"421["forbidden"]"#, r#"431[{"error":"not for you"}]"#),
        (r#"422["broken"]"#, r#"432[{"error":"internal error"}]"#),
        (r#"423["fine",7]"#, r#"42["seen","fine"]"#),
    ];
    let server = assert_answers(namespace, packets).await;
    assert_eq!(server.handler_errors(), 1);
}

#[tokio::test]
async fn events_without_a_handler_of_their_own_reach_the_fallback() {
    let namespace = Namespace::new("/")
        .once("first", async || "once")
        .on_any(async |event: Event, ack: Ack| match event.name() {
            "any" => ack.send("by the catch-all"),
            _ => Ok(()),
        })
        .fallback(async |event: Event| -> HandlerResult<String> {
            match event.name() {
                "any" => std::future::pending().await,
                name => Ok(format!("no handler of {name}")),
            }
        });
    let packets = [
        (r#"421["first"]"#, r#"431["once"]"#),
        (r#"422["first"]"#, r#"432["no handler of first"]"#),
        (r#"423["other"]"#, r#"433["no handler of other"]"#),
        (r#"424["any"]"#, r#"434["by the catch-all"]"#),
    ];
    assert_answers(namespace, packets).await;
}

#[tokio::test]
async fn rooms_are_there_for_a_disconnect_handler_that_waits() {
    let (sender, mut ended) = mpsc::unbounded_channel();
    let namespace = Namespace::new("/")
        .on("join", async |socket: Socket, room: String| {
            socket.join(room)
        })
        .on_disconnect(move |socket: Socket| {
            let sender = sender.clone();
            async move {
                yield_now().await;
                sender.send(socket.rooms()).unwrap();
            }
        });
    let (namespace, mut sockets) = Sockets::of(namespace);
    let server = serve(namespace).await;
    let (mut client, socket) = sockets.connect(&server).await;
    client.send(r#"421["join","tea"]"#).await;
    client.text().await;
    client.send("41").await;
    let rooms = ended.recv().await.unwrap();
    assert_eq!(rooms, [socket.id().to_string(), "tea".to_owned()]);
    eventually("they are forgotten", || socket.rooms().is_empty()).await;
}

#[tokio::test]
async fn rooms_are_there_for_a_disconnect_handler_after_the_connect_handler_has_ended() {
    let (sender, mut ended) = mpsc::unbounded_channel();
    let [leaving, connected] = [(); 2].map(|()| Arc::new(Notify::new()));
    let (is_leaving, has_connected) = (Arc::clone(&leaving), Arc::clone(&connected));
    let namespace = Namespace::new("/")
        .on_connect(move |socket: Socket| {
            let (leaving, connected) = (Arc::clone(&is_leaving), Arc::clone(&has_connected));
            async move {
                socket.join("tea").unwrap();
                leaving.notified().await;
                connected.notify_one();
            }
        })
        .on_disconnect(move |socket: Socket| {
            let (leaving, connected) = (Arc::clone(&leaving), Arc::clone(&connected));
            let sender = sender.clone();
            async move {
                leaving.notify_one();
                connected.notified().await;
                sender.send(socket.rooms()).unwrap();
            }
        });
    let server = serve(namespace).await;
    let mut client = WebSocket::connect(server.address).await;
    client.send("41").await;
    let rooms = within("both handlers end", ended.recv()).await.unwrap();
    assert_eq!(rooms[1..], ["tea"]);
}

#[tokio::test]
async fn several_values_can_be_attached_to_a_socket() {
    let (namespace, mut sockets) = Sockets::of(Namespace::new("/"));
    let server = serve(namespace).await;
    let (_client, socket) = sockets.connect(&server).await;
    assert!(socket.attach(1_u8).is_none());
    assert!(socket.attach("text").is_none());
    assert_eq!(socket.attach(2_u8).as_deref(), Some(&1));
    assert_eq!(socket.attached::<u8>().as_deref(), Some(&2));
    assert_eq!(socket.attached::<&str>().as_deref(), Some(&"text"));
    assert!(socket.attached::<u16>().is_none());
    assert_eq!(socket.state::<Prefix>().unwrap().0, ">");
}

#[tokio::test]
async fn a_server_without_the_state_of_its_handlers_is_not_built() {
    let namespace = Namespace::new("/").on("event", async |_: State<Prefix>| ());
    let built = Server::builder().namespace(namespace).build().await;
    let Err(error @ BuildError::MissingState(_)) = built else {
        panic!("it was built");
    };
    assert!(error.to_string().contains("Prefix"), "{error}");
}

#[tokio::test]
async fn a_listener_sees_each_outgoing_event_once_per_socket() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let namespace = Namespace::new("/").on_any_outgoing(move |socket, event, args| {
        let seen = (
            socket.id().clone(),
            event.to_owned(),
            args.json().to_owned(),
        );
        sender.send(seen).unwrap();
    });
    let (namespace, mut sockets) = Sockets::of(namespace);
    let server = serve(namespace).await;
    let _clients = [
        WebSocket::connect(server.address).await,
        WebSocket::connect(server.address).await,
    ];
    let (first, second) = (sockets.next().await, sockets.next().await);
    first.emit("one", 1).unwrap();
    server.io.emit("all", 2).await.unwrap();
    let one = seen.recv().await.unwrap();
    assert_eq!(
        one,
        (first.id().clone(), "one".to_owned(), "[1]".to_owned())
    );
    let mut all = [seen.recv().await.unwrap(), seen.recv().await.unwrap()].map(|seen| {
        assert_eq!((&*seen.1, &*seen.2), ("all", "[2]"));
        seen.0.to_string()
    });
    all.sort_unstable();
    let mut expected = [first.id().to_string(), second.id().to_string()];
    expected.sort_unstable();
    assert_eq!(all, expected);
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn null_is_an_argument_and_nothing_is_none() {
    let namespace = Namespace::new("/")
        .on("null", async || serde_json::Value::Null)
        .on("nil", async || Value::Nil)
        .on("none", async || None::<u8>)
        .on("nothing", async || ())
        .on("tried", async || HandlerResult::Ok(()))
        .on("forwarded", async |args: Args| args)
        .on("values", async || {
            Args::from_values([Value::Nil, 1.into()]).unwrap_or_default()
        });
    let packets = [
        (r#"421["null"]"#, "431[null]"),
        (r#"422["nil"]"#, "432[null]"),
        (r#"423["none"]"#, "433[null]"),
        (r#"424["nothing"]"#, "434[]"),
        (r#"425["tried"]"#, "435[]"),
        (r#"426["forwarded",null]"#, "436[null]"),
        (r#"427["values"]"#, "437[null,1]"),
    ];
    assert_answers(namespace, packets).await;
}

#[tokio::test]
async fn the_server_operates_on_its_main_namespace() {
    let (namespace, mut sockets) = Sockets::of(Namespace::new("/"));
    let builder = Server::builder().namespace(namespace);
    let server = TestServer::start(builder.namespace(Namespace::new("/other"))).await;
    let io = &server.io;
    assert_eq!(io.namespaces(), ["/", "/other"]);
    let (mut client, socket) = sockets.connect(&server).await;
    let id = socket.id().as_str();
    assert_eq!(io.socket(id), Some(socket.clone()));
    assert_eq!(io.of("/other").socket(id), None);
    assert_eq!(io.socket("nobody"), None);

    io.sockets_join("tea").await.unwrap();
    let fetched = io.fetch_sockets().await.unwrap().sockets;
    assert_eq!(fetched[0].rooms(), [id, "tea"]);
    assert_eq!(fetched[0].handshake_json(), &socket.handshake().to_json());
    io.sockets_leave("tea").await.unwrap();
    assert_eq!(socket.rooms(), [id]);
    socket.join(["a", "b"]).unwrap();
    socket.leave_all();
    assert_eq!(socket.rooms(), [id]);

    let asking = tokio::spawn({
        let io = io.clone();
        async move { io.emit_with_ack::<u8>("ask", ()).await.unwrap().answers }
    });
    let asked = client.text().await;
    client
        .send(&asked.replace("42", "43").replace(r#"["ask"]"#, "[7]"))
        .await;
    assert_eq!(asking.await.unwrap(), [7]);
    io.disconnect_sockets(false).await.unwrap();
    assert_eq!(client.text().await, "41");
}

#[tokio::test]
async fn a_server_does_not_wait_for_a_handler_beyond_the_drain_timeout() {
    let namespace = Namespace::new("/").on("hang", async || -> () { std::future::pending().await });
    let builder = Server::builder().namespace(namespace);
    let server = TestServer::start(builder.drain_timeout(Duration::from_millis(50))).await;
    let mut client = WebSocket::connect(server.address).await;
    client.send(r#"421["hang"]"#).await;
    eventually("it runs", || {
        server.metric("roomcast_events_received_total") == 1
    })
    .await;
    within("the server closes", server.io.close()).await;
}

#[derive(Clone)]
struct Tenant(&'static str);

#[tokio::test]
async fn what_a_layer_knows_of_a_request_reaches_handlers() {
    let namespace = Namespace::new("/").on("tenant", async |socket: Socket| {
        let tenant = socket.handshake().extension::<Tenant>();
        tenant.map(|tenant| tenant.0)
    });
    let builder = Server::builder().keep_extension::<Tenant>();
    let app = |io: &Server| io.router().layer(Extension(Tenant("acme")));
    let server = TestServer::start_app(builder.namespace(namespace), app).await;
    let address = server.address;
    let mut client = WebSocket::connect(address).await;
    client.send(r#"421["tenant"]"#).await;
    assert_eq!(client.text().await, r#"431["acme"]"#);
    let mut client = Polling::connect(address).await;
    client.say(r#"422["tenant"]"#).await;
    assert_eq!(client.packet().await, r#"432["acme"]"#);
}

#[tokio::test]
async fn a_server_knows_the_nodes_of_its_cluster() {
    let bus = MemoryBus::new();
    let node = || {
        Server::builder()
            .namespace(Namespace::new("/"))
            .bus(bus.clone())
    };
    let first = node().build().await.unwrap();
    assert_eq!(first.nodes(), [first.node().clone()]);
    let second = node().build().await.unwrap();
    let mut expected = [first.node().clone(), second.node().clone()];
    expected.sort_unstable();
    assert_eq!(first.nodes(), expected);
    assert_eq!(second.nodes(), expected);
    second.close().await;
    assert_eq!(first.nodes(), [first.node().clone()]);
    let alone = Server::builder().build().await.unwrap();
    assert_eq!(alone.nodes(), [alone.node().clone()]);
}

#[tokio::test]
async fn an_observer_sees_what_a_socket_does_until_it_is_dropped() {
    let bus = MemoryBus::new();
    let (namespace, mut sockets) = Sockets::of(Namespace::new("/").on("x", async || ()));
    let builder = Server::builder().namespace(namespace).bus(bus.clone());
    let server = TestServer::start(builder).await;
    let other = Server::builder().namespace(Namespace::new("/")).bus(bus);
    let other = other.build().await.unwrap();
    let (sender, mut seen) = mpsc::unbounded_channel();
    let observer = server.io.observe(move |observation| {
        sender.send(told(observation)).unwrap();
    });
    let (sender, mut members) = mpsc::unbounded_channel();
    let of_members = server.io.observe_members(move |observation| {
        sender.send(told(observation)).unwrap();
    });
    let (mut client, socket) = sockets.connect(&server).await;
    socket.join(["a", "b"]).unwrap();
    socket.leave("b");
    client.send(r#"421["x",{"n":1}]"#).await;
    assert_eq!(client.text().await, "431[]");
    socket.emit("one", 2).unwrap();
    server.io.to("a").except("c").emit("all", 3).await.unwrap();
    other.to("a").emit("from another node", ()).await.unwrap();
    let expected = [
        "connected",
        r#"joined ["a", "b"]"#,
        r#"left ["b"]"#,
        r#"received x [{"n":1}]"#,
        "acknowledged x []",
        "emitted one [2]",
        r#"broadcast all [3] to 1 of ["a"] except ["c"]"#,
        r#"broadcast from another node [] to 1 of ["a"] except []"#,
    ];
    for expected in expected {
        let told = within("an observation", seen.recv()).await.unwrap();
        assert_eq!(told, expected);
    }
    drop(of_members);
    for expected in &expected[..3] {
        assert_eq!(members.recv().await.as_deref(), Some(*expected));
    }
    assert_eq!(members.recv().await, None, "events are not for it");
    drop(observer);
    assert!(seen.recv().await.is_none(), "the function is dropped");
    socket.emit("unseen", ()).unwrap();
    let (sender, mut seen) = mpsc::unbounded_channel();
    let _observer = server.io.observe(move |observation| {
        sender.send(told(observation)).unwrap();
    });
    client.send("41").await;
    let told = within("the disconnect", seen.recv()).await.unwrap();
    assert_eq!(
        told,
        r#"disconnected client namespace disconnect from ["a"]"#
    );
}

fn told(observation: Observation<'_>) -> String {
    match observation {
        Observation::Connected { .. } => "connected".to_owned(),
        Observation::Disconnected { socket, reason } => {
            let mut rooms = socket.rooms();
            rooms.retain(|room| room != socket.id().as_str());
            format!("disconnected {reason} from {rooms:?}")
        }
        Observation::Joined { rooms, .. } => format!("joined {rooms:?}"),
        Observation::Left { rooms, .. } => format!("left {rooms:?}"),
        Observation::Received { event, args, .. } => format!("received {event} {}", args.json()),
        Observation::Acknowledged { event, args, .. } => {
            format!("acknowledged {event} {}", args.json())
        }
        Observation::Emitted { event, args, .. } => format!("emitted {event} {}", args.json()),
        Observation::Broadcast {
            rooms,
            except,
            event,
            args,
            sockets,
            ..
        } => {
            let args = args.json();
            format!("broadcast {event} {args} to {sockets} of {rooms:?} except {except:?}")
        }
        other => format!("{other:?}"),
    }
}
