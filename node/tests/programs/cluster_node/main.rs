//! One server of a cluster that is told what to do: what the end-to-end tests of clusters talk to.
//!
//! Written on the public API like any application. Its configuration, commands and output are
//! described at the top of `node/tests/clients/cluster/node-peer.js`, which is the same server on the
//! official packages; a change in one is made in the other.

use std::{
    collections::HashMap,
    future::{IntoFuture, poll_fn},
    io::{self, BufRead, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::{Duration, SystemTime},
};

use roomcast::{
    Args, BroadcastOperator, DisconnectReason, Gap, HistoryLimits, Namespace, PrivateRooms,
    Recovery, RedisConfig, Server, Socket,
    emitter::{Dialect, Mode, Parser},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
};

mod commands;
mod values;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    name: String,
    redis: String,
    dialect: String,
    prefix: String,
    parser: String,
    specific_responses: bool,
    recovery: bool,
    private_rooms: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "node".into(),
            redis: "redis://127.0.0.1".into(),
            dialect: "classic".into(),
            prefix: "socket.io".into(),
            parser: "msgpack".into(),
            specific_responses: false,
            recovery: false,
            private_rooms: "auto".into(),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some("--config"), Some(text)) = (args.next().as_deref(), args.next()) else {
        return Err("usage: cluster_node --config '<json>'".into());
    };
    let config: Config = serde_json::from_str(&text)?;
    let sockets = Sockets::default();
    let mut builder = Server::builder()
        .redis_with(redis(&config)?)
        .on_gap(|gap: Gap| async move {
            say(&json!({ "gap": { "from": millis(gap.from), "to": millis(gap.to) } }));
        });
    for name in ["/", "/chat"] {
        let namespace = everywhere(Namespace::new(name), name, &config, &sockets);
        builder = builder.namespace(namespace);
    }
    let dynamic = "/org-{id}";
    let namespace = everywhere(Namespace::matching(dynamic), dynamic, &config, &sockets);
    builder = builder.namespace(namespace);
    let server = builder.build().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&json!({ "listening": listener.local_addr()?.port() }));
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Arc::new(Notify::new());
    let stopping = Arc::clone(&stop);
    let serving = server
        .serve(listener, server.router())
        .with_graceful_shutdown(async move { stopping.notified().await });
    let serving = tokio::spawn(serving.into_future());
    let obeying = tokio::spawn(obey(server, sockets));
    terminate.recv().await;
    stop.notify_one();
    // A polling client that is gone never fetches its close packet.
    tokio::time::timeout(Duration::from_secs(3), serving)
        .await
        .map_or(Ok(()), |ended| ended?)?;
    obeying.abort();
    Ok(())
}

fn redis(config: &Config) -> Result<RedisConfig, Failure> {
    let mut redis = RedisConfig::new(config.redis.parse()?);
    redis.prefix.clone_from(&config.prefix);
    redis.dialect = match &*config.dialect {
        "classic" => Dialect::Classic,
        "sharded-static" => Dialect::Sharded(Mode::Static),
        "sharded-dynamic" => Dialect::Sharded(Mode::Dynamic),
        "sharded-dynamic-private" => Dialect::Sharded(Mode::DynamicPrivate),
        "streams" => Dialect::Streams,
        other => return Err(format!("no dialect is called {other}").into()),
    };
    redis.parser = match &*config.parser {
        "msgpack" => Parser::Msgpack,
        "json" => Parser::Json,
        other => return Err(format!("no parser is called {other}").into()),
    };
    redis.private_rooms = match &*config.private_rooms {
        "auto" => PrivateRooms::Auto,
        "pattern" => PrivateRooms::Pattern,
        "channel" => PrivateRooms::Channel,
        other => return Err(format!("private rooms are not found by {other}").into()),
    };
    redis.specific_responses = config.specific_responses;
    Ok(redis)
}

fn everywhere(
    namespace: Namespace,
    name: &'static str,
    config: &Config,
    sockets: &Sockets,
) -> Namespace {
    let (coming, going) = (sockets.clone(), sockets.clone());
    let server: Arc<str> = config.name.as_str().into();
    let namespace = if config.recovery {
        namespace.recovery(Recovery::default())
    } else {
        namespace.history(HistoryLimits::default())
    };
    namespace
        .on_connect(move |socket: Socket| {
            coming.all().insert(key(&socket), socket);
            async {}
        })
        .on_disconnect(move |socket: Socket, _: DisconnectReason| {
            going.all().remove(&key(&socket));
            async {}
        })
        .on_server_side("note", move |_: BroadcastOperator, args: Args| {
            let note = json!({ "namespace": name, "args": values::shown(&args) });
            say(&json!({ "note": note }));
            async {}
        })
        .on_server_side("question", move |_: BroadcastOperator, asked: String| {
            let answer = format!("{server}: {asked}");
            async move { answer }
        })
}

/// Carries out the commands of standard input. Each starts before the next is read, so that what it
/// publishes comes before what the next one does; those that have to wait do so side by side.
async fn obey(server: Server, sockets: Sockets) {
    let (sender, mut lines) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let mut running = Box::pin(commands::run(server.clone(), sockets.clone(), line));
        let is_waiting = poll_fn(|context| {
            let polled = running.as_mut().poll(context);
            Poll::Ready(polled.is_pending())
        });
        if is_waiting.await {
            tokio::spawn(running);
        }
    }
}

/// The sockets of this server, by namespace and id.
#[derive(Clone, Default)]
struct Sockets(Arc<Mutex<HashMap<(String, String), Socket>>>);

impl Sockets {
    fn find(&self, namespace: &str, id: &str) -> Result<Socket, Failure> {
        let known = self.all().get(&(namespace.into(), id.into())).cloned();
        known.ok_or_else(|| format!("no socket {id} here").into())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(String, String), Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(socket: &Socket) -> (String, String) {
    (
        socket.namespace_name().into(),
        socket.id().as_str().to_owned(),
    )
}

fn millis(time: SystemTime) -> u128 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis())
}

/// One line on standard output. Who does not read any more has gone, and ends this server.
fn say(value: &serde_json::Value) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{value}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}
