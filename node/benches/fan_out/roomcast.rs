//! The server under test: three handlers on the library's public API, as a user would write them.
//!
//! It knows nothing of the benchmark; what it measures is what the library costs.

use std::io;
use std::net::Ipv4Addr;

use axum::Router;
use roomcast::{Namespace, Server, Socket};
use tokio::net::TcpListener;

/// Serves on a loopback port, with `threads` workers, until the process is ended.
pub(crate) fn serve(port: u16, threads: usize) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    // Spawned, so that the workers do everything and the thread that waits here does nothing.
    runtime.block_on(async move { tokio::spawn(run(port)).await.map_err(io::Error::other)? })
}

async fn run(port: u16) -> io::Result<()> {
    let namespace = Namespace::new("/")
        .on("join", async |socket: Socket, room: String| {
            socket.join(room)
        })
        .on(
            "cast",
            async |socket: Socket, (room, text): (String, String)| {
                socket.namespace().in_(room).emit("cast", text).await
            },
        )
        .on("echo", async |_: Socket, text: String| text);
    let io = Server::builder()
        .namespace(namespace)
        .build()
        .await
        .map_err(io::Error::other)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    io.serve(listener, Router::new().merge(io.router()))
        .await
        .map_err(io::Error::other)
}
