//! The events of the race on socketioxide, alone or with its Redis adapter.
//!
//! Follows its documentation, with defaults, on axum; without Nagle's algorithm, like all servers of the
//! race.

use std::io;

use axum::{Router, serve::ListenerExt as _};
use roomcast_race_peers::options::{self, Options};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use socketioxide::{
    SocketIo,
    adapter::Adapter,
    extract::{AckSender, Data, SocketRef},
    layer::SocketIoLayer,
};
use socketioxide_redis::{RedisAdapter, RedisAdapterCtr, drivers::redis::redis_client as redis};
use tokio::net::TcpListener;

fn main() -> io::Result<()> {
    let options = Options::of_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.workers)
        .enable_all()
        .build()?;
    // Spawned, so the workers do all work and the waiting thread none.
    let serving = runtime.spawn(serve(options));
    runtime.block_on(serving).map_err(io::Error::other)?
}

async fn serve(options: Options) -> io::Result<()> {
    let Some(url) = &options.redis else {
        let (layer, io) = SocketIo::new_layer();
        io.ns("/", on_connect);
        return listen(&options, layer).await;
    };
    // The adapter requires RESP3.
    let client = redis::Client::open(format!("{url}?protocol=resp3")).map_err(io::Error::other)?;
    let adapter = RedisAdapterCtr::new_with_redis(&client).await;
    let (layer, io) = SocketIo::builder()
        .with_adapter::<RedisAdapter<_>>(adapter.map_err(io::Error::other)?)
        .build_layer();
    io.ns("/", on_connect).await.map_err(io::Error::other)?;
    listen(&options, layer).await
}

async fn listen<A: Adapter>(options: &Options, layer: SocketIoLayer<A>) -> io::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    options::announce(listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        // The connection may have ended already.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, Router::new().layer(layer)).await
}

async fn on_connect<A: Adapter>(socket: SocketRef<A>) {
    socket.on("join", join);
    socket.on("leave", leave);
    socket.on("message", message);
    socket.on("echo", echo);
}

async fn join<A: Adapter>(
    socket: SocketRef<A>,
    Data((room, _)): Data<(String, Manner)>,
    ack: AckSender<A>,
) {
    socket.join(room);
    let _ = ack.send(&());
}

async fn leave<A: Adapter>(
    socket: SocketRef<A>,
    Data((room, _)): Data<(String, Manner)>,
    ack: AckSender<A>,
) {
    socket.leave(room);
    let _ = ack.send(&());
}

async fn message<A: Adapter>(
    socket: SocketRef<A>,
    Data((room, data)): Data<(String, Value)>,
    ack: AckSender<A>,
) {
    let message = Message {
        room: &room,
        from: socket.id.to_string(),
        data,
    };
    // Members with full queues cause an error after all others have been served; the ledger of the
    // load test counts their losses.
    let _ = socket.within(room.clone()).emit("message", &message).await;
    let _ = ack.send(&());
}

async fn echo<A: Adapter>(Data(payload): Data<Value>, ack: AckSender<A>) {
    let _ = ack.send(&payload);
}

/// Members are never notified of joins and leaves, so the option is ignored.
#[derive(Deserialize)]
struct Manner {}

#[derive(Serialize)]
struct Message<'a> {
    room: &'a str,
    from: String,
    data: Value,
}
