//! The conformance server: what the end-to-end tests with the official clients talk to.
//!
//! Written on the public API like any application. Its handlers, configuration and output are
//! described at the top of `node/tests/clients/reference-server.js`, which is the same server on the
//! official package; a change in one is made in the other.

use std::{
    collections::HashMap,
    future::IntoFuture,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use roomcast::{
    Ack, AckError, Args, ArgsError, BroadcastOperator, DisconnectReason, EmitError, Event,
    Handshake, IntoArgs, Namespace, Refused, RemoteSocket, Server, Socket, Value,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};

mod config;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let config = config::from_arguments(std::env::args().skip(1))?;
    let shared = Arc::<Shared>::default();
    let mut builder = config::apply(Server::builder(), config)?;
    for namespace in namespaces(&shared) {
        builder = builder.namespace(namespace);
    }
    let server = builder.build().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Arc::new(Notify::new());
    let stopping = Arc::clone(&stop);
    let serving = server
        .serve(listener, server.router())
        .with_graceful_shutdown(async move { stopping.notified().await });
    let serving = tokio::spawn(serving.into_future());
    writeln!(io::stdout(), "listening on {address}")?;
    terminate.recv().await;
    stop.notify_one();
    // A polling client that is gone never fetches its close packet.
    tokio::time::timeout(Duration::from_secs(1), serving)
        .await
        .map_or(Ok(()), |ended| ended?)?;
    Ok(())
}

fn namespaces(shared: &Arc<Shared>) -> Vec<Namespace> {
    let open = |namespace| everywhere(namespace, shared);
    let unauthorized = || Refused::new("not authorized").data(&json!({ "code": 401 }));
    vec![
        open(Namespace::new("/")),
        open(Namespace::new("/chat")),
        open(Namespace::matching("/org-{id}")),
        open(Namespace::matching("/dyn-{id}")),
        open(Namespace::new("/admin")).authorize(move |handshake: Handshake| async move {
            let auth: serde_json::Value = handshake.auth().unwrap_or_default();
            if auth["token"] == "secret" {
                Ok(())
            } else {
                Err(unauthorized())
            }
        }),
        open(Namespace::new("/denied"))
            .authorize(move || async move { Err::<(), _>(unauthorized()) }),
        open(Namespace::new("/denied-nodata"))
            .authorize(async || Err::<(), _>(Refused::new("nope"))),
        open(Namespace::new("/greet"))
            .on_connect(async |socket: Socket| (0..3).try_for_each(|i| socket.emit("welcome", i))),
        open(Namespace::new("/q")).on_connect(async |socket: Socket| {
            let handshake = socket.handshake();
            let auth: serde_json::Value = handshake.auth().unwrap_or_default();
            socket.emit("hs", (query(handshake), auth, socket.id()))
        }),
        open(Namespace::new("/flood"))
            .on_connect(async |socket: Socket| flood(&socket, 20, 100_000)),
    ]
}

fn everywhere(namespace: Namespace, shared: &Arc<Shared>) -> Namespace {
    let namespace = conversation(namespace);
    let namespace = memory(namespace, shared);
    let namespace = rooms(namespace);
    let namespace = broadcasts(namespace);
    endings(namespace, shared)
}

fn conversation(namespace: Namespace) -> Namespace {
    namespace
        .on("echo", async |socket: Socket, args: Args, ack: Ack| {
            if ack.is_wanted() {
                ack.send(args)
            } else {
                socket.emit("echo", args)
            }
        })
        .on("echo-ack", async |_: Socket, args: Args| args)
        .on("ask-me", async |socket: Socket, timeout: Option<u64>| {
            let timeout = Duration::from_millis(timeout.unwrap_or(5000));
            match socket
                .timeout(timeout)
                .emit_with_ack::<Args>("question", 1)
                .await
            {
                Ok(answer) => socket.emit("answered", answer),
                Err(_) => socket.emit("unanswered", ()),
            }
        })
        .on("volatile-burst", async |socket: Socket, n: u32| {
            (0..n).try_for_each(|i| socket.volatile().emit("burst", i))?;
            socket.emit("burst-done", n)
        })
        .on("many", async |socket: Socket, n: u32, ack: Ack| {
            (0..n).try_for_each(|i| socket.emit("number", i))?;
            ack.send(n)
        })
        .on(
            "flood",
            async |socket: Socket, (n, size): (u32, usize), ack: Ack| {
                flood(&socket, n, size)?;
                ack.send(n)
            },
        )
        .on("multi", async |socket: Socket| {
            socket.emit("m", 1)?;
            socket.emit("m", 2)?;
            socket.emit("m", (Value::Binary(vec![0xff]), 3))
        })
        .on(
            "whoami",
            async |socket: Socket, headers: Option<Vec<String>>| {
                describe(&socket, &headers.unwrap_or_default())
            },
        )
        .on(
            "set-data",
            async |socket: Socket, value: serde_json::Value| {
                socket.set_data(Kept { value });
                true
            },
        )
        .on("get-data", async |socket: Socket| {
            // In a tuple, as a bare null would be no argument at all.
            (socket.data::<Kept>().map(|kept| kept.value.clone()),)
        })
}

