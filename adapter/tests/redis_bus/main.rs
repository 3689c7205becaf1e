//! What the bus over Redis promises beyond what every bus does, with real servers: bytes of all
//! kinds, which channels a node hears, who is counted and waited for, outages, rights.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod deployment;
mod drops;
mod foreign_joins;
mod history;
mod hostile;
mod interest;
mod members;
mod names;
mod outage;
mod peers;
mod signing;
mod stand_in;
mod start;
mod streams;
mod ways;

#[path = "../contract/node.rs"]
mod node;
#[path = "../../../emitter/tests/support/mod.rs"]
mod support;
