//! Socket.IO packets as frames, in the server's encoding.
//!
//! An event is encoded once for all its recipients, so the parser belongs to the server
//! and not to the client. While nothing else is queued, a reply to a packet goes into the turn's
//! own buffer and leaves with the other replies in one write.

use bytes::Bytes;
use roomcast_protocol::args::{Args, ArgsError};

use super::error::{EmitError, Refused};
use crate::transport::{driver::Turn, frame::Frame};
use roomcast_protocol::{
    engine_io::open::Revision,
    socket_io::{connect, connect::Dialect, encode, msgpack},
};

/// Encoding of packets. All clients of a server use the same one.
///
/// ```
/// # use roomcast::{Parser, Server};
/// let builder = Server::builder().parser(Parser::Msgpack);
/// # drop(builder);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Parser {
    /// JSON with binary attachments, the default of all clients.
    #[default]
    Json,
    /// `socket.io-msgpack-parser`.
    Msgpack,
}

impl Parser {
    /// The form of the packets that are not events, which depends on the client's revision, too.
    pub(crate) fn dialect(self, revision: Revision) -> Dialect {
        match (self, revision) {
            (Self::Msgpack, _) => Dialect::Msgpack,
            (Self::Json, Revision::V4) => Dialect::V5,
            (Self::Json, Revision::V3) => Dialect::V2,
        }
    }

    /// Encodes an event. Fails on broken JSON, which only a peer can send, and only if the encoding
    /// has to parse it.
    pub(crate) fn event(
        self,
        nsp: &str,
        id: Option<u64>,
        name: &str,
        args: &Args,
    ) -> Result<Frame, EmitError> {
        match self {
            Self::Json => Ok(Frame::message(
                |out| encode::event(out, nsp, id, name, args),
                args.attachments(),
            )),
            Self::Msgpack => msgpack_frame(|out| msgpack::event(out, nsp, id, name, args)),
        }
    }

    /// Encodes an acknowledgement, with the same errors.
    pub(crate) fn ack(self, nsp: &str, id: u64, args: &Args) -> Result<Frame, EmitError> {
        match self {
            Self::Json => Ok(Frame::message(
                |out| encode::ack(out, nsp, id, args),
                args.attachments(),
            )),
            Self::Msgpack => msgpack_frame(|out| msgpack::ack(out, nsp, id, args)),
        }
    }

    /// Sends an acknowledgement with the other replies of this turn.
    pub(crate) fn reply_ack(self, turn: &mut Turn<'_, '_>, nsp: &str, id: u64, args: &Args) {
        match self {
            Self::Json => {
                turn.reply(|out| encode::ack(out, nsp, id, args), args.attachments());
            }
            Self::Msgpack => {
                if let Ok(frame) = self.ack(nsp, id, args) {
                    turn.send(&frame);
                }
            }
        }
    }
}

/// The only thing that can be wrong with arguments here is that they are not JSON.
fn msgpack_frame<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Frame, EmitError> {
    let mut out = Vec::new();
    write(&mut out).map_err(|_| EmitError::Args(ArgsError::NotAnArray))?;
    Ok(Frame::binary(out.into()))
}

/// Admits a client. `pid` is the name under which it can come back.
pub(crate) fn connect_reply(
    turn: &mut Turn<'_, '_>,
    dialect: Dialect,
    nsp: &str,
    sid: &str,
    pid: Option<&str>,
) {
    send(turn, dialect, |out| {
        connect::connect_reply(out, dialect, nsp, sid, pid);
    });
}

pub(crate) fn connect_error(
    turn: &mut Turn<'_, '_>,
    dialect: Dialect,
    nsp: &str,
    refused: &Refused,
) {
    let (message, data) = (&*refused.message, refused.data.as_deref());
    send(turn, dialect, |out| {
        connect::connect_error(out, dialect, nsp, message, data)
            .expect("the data was encoded by serde_json");
    });
}

pub(crate) fn unknown_namespace(turn: &mut Turn<'_, '_>, dialect: Dialect, nsp: &str) {
    send(turn, dialect, |out| {
        connect::unknown_namespace(out, dialect, nsp)
    });
}

pub(crate) fn disconnect(dialect: Dialect, nsp: &str) -> Frame {
    frame(dialect, |out| connect::disconnect(out, dialect, nsp))
}

fn send(turn: &mut Turn<'_, '_>, dialect: Dialect, write: impl FnOnce(&mut Vec<u8>)) {
    match dialect {
        Dialect::V5 | Dialect::V2 => turn.reply(write, &[]),
        Dialect::Msgpack => turn.send(&frame(dialect, write)),
    }
}

fn frame(dialect: Dialect, write: impl FnOnce(&mut Vec<u8>)) -> Frame {
    match dialect {
        Dialect::V5 | Dialect::V2 => Frame::message(write, &[]),
        Dialect::Msgpack => {
            let mut out = Vec::new();
            write(&mut out);
            Frame::binary(Bytes::from(out))
        }
    }
}
