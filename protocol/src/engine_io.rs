//! Engine.IO, revisions 4 and 3: the packets that a connection's transport carries.
//!
//! [`open`] is the handshake, [`packet`] decodes a single packet, [`payload`] and [`payload_v3`]
//! several packets in one HTTP body, and [`session`] is the heartbeat. Sockets, HTTP and timers
//! belong to the server's transport; namespaces and events to [`crate::socket_io`].

pub mod open;
pub mod packet;
pub mod payload;
pub mod payload_v3;
pub mod session;
