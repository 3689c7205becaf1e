//! The formats that a client speaks: HTTP, WebSocket frames, Engine.IO and Socket.IO packets.
//!
//! Bytes in, facts out: nothing here knows a socket or a clock. Written for this tool alone, since a
//! client made of a server's codecs would agree with that server's mistakes.

pub(crate) mod http;
pub(crate) mod packet;
pub(crate) mod websocket;
