//! A Socket.IO server: Engine.IO 4 (and 3), Socket.IO 5, namespaces, rooms, acknowledgements and
//! broadcasts, for every official client.
//!
//! ```no_run
//! use roomcast::{Namespace, Server, Socket};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let io = Server::builder()
//!     .namespace(
//!         Namespace::new("/")
//!             .on_connect(async |socket: Socket| socket.join("lobby"))
//!             .on("chat message", async |socket: Socket, text: String| {
//!                 socket.to("lobby").emit("chat message", (socket.id(), text)).await
//!             }),
//!     )
//!     .build()
//!     .await?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! io.serve(listener, io.router()).await?;
//! # Ok(())
//! # }
//! ```

mod clock;
mod close;
mod ids;
mod line_limit;
mod metrics;
mod server;
mod transport;

pub use close::{CloseReason, Limit};
pub use prometheus::Registry;
pub use roomcast_adapter::{
    Answer, Answered, Attachment, Bus, BusError, BusFuture, BusHandle, Description, Gap, Health,
    JoinError, Listener, MemoryBus, NodeId, Position, PrivateRooms, Progress, Published, Question,
    RedisBus, RedisConfig, SocketId, StartError, Tracking,
};
/// Emitting from other processes, and the language of the cluster.
pub use roomcast_emitter as emitter;
pub use roomcast_protocol::args::{Args, ArgsError, FromArgs, IntoArgs, Value};
pub use roomcast_protocol::{
    message::Message,
    target::{Flags, Rooms, Target},
};
pub use server::{
    Ack, AckError, AllRooms, Answers, Argument, Arguments, BroadcastOperator, BuildError, Builder,
    Data, Delivery, DisconnectReason, EmitError, Event, Fetched, Handler, HandlerError,
    HandlerResult, Namespace, Outcome, Parser, Refused, RemoteSocket, Reply, Serve, Server,
    ServerAnswers, Socket, SocketOperator, State, place, shutdown_signal, way,
};
pub use transport::{
    client_files::ClientFiles,
    config::{Cookie, Limits},
    cors::Cors,
    handshake::Handshake,
};
