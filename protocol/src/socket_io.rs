//! Socket.IO as packets and text: what the messages of a connection mean.
//!
//! Everything here is sans-IO: the payload of an Engine.IO message goes in, packets come out, and
//! the other way round. Protocol revision 5 with its default parser, the replies that clients of
//! revision 2 expect, and the MessagePack parser. Sockets, namespaces and handlers belong to
//! `server`; heartbeats and transports are not known here.

pub mod connect;
pub mod decode;
pub mod encode;
pub mod json;
pub mod msgpack;
pub mod packet;
