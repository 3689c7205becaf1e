//! Socket.IO: the packets inside the messages of an Engine.IO connection.
//!
//! Protocol revision 5 with its default parser ([`decode`], [`encode`]) and with the MessagePack
//! parser ([`msgpack`]), and the replies to a CONNECT that clients of revision 2 expect
//! ([`connect`]). Sockets, namespaces and handlers belong to the server.

pub mod connect;
pub mod decode;
pub mod encode;
pub mod msgpack;
pub mod packet;
