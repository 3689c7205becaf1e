//! The use of rooms in guides to Socket.IO 1 and 2, for clients of that time and for new ones.
//!
//! ```sh
//! PORT=3000 cargo run -p roomcast --example rooms
//! ```
//!
//! | a client emits | what happens |
//! |---|---|
//! | `join` (room), `leave` (room) | it enters or leaves the room |
//! | `say` (room, text) | the other members receive `said` (text) |
//! | `announce` (room, text) | all members, the client too, receive `announced` (text) |
//! | `whisper` (id, text) | the socket with this id receives `whispered` (sender's id, text) |
//!
//! The members of a room receive `left` (id) when one of them disconnects.

use std::{env, error::Error, io::Write};

use roomcast::{EmitError, Namespace, Server, Socket, shutdown_signal};
use tokio::net::TcpListener;

fn rooms() -> Namespace {
    Namespace::new("/")
        .on("join", async |socket: Socket, room: String| {
            socket.join(inner(&room))
        })
        .on("leave", async |socket: Socket, room: String| {
            socket.leave(inner(&room));
        })
        .on("say", async |socket: Socket, room: String, text: String| {
            let others = socket.to(inner(&room));
            others.emit("said", text).await.map(|_| ())
        })
        .on(
            "announce",
            async |socket: Socket, room: String, text: String| {
                let all = socket.namespace().to(inner(&room));
                all.emit("announced", text).await.map(|_| ())
            },
        )
        .on(
            "whisper",
            async |socket: Socket, id: String, text: String| {
                // Every socket is in a room that is named by its id.
                let one = socket.to(id);
                one.emit("whispered", (socket.id(), text)).await.map(|_| ())
            },
        )
        .on_disconnect(async |socket: Socket| {
            for room in socket.rooms() {
                if room.starts_with("room:") {
                    socket.to(room).emit("left", socket.id()).await?;
                }
            }
            Ok::<(), EmitError>(())
        })
}

/// A room that clients may name. The prefix keeps them out of the rooms that are named by ids.
fn inner(room: &str) -> String {
    format!("room:{room}")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let io = Server::builder()
        .namespace(rooms())
        // Clients of Socket.IO 1 and 2 speak revision 3 of Engine.IO.
        .allow_eio3(true)
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
