//! What nodes send each other about the sockets of a namespace, independent of transport and
//! encoding.

use crate::{args::Args, target::Target};

/// A message to all nodes, each of which carries it out for its own sockets. It has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Emit an event.
    Broadcast {
        /// The receivers.
        target: Target,
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
    },
    /// Join rooms.
    SocketsJoin {
        /// The sockets.
        target: Target,
        /// The rooms to join.
        rooms: Vec<Box<str>>,
    },
    /// Leave rooms.
    SocketsLeave {
        /// The sockets.
        target: Target,
        /// The rooms to leave.
        rooms: Vec<Box<str>>,
    },
    /// Disconnect.
    DisconnectSockets {
        /// The sockets.
        target: Target,
        /// Whether to close the whole connection and not only to leave this namespace.
        close: bool,
    },
    /// Call the servers' own handlers of an event, on all nodes except the sender.
    ServerSideEmit {
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
    },
}

impl Message {
    /// The sockets that the message is for; `None` if it is for the servers themselves.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Broadcast { target, .. }
            | Self::SocketsJoin { target, .. }
            | Self::SocketsLeave { target, .. }
            | Self::DisconnectSockets { target, .. } => Some(target),
            Self::ServerSideEmit { .. } => None,
        }
    }
}
