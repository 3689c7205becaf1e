//! A chat with names and rooms, on the library alone.
//!
//! ```sh
//! PORT=3000 cargo run -p roomcast --example chat
//! ```
//!
//! A client gives its name when it connects, `io(url, { auth: { name: "Ada" } })`, and then emits
//! `join` (room), `leave` (room) and `say` (room, text), which returns the number of messages so far.
//! It receives `joined`, `left` and `said`.

use std::{
    env,
    error::Error,
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use roomcast::{
    EmitError, HandlerError, Handshake, Namespace, Refused, Server, Socket, State, shutdown_signal,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

#[derive(Deserialize, Serialize)]
struct User {
    name: String,
}

/// The number of messages since the start, which all handlers share.
#[derive(Default)]
struct Total(AtomicU64);

fn chat() -> Namespace {
    Namespace::new("/")
        .authorize(async |handshake: Handshake| {
            let user = handshake.auth::<User>().ok();
            user.ok_or_else(|| Refused::new("who are you? connect with auth: { name }"))
        })
        .on("join", async |socket: Socket, room: String| {
            socket.join(inner(&room))?;
            announce(&socket, "joined", &room).await
        })
        .on("leave", async |socket: Socket, room: String| {
            socket.leave(inner(&room));
            announce(&socket, "left", &room).await
        })
        .on(
            "say",
            async |socket: Socket, total: State<Total>, room: String, text: String| {
                let others = socket.to(inner(&room));
                others.emit("said", (room, name(&socket), text)).await?;
                Ok::<_, HandlerError>(total.0.fetch_add(1, Ordering::Relaxed) + 1)
            },
        )
        .on_disconnect(async |socket: Socket| {
            for room in socket.rooms() {
                if let Some(room) = room.strip_prefix("chat:") {
                    announce(&socket, "left", room).await?;
                }
            }
            Ok::<(), EmitError>(())
        })
}

/// Tells the others in a room. The result of a handler is its client's acknowledgement.
async fn announce(socket: &Socket, event: &str, room: &str) -> Result<(), EmitError> {
    let others = socket.to(inner(room));
    others.emit(event, (room, name(socket))).await.map(|_| ())
}

/// A room that clients may name. The prefix keeps them out of the private rooms, which are named
/// like the ids of sockets.
fn inner(room: &str) -> String {
    format!("chat:{room}")
}

fn name(socket: &Socket) -> String {
    socket
        .data::<User>()
        .map_or_else(String::new, |user| user.name.clone())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let io = Server::builder()
        .state(Total::default())
        .namespace(chat())
        .build()
        .await?;
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse::<u16>())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    io.serve(listener, io.router())
        .with_graceful_shutdown(shutdown_signal())
        .await?;
    Ok(())
}
