//! Connections: HTTP polling and WebSocket end in the same driver, the same outbox and the same
//! session.
//!
//! The layer above is an [`Protocol`](driver::Protocol) per connection, made by an
//! [`Acceptor`](engine::Acceptor). Nothing here knows of namespaces, events or rooms.

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
mod polling;
pub(crate) mod routes;
pub(crate) mod serve;
mod sessions;
mod stream;
mod upgrade;

use roomcast_protocol::websocket;