fn flood(socket: &Socket, count: u32, size: usize) -> Result<(), EmitError> {
    let text = "x".repeat(size);
    (0..count).try_for_each(|i| socket.emit("item", (i, &text)))
}

/// What is remembered of a socket, or told to another one.
fn memory(namespace: Namespace, shared: &Arc<Shared>) -> Namespace {
    let (noting, listing) = (Arc::clone(shared), Arc::clone(shared));
    let (recording, recorded) = (Arc::clone(shared), Arc::clone(shared));
    let (waiting, releasing) = (Arc::clone(shared), Arc::clone(shared));
    namespace
        .on("note", move |socket: Socket, i: u64| {
            noting.of(&socket, |memory| memory.notes.push(i));
            async move { socket.emit("noted", i) }
        })
        .on("notes", move |socket: Socket| {
            let notes = listing.of(&socket, |memory| memory.notes.clone());
            async move { notes }
        })
        .on_any(move |socket: Socket, event: Event| {
            recording.of(&socket, |memory| memory.seen.push(event.name().to_owned()));
            async {}
        })
        .on("recorded", move |socket: Socket| {
            let seen = recorded.of(&socket, |memory| memory.seen.clone());
            async move { seen }
        })
        .on("slow", move |_: Socket, key: String| {
            let shared = Arc::clone(&waiting);
            async move { shared.released.wait(&key).await }
        })
        .on("release", move |_: Socket, key: String| {
            releasing.released.open(&key, key.clone());
            async { true }
        })
}

fn rooms(namespace: Namespace) -> Namespace {
    namespace
        .on("join", async |socket: Socket, rooms: OneOrMany| {
            socket.join(rooms.list())?;
            Ok::<_, EmitError>(own_rooms(&socket))
        })
        .on("leave", async |socket: Socket, room: String| {
            socket.leave(room);
            own_rooms(&socket)
        })
        .on("rooms", async |socket: Socket| own_rooms(&socket))
        .on("fetch", async |socket: Socket, target: Target| {
            let found = target.operator(&socket).fetch_sockets().await?;
            let mut plain: Vec<_> = found.sockets.iter().map(plain_socket).collect();
            plain.sort_by(|a, b| a["id"].as_str().cmp(&b["id"].as_str()));
            Ok::<_, EmitError>(plain)
        })
        .on(
            "sockets-join",
            async |socket: Socket, (target, rooms): (Target, Vec<String>)| {
                target
                    .operator(&socket)
                    .sockets_join(rooms)
                    .await
                    .map(|()| true)
            },
        )
        .on(
            "sockets-leave",
            async |socket: Socket, (target, rooms): (Target, Vec<String>)| {
                target
                    .operator(&socket)
                    .sockets_leave(rooms)
                    .await
                    .map(|()| true)
            },
        )
        .on(
            "disconnect-sockets",
            async |socket: Socket, (target, close): (Target, bool)| {
                target.operator(&socket).disconnect_sockets(close).await
            },
        )
}

fn broadcasts(namespace: Namespace) -> Namespace {
    namespace
        .on("broadcast", async |socket: Socket, broadcast: Broadcast| {
            let operator = broadcast.target.operator(&socket);
            operator
                .emit(&broadcast.event, spread(&broadcast.args)?)
                .await?;
            Ok::<_, EmitError>(true)
        })
        .on(
            "broadcast-ack",
            async |socket: Socket, broadcast: Broadcast, ack: Ack| {
                let timeout = Duration::from_millis(broadcast.timeout);
                let operator = broadcast.target.operator(&socket).timeout(timeout);
                let args = spread(&broadcast.args).map_err(EmitError::from)?;
                let votes = operator
                    .emit_with_ack::<Value>(&broadcast.event, args)
                    .await?;
                ack.send(Votes {
                    answers: votes.answers,
                    missing: votes.missing.len(),
                })?;
                Ok::<_, AckError>(())
            },
        )
}

fn endings(namespace: Namespace, shared: &Arc<Shared>) -> Namespace {
    let (leaving, asking) = (Arc::clone(shared), Arc::clone(shared));
    namespace
        .on(
            "disconnect-me",
            async |socket: Socket, close: Option<bool>| {
                socket.disconnect(close.unwrap_or(false));
            },
        )
        .on("disconnect-me-close", async |socket: Socket| {
            socket.disconnect(true)
        })
        .on("panic", async |_: Socket| fail())
        .on("disconnect-reason", move |_: Socket, id: String| {
            let shared = Arc::clone(&asking);
            async move { shared.reasons.wait(&id).await }
        })
        .on_disconnect(move |socket: Socket, reason: DisconnectReason| {
            leaving.forget(&socket);
            leaving
                .reasons
                .open(socket.id().as_str(), reason.to_string());
            async {}
        })
}

