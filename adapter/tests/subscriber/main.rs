//! The subscriber with real Redis servers: what it delivers, what it subscribes, how it loses its
//! connection and recovers.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod delivery;
mod losses;
mod proxy;
mod recorder;
#[path = "../../../emitter/tests/support/mod.rs"]
mod redis;
mod server;
mod sharded;
mod subscribing;
