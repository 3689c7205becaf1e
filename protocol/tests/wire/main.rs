//! The messages of a cluster against captures of Node's adapters and emitters, by example and by
//! chance.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod captured;
mod captures;
mod extensions;
mod meaning;
mod properties;
mod signing;
mod tolerance;
