//! The smallest server: everybody is in one room, and hears what the others write.
//!
//! ```sh
//! cargo run -p roomcast --example hello
//! ```

use roomcast::{Namespace, Server, Socket};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let io = Server::builder()
        .namespace(
            Namespace::new("/")
                .on_connect(async |socket: Socket| socket.join("lobby"))
                .on("chat message", async |socket: Socket, text: String| {
                    socket.to("lobby").emit("chat message", text).await
                }),
        )
        .build()
        .await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    io.serve(listener, io.router()).await?;
    Ok(())
}
