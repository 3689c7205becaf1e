//! The language of a Roomcast cluster: what is said, and to whom.
//!
//! `args` holds event arguments encoded once, `msgpack` transcodes them, `target` says who shall
//! receive. Nothing here knows sockets, HTTP or threads.

pub mod target;
