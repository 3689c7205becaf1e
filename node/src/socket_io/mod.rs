//! Socket.IO as packets and text: what the messages of a connection mean.
//!
//! Everything here is sans-IO: the payload of an Engine.IO message goes in, packets come out, and
//! the other way round. Protocol revision 5 with its default parser, the replies that clients of
//! revision 2 expect, and the MessagePack parser. Sockets, namespaces and handlers belong to
//! `server`; heartbeats and transports are not known here.

pub(crate) mod connect;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod json;
pub(crate) mod msgpack;
pub(crate) mod packet;
