//! The code of the guide in `docs/src/guide`, compiled and run. `docs/check` compares the two: a
//! block of Rust in the book has to occur here or in an example.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "a part of it is for other tests")]
mod process;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::Router;
use process::client::Client;
use roomcast::{
    Ack, AckError, Args, BroadcastOperator, Builder, Certificate, EmitError, HandlerResult,
    Handshake, InvalidNetwork, MemoryBus, Namespace, Refused, Server, Socket, State, Tls,
    TrustedProxies,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{net::TcpListener, task::spawn_blocking, time::sleep};

/// Serves on a free port of this machine. Returns the address.
async fn serve(io: &Server) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (io, app) = (io.clone(), io.router());
    tokio::spawn(async move { io.serve(listener, app).await });
    address.to_string()
}

async fn start(namespace: Namespace) -> (Server, String) {
    start_with(Server::builder().namespace(namespace)).await
}

async fn start_with(builder: Builder) -> (Server, String) {
    let io = builder.build().await.unwrap();
    let address = serve(&io).await;
    (io, address)
}

fn handlers() -> Namespace {
    Namespace::new("/")
        // No argument.
        .on("ping", async |_: Socket| "pong")
        // One argument: any type that deserializes.
        .on("double", async |_: Socket, number: i64| number * 2)
        // Several arguments, each of any type that deserializes.
        .on("add", async |_: Socket, a: i64, b: i64| a + b)
        // One, and the rest as it came.
        .on("count", async |name: String, rest: Args| {
            HandlerResult::Ok((name, rest.len()?))
        })
        // The arguments as they came.
        .on("echo", async |_: Socket, args: Args| args)
        // A handler that sends the acknowledgement itself.
        .on("later", async |_: Socket, text: String, ack: Ack| {
            sleep(Duration::from_millis(10)).await;
            ack.send(text)
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_acknowledged() {
    let io = Server::builder().namespace(handlers());
    let address = serve(&io.build().await.unwrap()).await;
    let acknowledged = spawn_blocking(move || {
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let (mut client, _) = tungstenite::connect(url).unwrap();
        client.read().unwrap(); // 0{"sid":…}
        client.send("40".into()).unwrap();
        client.read().unwrap(); // 40{"sid":…}
        client.send(r#"421["add",1,2]"#.into()).unwrap();
        client.read().unwrap().to_string()
    });
    assert_eq!(acknowledged.await.unwrap(), "431[3]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_takes_what_it_needs_and_its_result_is_the_acknowledgement() {
    let (_io, address) = start(handlers()).await;
    let asked = spawn_blocking(move || {
        let mut client = Client::connect(&address);
        [
            client.ask(&json!(["ping"])),
            client.ask(&json!(["double", 4])),
            client.ask(&json!(["add", 1, 2])),
            client.ask(&json!(["count", "x", 1, 2])),
            client.ask(&json!(["echo", 1, "two", null])),
            client.ask(&json!(["later", "done"])),
        ]
    });
    let expected = [
        json!(["pong"]),
        json!([8]),
        json!([3]),
        json!(["x", 2]),
        json!([1, "two", null]),
        json!(["done"]),
    ];
    assert_eq!(asked.await.unwrap(), expected);
}

fn rooms() -> Namespace {
    Namespace::new("/")
        .on("join", async |socket: Socket, room: String| {
            socket.join_confirmed(format!("chat:{room}")).await
        })
        .on("say", async |socket: Socket, said: (String, String)| {
            let (room, text) = said;
            let others = socket.to(format!("chat:{room}")).except("muted");
            others.emit("said", text).await.map(|_| ())
        })
        .on("mute", async |socket: Socket| socket.join("muted"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_reaches_the_other_members_of_a_room_once() {
    let (io, address) = start(rooms()).await;
    let talk = spawn_blocking(move || {
        let [mut ada, mut ben, mut eve] = [(); 3].map(|()| Client::connect(&address));
        for client in [&mut ada, &mut ben, &mut eve] {
            client.ask(&json!(["join", "tea"]));
        }
        eve.ask(&json!(["mute"]));
        ada.ask(&json!(["say", "tea", "hello"]));
        assert_eq!(ben.event("said"), json!(["hello"]));
        ben.ask(&json!(["say", "tea", "bye"]));
        // Neither her own message nor anything before this one.
        assert_eq!(ada.event("said"), json!(["bye"]));
        (ada, ben, eve)
    });
    let _clients = talk.await.unwrap();
    // From anywhere in the application:
    let room = io.to("chat:tea");
    let delivery = room.emit("closing", "in an hour").await.unwrap();
    assert_eq!((delivery.local_sockets, delivery.nodes), (3, 0));
    let members = io.in_("chat:tea").fetch_sockets().await.unwrap();
    assert_eq!(members.sockets.len(), 3);
    assert!(members.silent_nodes.is_empty());
}

/// Stands for a database of tokens.
type Tokens = HashMap<String, String>;

#[derive(Deserialize)]
struct Credentials {
    token: String,
}

#[derive(Serialize)]
struct User {
    name: String,
}

fn members_only() -> Namespace {
    Namespace::new("/")
        .authorize(
            async |handshake: Handshake, tokens: State<Tokens>| -> HandlerResult<User> {
                let given = handshake.auth::<Credentials>().ok();
                let Some(name) = given.and_then(|given| tokens.get(&given.token)) else {
                    let refused = Refused::new("unknown token");
                    Err(refused.data(&json!({ "retry": false })))?
                };
                Ok(User { name: name.clone() })
            },
        )
        .on("whoami", async |socket: Socket| {
            socket.data::<User>().map(|user| user.name.clone())
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_presents_a_token_is_known_and_who_does_not_is_refused() {
    let tokens = HashMap::from([("secret".to_owned(), "Ada".to_owned())]);
    let (_io, address) =
        start_with(Server::builder().state(tokens).namespace(members_only())).await;
    let tried = spawn_blocking(move || {
        let mut ada = Client::connect_as(&address, &json!({ "token": "secret" })).unwrap();
        assert_eq!(ada.ask(&json!(["whoami"])), json!(["Ada"]));
        [
            json!({ "token": "guess" }),
            json!({}),
            json!({ "token": [] }),
        ]
        .map(|auth| Client::connect_as(&address, &auth).err())
    });
    for error in tried.await.unwrap() {
        let error = error.unwrap();
        assert_eq!(error["message"], "unknown token");
        assert_eq!(error["data"], json!({ "retry": false }));
    }
}

/// The number of visits, which all handlers share.
#[derive(Default)]
struct Visits(AtomicU64);

fn counting() -> Namespace {
    Namespace::new("/")
        .on_connect(async |socket: Socket| {
            socket.set_data(User {
                name: "nobody".into(),
            });
        })
        .on("rename", async |socket: Socket, name: String| {
            socket.set_data(User { name });
        })
        .on("visit", async |socket: Socket, visits: State<Visits>| {
            let count = visits.0.fetch_add(1, Ordering::Relaxed) + 1;
            let name = socket.data::<User>().map(|user| user.name.clone());
            (count, name)
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn state_belongs_to_the_application_or_to_one_socket() {
    let builder = Server::builder()
        .state(Visits::default())
        .namespace(counting());
    let (_io, address) = start_with(builder).await;
    let visits = spawn_blocking(move || {
        let mut ada = Client::connect(&address);
        let first = ada.ask(&json!(["visit"]));
        ada.ask(&json!(["rename", "Ada"]));
        [first, ada.ask(&json!(["visit"]))]
    });
    let expected = [json!([1, "nobody"]), json!([2, "Ada"])];
    assert_eq!(visits.await.unwrap(), expected);
}

/// Everything that can go wrong with an order, as clients see it.
#[derive(Debug, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
enum OrderError {
    SoldOut { left: u32 },
    NoSuchItem,
}

fn shop() -> Namespace {
    Namespace::new("/").on("order", async |_: Socket, order: (String, u32)| {
        let (item, count) = order;
        match (item.as_str(), count) {
            ("tea", 1..=3) => Ok("on its way"),
            ("tea", _) => Err(OrderError::SoldOut { left: 3 }),
            _ => Err(OrderError::NoSuchItem),
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_handler_is_an_object_with_error_for_the_client() {
    let (_io, address) = start(shop()).await;
    let orders = spawn_blocking(move || {
        let mut client = Client::connect(&address);
        [("tea", 2), ("tea", 9), ("rope", 1)]
            .map(|(item, count)| client.ask(&json!(["order", item, count])))
    });
    let expected = [
        json!(["on its way"]),
        json!([{ "error": { "code": "sold_out", "left": 3 } }]),
        json!([{ "error": { "code": "no_such_item" } }]),
    ];
    assert_eq!(orders.await.unwrap(), expected);
}

/// An error that is none of the client's business, except for its text about the amount.
#[derive(Debug, thiserror::Error)]
enum Payment {
    #[error("the amount is not positive")]
    Amount,
    #[error("the bank at 10.0.0.7 is away")]
    Bank,
}

fn pay(amount: i64) -> Result<&'static str, Payment> {
    match amount {
        ..=0 => Err(Payment::Amount),
        1..=100 => Ok("paid"),
        _ => Err(Payment::Bank),
    }
}

fn till() -> Namespace {
    Namespace::new("/").on(
        "pay",
        async |amount: String| -> HandlerResult<&'static str> {
            let amount = amount.parse::<i64>()?;
            match pay(amount) {
                Err(error @ Payment::Amount) => Err(Refused::new(error.to_string()).into()),
                paid => Ok(paid?),
            }
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_see_what_is_refused_and_no_other_error() {
    let (io, address) = start(till()).await;
    let payments = spawn_blocking(move || {
        let mut client = Client::connect(&address);
        ["7", "0", "101", "x"].map(|amount| client.ask(&json!(["pay", amount])))
    });
    let expected = [
        json!(["paid"]),
        json!([{ "error": "the amount is not positive" }]),
        json!([{ "error": "internal error" }]),
        json!([{ "error": "internal error" }]),
    ];
    assert_eq!(payments.await.unwrap(), expected);
    let failed = r#"roomcast_handler_errors_total{event="pay"} 2"#;
    assert!(io.metrics().contains(failed));
}

fn voting() -> Namespace {
    Namespace::new("/")
        .on_connect(async |socket: Socket| socket.join("voters"))
        .on("confirm", async |socket: Socket| {
            let asked = socket.timeout(Duration::from_secs(5));
            let sure: Result<bool, AckError> = asked.emit_with_ack("are you sure?", ()).await;
            sure
        })
}

/// Asks all voters. Returns how many are in favour, and how many did not answer.
async fn vote(io: &Server) -> Result<(usize, usize), AckError> {
    let voters = io.to("voters").timeout(Duration::from_secs(5));
    let votes = voters.emit_with_ack::<bool>("in favour?", ()).await?;
    let in_favour = votes.answers.iter().filter(|vote| **vote).count();
    Ok((in_favour, votes.missing.len() + votes.missing_unnamed))
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_work_in_both_directions_and_for_broadcasts() {
    let (io, address) = start(voting()).await;
    let clients = spawn_blocking(move || {
        let mut ada = Client::connect(&address);
        ada.send(r#"421["confirm"]"#);
        assert_eq!(ada.packet().unwrap(), r#"420["are you sure?"]"#);
        ada.send("430[true]");
        assert_eq!(ada.packet().unwrap(), "431[true]");
        (ada, Client::connect(&address))
    });
    let (mut ada, mut ben) = clients.await.unwrap();
    let answered = spawn_blocking(move || {
        for (client, vote) in [(&mut ada, "true"), (&mut ben, "false")] {
            let asked = client.packet().unwrap();
            let id = asked
                .strip_prefix("42")
                .unwrap()
                .replace(r#"["in favour?"]"#, "");
            client.send(&format!("43{id}[{vote}]"));
        }
        (ada, ben)
    });
    assert_eq!(vote(&io).await.unwrap(), (1, 0));
    answered.await.unwrap();
}

fn configurable() -> Namespace {
    Namespace::new("/")
        .on("join", async |socket: Socket, room: String| {
            socket.join(room)
        })
        .on_server_side("reload", async |io: BroadcastOperator, version: u64| {
            io.local().emit("reloaded", version).await?;
            Ok::<_, EmitError>(version)
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_bus_are_a_cluster() {
    let bus = MemoryBus::new();
    let node = || Server::builder().namespace(configurable()).bus(bus.clone());
    let (first, second) = (node().build().await.unwrap(), node().build().await.unwrap());
    let (here, there) = (serve(&first).await, serve(&second).await);
    let joined = spawn_blocking(move || {
        let [mut ada, mut ben] = [here, there].map(|address| Client::connect(&address));
        ada.ask(&json!(["join", "tea"]));
        ben.ask(&json!(["join", "tea"]));
        (ada, ben)
    });
    let (mut ada, mut ben) = joined.await.unwrap();

    let delivery = first.to("tea").emit("hello", 1).await.unwrap();
    assert_eq!((delivery.local_sockets, delivery.nodes), (1, 1));
    let root = first.of("/");
    let reloaded = root
        .server_side_emit_with_ack::<u64>("reload", 7)
        .await
        .unwrap();
    assert_eq!(reloaded.answers, [7]);
    assert!(reloaded.silent_nodes.is_empty());

    let heard = spawn_blocking(move || {
        assert_eq!(ada.event("hello"), json!([1]));
        assert_eq!(ben.event("hello"), json!([1]));
        assert_eq!(ben.event("reloaded"), json!([7]));
    });
    heard.await.unwrap();
}

fn behind_balancers() -> Result<Builder, InvalidNetwork> {
    let proxies = TrustedProxies::new(["10.0.0.0/8", "::1"])?;
    Ok(Server::builder().trusted_proxies(proxies))
}

#[tokio::test]
async fn a_balancer_that_is_not_on_this_machine_names_no_client() {
    let (asked, answer) = std::sync::mpsc::channel();
    let main = Namespace::new("/").on_connect(move |socket: Socket| {
        let address = socket.handshake().address();
        let _ = asked.send(address);
        async {}
    });
    let (_io, address) = start_with(behind_balancers().unwrap().namespace(main)).await;
    let connected = spawn_blocking(move || Client::connect(&address));
    let _client = connected.await.unwrap();
    let address = answer.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(address.unwrap().ip().is_loopback());
}

async fn serve_tls(
    io: Server,
    listener: TcpListener,
    app: Router,
) -> Result<(), Box<dyn std::error::Error>> {
    let tls = Tls::new([Certificate::from_files("site.pem", "site.key")?])?;
    io.serve(listener, app).with_tls(tls).await?;
    Ok(())
}

#[tokio::test]
async fn a_missing_certificate_is_named() {
    let io = Server::builder().build().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = io.router();
    let error = serve_tls(io, listener, app).await.unwrap_err();
    assert!(
        error.to_string().starts_with("site.pem cannot be read"),
        "{error}"
    );
}