fn fail() {
    panic!("the handler fails on purpose");
}

/// Who is meant by a broadcast, as the client says it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    from: Origin,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    flags: Vec<Flag>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Origin {
    Io,
    Socket,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
enum Flag {
    Volatile,
    Local,
    Broadcast,
}

impl Target {
    /// The chain of operators that an application would write.
    fn operator(&self, socket: &Socket) -> BroadcastOperator {
        let mut operator = match self.from {
            Origin::Io => socket.namespace(),
            Origin::Socket => socket.broadcast(),
        };
        for room in &self.to {
            operator = operator.to(room);
        }
        for room in &self.except {
            operator = operator.except(room);
        }
        if self.flags.contains(&Flag::Volatile) {
            operator = operator.volatile();
        }
        if self.flags.contains(&Flag::Local) {
            operator = operator.local();
        }
        operator
    }
}

#[derive(Deserialize)]
struct Broadcast {
    #[serde(flatten)]
    target: Target,
    event: String,
    args: Vec<Value>,
    #[serde(default)]
    timeout: u64,
}

#[derive(Serialize)]
struct Votes {
    answers: Vec<Value>,
    missing: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(room) => vec![room],
            Self::Many(rooms) => rooms,
        }
    }
}

/// What `set-data` attaches; wrapped, as the official package's data is an object as well.
#[derive(Serialize)]
struct Kept {
    value: serde_json::Value,
}

/// A list is one argument; here each of its items shall be one.
fn spread(list: &[Value]) -> Result<Args, ArgsError> {
    let one = list.into_args()?;
    let json = one.json();
    Args::from_text(json[1..json.len() - 1].into(), one.attachments().to_vec())
}

fn own_rooms(socket: &Socket) -> Vec<String> {
    let mut rooms = socket.rooms();
    rooms.retain(|room| room != socket.id().as_str());
    rooms.sort();
    rooms
}

fn plain_socket(socket: &RemoteSocket) -> serde_json::Value {
    let id = socket.id().as_str();
    let mut rooms: Vec<_> = socket.rooms().iter().filter(|room| *room != id).collect();
    rooms.sort();
    json!({ "id": id, "rooms": rooms, "data": socket.data_json().get("value") })
}

fn describe(socket: &Socket, headers: &[String]) -> serde_json::Value {
    let handshake = socket.handshake();
    let headers: HashMap<_, _> = headers
        .iter()
        .map(|name| (name, handshake.header(name)))
        .collect();
    json!({
        "id": socket.id().as_str(),
        "nsp": socket.namespace_name(),
        "rooms": own_rooms(socket),
        "query": query(handshake),
        "headers": headers,
        "auth": handshake.auth::<serde_json::Value>().unwrap_or_default(),
        "address": handshake.address().is_some(),
        "time": handshake.issued_millis() > 0,
    })
}

fn query(handshake: &Handshake) -> serde_json::Map<String, serde_json::Value> {
    handshake
        .queries()
        .into_iter()
        .map(|(key, value)| (key, value.into()))
        .collect()
}

/// What sockets leave for others to find.
#[derive(Default)]
struct Shared {
    released: Latch,
    reasons: Latch,
    memories: Mutex<HashMap<String, Memory>>,
}

#[derive(Default)]
struct Memory {
    notes: Vec<u64>,
    seen: Vec<String>,
}

impl Shared {
    fn of<T>(&self, socket: &Socket, look: impl FnOnce(&mut Memory) -> T) -> T {
        look(self.memories().entry(key(socket)).or_default())
    }

    fn forget(&self, socket: &Socket) {
        self.memories().remove(&key(socket));
    }

    fn memories(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients of revision 3 have one id in all their namespaces.
fn key(socket: &Socket) -> String {
    format!("{} {}", socket.namespace_name(), socket.id())
}

/// Values that can be waited for before they are there.
struct Latch(watch::Sender<HashMap<String, String>>);

impl Default for Latch {
    fn default() -> Self {
        Self(watch::Sender::new(HashMap::new()))
    }
}

impl Latch {
    fn open(&self, key: &str, value: String) {
        self.0.send_modify(|values| {
            values.insert(key.to_owned(), value);
        });
    }

    async fn wait(&self, key: &str) -> Option<String> {
        let mut values = self.0.subscribe();
        let values = values
            .wait_for(|values| values.contains_key(key))
            .await
            .ok()?;
        values.get(key).cloned()
    }
}
