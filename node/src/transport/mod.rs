//! Connections over HTTP polling and WebSocket, which share the driver, the outbox and the session.
//!
//! The layer above is a [`Protocol`](driver::Protocol) per connection, made by an
//! [`Acceptor`](engine::Acceptor). Nothing here knows of namespaces, events or rooms.
//!
//! ```text
//! serve ─ preamble           accepts connections, and what comes before HTTP
//!   ├─ http_stream           carries HTTP until it ends or becomes a WebSocket
//!   └─ parking               awaits a response without the memory of HTTP
//!   └─ routes ─ cors         which request opens, polls, posts or upgrades
//!        ├─ polling          a poll, a posted body
//!        └─ upgrade ─ stream a new WebSocket, or a probe of one; tls_stream if it is over TLS
//! plain                      connections without Engine.IO: their form, a stream's consumer
//! driver                     the task of a connection: read, handle, write
//!   └─ connection            one lock around connection_state (pure), stream and polling
//! lane ─ sessions (pure)     the task of a worker: flush dirty connections, due timers
//! engine                     what they share
//!   ├─ admission             limits that can be replaced
//!   └─ client_address        where a client is, if a proxy says so
//! ```

pub(crate) mod admission;
mod backlog;
pub(crate) mod client_address;
pub(crate) mod client_files;
pub(crate) mod config;
pub(crate) mod connection;
mod connection_state;
pub(crate) mod cors;
pub(crate) mod driver;
pub(crate) mod engine;
pub(crate) mod frame;
pub(crate) mod handshake;
mod http_stream;
mod lane;
mod outbox;
pub(crate) mod parking;
pub(crate) mod plain;
mod polling;
pub(crate) mod preamble;
pub(crate) mod refusals;
pub(crate) mod routes;
pub(crate) mod serve;
mod sessions;
pub(crate) mod stream;
pub(crate) mod tls;
mod tls_stream;
pub(crate) mod upgrade;

use roomcast_protocol::websocket;
