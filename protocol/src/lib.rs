//! The protocols of Roomcast as bytes and meaning, without I/O: what clients speak ([`engine_io`],
//! [`socket_io`]) and what the nodes of a cluster speak ([`wire`] on [`channel`]s).
//!
//! [`args`] holds event arguments encoded once, [`msgpack`] transcodes them, [`event`] knows the names
//! that an event may not have, [`target`] names the receivers of a broadcast, [`message`] what nodes
//! send each other and [`question`] what they ask each other. Nothing in this crate opens a socket,
//! reads a clock or draws a random number.
#![allow(missing_docs)]

pub mod args;
pub mod channel;
pub mod engine_io;
pub mod event;
pub mod id;
pub mod message;
pub mod msgpack;
pub mod question;
mod raw;
pub mod socket_io;
pub mod target;
pub mod time;
pub mod websocket;
pub mod wire;
