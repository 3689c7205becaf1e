//! The server under test: a node of a cluster on the library's public API, as a user would write it.
//!
//! Its clients join rooms. What it is told, it does as an application's own tasks would: it emits to
//! a room, and has its sockets join and leave.

use std::collections::VecDeque;
use std::io::{self, BufRead as _};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use roomcast::emitter::channel::{Dialect, Mode};
use roomcast::{EmitError, Namespace, RedisConfig, Server, Socket};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;

use crate::PeerArgs;
use crate::payload::Label;
use crate::peer::{Command, ROOM, Steps, short_lived, tell};

/// Serves on a loopback port, with one worker, until standard input ends.
pub(crate) fn serve(args: &PeerArgs) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let url = format!("redis://127.0.0.1:{}", args.redis);
    let mut config = RedisConfig::new(url.parse().map_err(io::Error::other)?);
    if args.sharded {
        config.dialect = Dialect::Sharded(Mode::Dynamic);
    }
    let (sender, commands) = mpsc::unbounded_channel();
    thread::spawn(move || {
        let lines = io::stdin().lock().lines();
        // Whoever writes does so when it has the last answer: nothing piles up.
        lines
            .map_while(Result::ok)
            .all(|line| sender.send(line).is_ok())
    });
    let run = run(args.port, args.rooms.clone(), config, commands);
    // Spawned, so that the workers do everything and the thread that waits here does nothing.
    runtime.block_on(async move { tokio::spawn(run).await.map_err(io::Error::other)? })
}

type Sockets = Arc<Mutex<Vec<Socket>>>;

async fn run(
    port: u16,
    rooms: String,
    config: RedisConfig,
    mut commands: mpsc::UnboundedReceiver<String>,
) -> io::Result<()> {
    let sockets = Sockets::default();
    let connected = Arc::clone(&sockets);
    let rooms: Arc<str> = rooms.into();
    let namespace = Namespace::new("/")
        .on_connect(move |socket: Socket| {
            let connected = Arc::clone(&connected);
            async move {
                let mut connected = connected.lock().unwrap_or_else(PoisonError::into_inner);
                connected.push(socket);
            }
        })
        .on("join", move |socket: Socket, room: String| {
            let rooms = Arc::clone(&rooms);
            async move { socket.join(format!("{rooms}{room}")) }
        });
    let io = Server::builder()
        .namespace(namespace)
        .redis_with(config)
        .build()
        .await
        .map_err(io::Error::other)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let serving = tokio::spawn(io.serve(listener, io.router()).into_future());
    tell(&json!({ "listening": port }))?;
    let published = Arc::new(AtomicU32::new(0));
    while let Some(line) = commands.recv().await {
        let answer = match Command::parse(&line) {
            Some(Command::Publish {
                duration,
                concurrency,
            }) => publish(&io, &published, duration, concurrency).await,
            Some(Command::Churn { joins }) => churn(&sockets, joins).await,
            Some(Command::Received) => received(&io.metrics()),
            None => json!({ "error": "unknown command" }),
        };
        tell(&answer)?;
    }
    serving.abort();
    Ok(())
}

async fn publish(
    io: &Server,
    published: &Arc<AtomicU32>,
    duration: Duration,
    concurrency: usize,
) -> Value {
    let end = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        tasks.spawn(publish_until(end, io.clone(), Arc::clone(published)));
    }
    while let Some(outcome) = tasks.join_next().await {
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return json!({ "error": error.to_string() }),
            Err(error) => return json!({ "error": error.to_string() }),
        }
    }
    json!({ "published": published.load(Ordering::Relaxed) })
}

async fn publish_until(
    end: Instant,
    io: Server,
    published: Arc<AtomicU32>,
) -> Result<(), EmitError> {
    while Instant::now() < end {
        let label = Label {
            sender: 0,
            sequence: published.fetch_add(1, Ordering::Relaxed),
        };
        let mut text = Vec::new();
        label.write(&mut text);
        let text = str::from_utf8(&text).expect("payloads are ASCII");
        io.to(ROOM).emit("cast", text).await?;
    }
    Ok(())
}

/// Joins and leaves as [`Steps`] has it, one socket after the other.
async fn churn(sockets: &Sockets, joins: usize) -> Value {
    let sockets = std::mem::take(&mut *sockets.lock().unwrap_or_else(PoisonError::into_inner));
    let socket_of = |number: usize| &sockets[number % sockets.len()];
    let started = time::Instant::now();
    let mut joined = VecDeque::new();
    for step in Steps::new(joins) {
        time::sleep_until(started + step.at).await;
        for number in step.joins.clone() {
            if let Err(error) = socket_of(number).join(short_lived(number)) {
                return json!({ "error": error.to_string() });
            }
        }
        joined.push_back(step.joins);
        if joined.len() > Steps::LIFETIME {
            let numbers = joined.pop_front().into_iter().flatten();
            numbers.for_each(|number| socket_of(number).leave(short_lived(number)));
        }
    }
    let numbers = joined.into_iter().flatten();
    numbers.for_each(|number| socket_of(number).leave(short_lived(number)));
    json!({ "joined": joins })
}

/// What came over the bus, by the node's own account.
fn received(metrics: &str) -> Value {
    let sum = |name: &str| -> f64 {
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.sum()
    };
    json!({
        "received": sum("roomcast_bus_messages_received_total"),
        "dropped": sum("roomcast_bus_messages_dropped_total"),
    })
}
