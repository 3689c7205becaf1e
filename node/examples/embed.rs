//! Socket.IO inside an axum application: its own routes, its own state, its own server loop.
//!
//! ```sh
//! PORT=3000 cargo run -p roomcast --example embed
//! curl --data 'It rains.' http://127.0.0.1:3000/news
//! ```
//!
//! Every client gets `tick` each second and `news` whenever somebody posts some.

use std::{env, error::Error, io::Write, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use roomcast::{Drain, Namespace, Server, Socket, shutdown_signal};
use tokio::{net::TcpListener, time::interval};

/// What the application's own handlers share; a handle of the server is cheap to clone.
#[derive(Clone)]
struct App {
    io: Server,
}

async fn publish(State(app): State<App>, news: String) -> Result<&'static str, StatusCode> {
    let sent = app.io.to("readers").emit("news", news).await;
    sent.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok("published\n")
}

async fn tick_every_second(io: Server) {
    let mut second = interval(Duration::from_secs(1));
    for count in 0_u64.. {
        second.tick().await;
        // Only an event that cannot be encoded is an error; without readers, nobody gets it.
        let _ = io.to("readers").emit("tick", count).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let readers = Namespace::new("/").on_connect(async |socket: Socket| socket.join("readers"));
    let io = Server::builder().namespace(readers).build().await?;
    let ticking = tokio::spawn(tick_every_second(io.clone()));
    let app = Router::new()
        .route("/", get(async || "news, as they come\n"))
        .route("/news", post(publish))
        .with_state(App { io: io.clone() })
        .merge(io.router());

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse::<u16>())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    // With it, handlers see the address of their client.
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let stop = async move {
        shutdown_signal().await;
        // Clients move to other servers one after the other, while their polls are still served.
        io.drain(Drain::default()).await;
        ticking.abort();
        io.close().await;
    };
    axum::serve(listener, service)
        .with_graceful_shutdown(stop)
        .await?;
    Ok(())
}
