//! Namespaces, sockets and handlers: the library's API, and its run-time parts.
//!
//! ```text
//! application ── Builder ──► Server ── of, to ──► BroadcastOperator ──┐
//!      │                       │                                       ▼
//!      └── Namespace ──► Handlers ──────────────────────────► LiveNamespace ── Bus
//!                              ▲                                       ▲
//! transport ── Protocol ──► Client ── dispatch, InFlight ──► Socket ───┘
//! ```
//!
//! A [`Namespace`] is a definition and never changes after the server is built. A live
//! namespace has the sockets. A client is a connection as Socket.IO sees it; only the
//! connection's task uses it.

mod ack;
mod broadcast;
mod builder;
mod catch_up;
mod client;
mod cluster;
mod data;
mod dispatch;
mod drain;
mod error;
mod gaps;
mod handler;
mod history;
mod in_flight;
mod journal;
mod live_namespace;
mod namespace;
mod observe;
mod packets;
mod plain;
mod rates;
mod recovery;
mod relay;
mod remote_socket;
mod room_changes;
mod serve;
#[expect(clippy::module_inception, reason = "the field's word for it")]
mod server;
mod server_side;
mod socket;
mod tasks;

pub use ack::{Ack, Answers};
pub use broadcast::{AllRooms, BroadcastOperator, Delivery};
pub use builder::Builder;
pub use data::Data;
pub use drain::Drain;
pub use error::{
    AckError, BuildError, EmitError, HandlerError, HandlerResult, HistoryError, JoinFromError,
    PublishError, Refused,
};
pub use handler::{
    Argument, Arguments, Event, Handler, Outcome, Recovering, Reply, State, place, way,
};
pub use history::History;
pub use namespace::Namespace;
pub use observe::{Observation, Observer};
pub use packets::Parser;
pub use plain::{Open, OpenError, Stream};
pub use recovery::Recovery;
pub use relay::ForeignRequest;
pub use remote_socket::{Fetched, RemoteSocket};
pub use room_changes::{RoomChange, RoomChanges};
pub use serve::{Serve, shutdown_signal};
pub use server::Server;
pub use server_side::ServerAnswers;
pub use socket::{DisconnectReason, Socket, SocketOperator};
