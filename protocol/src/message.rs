//! What nodes tell each other about the sockets of a namespace, whatever the transport between them
//! and its encoding.

use crate::{args::Args, target::Target};

/// An order to all nodes, each for its own sockets. Nobody answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Emit an event.
    Broadcast {
        /// To whom.
        target: Target,
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
    },
    /// Join rooms.
    SocketsJoin {
        /// Who.
        target: Target,
        /// Which rooms.
        rooms: Vec<Box<str>>,
    },
    /// Leave rooms.
    SocketsLeave {
        /// Who.
        target: Target,
        /// Which rooms.
        rooms: Vec<Box<str>>,
    },
    /// Disconnect.
    DisconnectSockets {
        /// Who.
        target: Target,
        /// Whether the whole connection is closed, and not only left by this namespace.
        close: bool,
    },
    /// Call the servers' own handlers of an event, on all nodes but the sender.
    ServerSideEmit {
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
    },
}

impl Message {
    /// The sockets that are meant; none if the servers themselves are.
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
