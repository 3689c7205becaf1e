//! A Socket.IO server: Engine.IO 4 (and 3), Socket.IO 5, namespaces, rooms, acknowledgements and
//! broadcasts, for every official client. Several servers form a cluster over Redis, which Node.js
//! servers can be part of.
//!
//! ```no_run
//! use roomcast::{HandlerResult, Namespace, Server, Socket, State, shutdown_signal};
//!
//! /// What all handlers share.
//! struct Motd(String);
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let chat = Namespace::new("/")
//!     .on_connect(async |socket: Socket| socket.join("lobby"))
//!     .on("motd", async |motd: State<Motd>| motd.0.clone())
//!     .on("message", async |socket: Socket, text: String| -> HandlerResult {
//!         socket.to("lobby").emit("message", (socket.id(), text)).await?;
//!         Ok(())
//!     });
//! let io = Server::builder()
//!     .state(Motd("Welcome".to_owned()))
//!     .namespace(chat)
//!     .build()
//!     .await?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! io.serve(listener, io.router())
//!     .with_graceful_shutdown(shutdown_signal())
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to begin
//!
//! - [`Namespace`] defines handlers: authorization, and the handlers of events.
//! - [`Socket`] is a client in a namespace: rooms, emits, acknowledgements, data.
//! - [`BroadcastOperator`] selects sockets by rooms and acts on them. [`Server::to`],
//!   [`Server::of`] and [`Socket::to`] make one.
//! - [`Server`] is the handle of the server: its routes, its broadcasts, its shutdown, its metrics.
//! - [`Builder`] has the settings, [`Limits`] the bounds of everything that clients can fill.
//!
//! # Guarantees
//!
//! Handlers of one client start in the order of its events, and emits to one client
//! arrive in order. An emit that has resolved is in the outbox of every selected socket
//! of this node. Only volatile packets may be dropped silently. A client that does not
//! read is disconnected, with a reason and a metric, before it fills memory. In a
//! cluster, messages that may have been lost are reported as a [`Gap`].
//!
//! # Features
//!
//! `program` (default) adds the parts that only the program `roomcast` needs. Libraries and
//! applications can do without: `default-features = false`.

mod clock;
mod close;
mod ids;
mod line_limit;
mod metrics;
mod rate;
mod server;
mod transport;

pub use close::{CloseReason, Limit};
pub use prometheus::Registry;
pub use rate::Rate;
pub use roomcast_adapter::{
    BusError, Gap, Health, HistoryEntry, HistoryLimits, JoinError, JournalLimits, MemoryBus,
    NodeId, Position, PrivateRooms, RedisBus, RedisConfig, RedisRights, SocketId, StartError,
};
/// Emitting from other processes, and the language of the cluster.
pub use roomcast_emitter as emitter;
pub use roomcast_emitter::{Dialect, RedisUrl};
pub use roomcast_protocol::{
    args::{Args, ArgsError, FromArgs, IntoArgs, Value},
    channels,
    event::is_reserved,
    id::EngineId,
    pakyow,
    receipt::Receipt,
    relay, signing, syncano,
    target::Rooms,
};
pub use server::{
    Ack, AckError, AllRooms, Answers, Argument, Arguments, BroadcastOperator, BuildError, Builder,
    Data, Delivery, DisconnectReason, Drain, EmitError, Event, Fetched, ForeignRequest, Handler,
    HandlerError, HandlerResult, History, HistoryError, JoinFromError, Namespace, Observation,
    Observer, Outcome, Parser, PublishError, Recovering, Recovery, Refused, RemoteSocket, Reply,
    RoomChange, RoomChanges, Serve, Server, ServerAnswers, Socket, SocketOperator, State, place,
    shutdown_signal, way,
};
pub use transport::{
    client_address::{
        ClientAddress, ForwardedHeader, InvalidNetwork, TrustedProxies, client_network,
    },
    client_files::ClientFiles,
    config::{Cookie, Limits, RatePolicy},
    cors::Cors,
    handshake::Handshake,
    tls::{Certificate, CertificateError, Tls, TlsVersion},
};

/// Sockets of clients without Socket.IO: an event stream, a parked request, a plain
/// WebSocket.
///
/// Such a client is a [`Socket`] of a namespace like any other: the namespace's authorizers admit
/// it, it joins rooms, receives events emitted to them from any node, and is counted, limited,
/// listed and disconnected like others. Only its bytes differ: a [`Form`](plain::Form) writes each
/// event for it. [`Server::open_stream`] and [`Server::open_websocket`] open one.
///
/// It has no acknowledgements: a broadcast with acknowledgement reaches it but does not
/// wait for it.
pub mod plain {
    pub use crate::{
        server::{Open, OpenError, Stream},
        transport::{
            parking::Parking,
            plain::{Chunk, Event, Form, Heartbeat},
        },
    };
}

/// The types that a server and its bus exchange, for authors of buses. Applications use
/// [`MemoryBus`], [`RedisBus`] or [`Builder::redis`].
pub mod bus {
    #[doc(hidden)]
    pub use roomcast_adapter::subscriber;
    pub use roomcast_adapter::{
        Answer, Answered, Attachment, Bus, BusFuture, BusHandle, Description, JournalEntry,
        JournalPage, Listener, Log, LogLimits, Page, Peer, Position, Progress, Published, Question,
        Session, Sessions, Taken, Tracking,
    };
    pub use roomcast_protocol::{
        message::{Broadcast, Message},
        target::{Flags, Target},
    };
}
