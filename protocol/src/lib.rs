//! The protocols of Roomcast, sans-IO: bytes, packets and times go in; packets, bytes and
//! deadlines come out. Nothing in this crate opens a socket, reads a clock or draws a
//! random number. CI builds it for `wasm32-unknown-unknown`, which proves it.
//!
//! Two protocols meet here. Clients use Engine.IO ([`engine_io`], over [`websocket`]
//! frames or HTTP bodies) and Socket.IO above it ([`socket_io`]). The nodes of a cluster
//! exchange a [`message`] or a [`question`], which [`wire`] encodes for the [`channel`]s
//! of Redis, and which nodes with a common key sign ([`signing`]). A node [relays](relay)
//! requests to the node that has their session. Balancers put a
//! [`proxy`] header before a client's first byte. Clients of [`pakyow`] and [`channels`]
//! speak JSON over a plain WebSocket, those of the latter and of [`syncano`] over HTTP,
//! too.
//!
//! ```text
//! client ── websocket ── engine_io ── socket_io ──┐
//!                                                 ├── args, event, id, target
//! Redis ─── channel ──── wire ── message, question┘
//!                         └── msgpack
//! ```
//!
//! Both share the arguments of events: [`args`] encodes them once, and [`msgpack`] transcodes them.
//! Every decoder takes hostile input: it returns an error and never panics, and both the memory and
//! the stack that it uses are bounded by its limits and by the size of the input.

pub mod args;
pub mod channel;
pub mod channels;
pub mod engine_io;
pub mod event;
pub mod id;
pub mod message;
pub mod msgpack;
#[cfg(test)]
#[path = "../tests/support/notation.rs"]
mod notation;
pub mod pakyow;
pub mod proxy;
pub mod question;
mod raw;
pub mod receipt;
pub mod relay;
pub mod signing;
pub mod socket_io;
pub mod syncano;
pub mod target;
pub mod time;
pub mod websocket;
pub mod wire;

/// The examples of the crate's README, compiled as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
