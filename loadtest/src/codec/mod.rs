//! The formats of a client: HTTP, WebSocket frames, Engine.IO and Socket.IO packets.
//!
//! No sockets and no clock. The codecs are written for this tool alone, because a client that
//! shares codecs with a server would not notice that server's mistakes.

pub(crate) mod http;
pub(crate) mod packet;
pub(crate) mod websocket;
