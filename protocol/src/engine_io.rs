//! Engine.IO as bytes and packets, revisions 4 and 3: what a connection's transport carries.
//!
//! Everything here is sans-IO: text, bytes and times go in; packets, text and deadlines come out.
//! Sockets, HTTP and timers belong to `transport`; namespaces and events to `socket_io`.

pub mod open;
pub mod packet;
pub mod payload;
pub mod payload_v3;
pub mod session;
