//! One connection for each topic, and an emitter in another process, as in guides to Socket.IO 1 and 2.
//!
//! ```sh
//! REDIS=redis://127.0.0.1 PORT=3000 cargo run -p roomcast --example topics
//! roomcast emit --redis redis://127.0.0.1 --room weather news '"It rains"'
//! ```
//!
//! A client names its topic in the query of the connection, `io(url, { query: { topic: "weather" } })`.
//! With `forceNew: true`, or `"force new connection": true` in those guides, a page opens a connection
//! for each topic. Clients of a topic receive the `news` that any of them, or any emitter, sends to it.

use std::{env, error::Error, io::Write};

use roomcast::{Handshake, Namespace, Refused, Server, Socket, shutdown_signal};
use serde::Serialize;
use tokio::net::TcpListener;

/// The topics that exist. Rooms that clients name need a check or a prefix, because every socket is in
/// a room that is named by its id.
const TOPICS: [&str; 3] = ["weather", "traffic", "sports"];

#[derive(Serialize)]
struct Topic(String);

fn topics() -> Namespace {
    Namespace::new("/")
        .authorize(async |handshake: Handshake| {
            let asked = handshake.query("topic").unwrap_or_default();
            let known = TOPICS.contains(&&*asked);
            known
                .then_some(Topic(asked))
                .ok_or_else(|| Refused::new("no such topic"))
        })
        .on_connect(async |socket: Socket| socket.join(topic(&socket)))
        .on("news", async |socket: Socket, text: String| {
            let all = socket.namespace().to(topic(&socket));
            all.emit("news", text).await.map(|_| ())
        })
}

fn topic(socket: &Socket) -> String {
    socket
        .data::<Topic>()
        .map_or_else(String::new, |topic| topic.0.clone())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut builder = Server::builder().namespace(topics()).allow_eio3(true);
    if let Ok(url) = env::var("REDIS") {
        builder = builder.redis(&url);
    }
    let io = builder.build().await?;
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse::<u16>())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    io.serve(listener, io.router())
        .with_graceful_shutdown(shutdown_signal())
        .await?;
    Ok(())
}
