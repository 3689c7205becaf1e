//! Messages between nodes about the sockets of a namespace, independent of transport and encoding.

use serde::{Deserialize, Serialize};

use crate::{args::Args, target::Target};

/// A message to all nodes; each applies it to its own sockets. It has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Emit an event.
    Broadcast(Broadcast),
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

/// An event for the clients of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broadcast {
    /// The receivers.
    pub target: Target,
    /// The name of the event.
    pub event: Box<str>,
    /// Its arguments.
    pub args: Args,
}

/// The place of a broadcast in the log of its namespace.
///
/// All rooms of a namespace share one sequence of ids, so within a room ids increase and have gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The id, at most 2^53, beyond which JavaScript cannot count.
    pub id: u64,
    /// When the broadcast was stored, in milliseconds since 1970.
    pub time: u64,
    /// The id of the broadcast before it, if the namespace keeps a journal. 0 for the
    /// first one. The chain of these ids shows a receiver whether it has missed a broadcast. In
    /// JSON it is left out.
    #[serde(skip)]
    pub after: Option<u64>,
}

impl Broadcast {
    /// The three of them, as they are written.
    pub(crate) fn parts(&self) -> (&Target, &str, &Args) {
        (&self.target, &self.event, &self.args)
    }
}

impl Message {
    /// The sockets that the message is for; `None` if it is for the servers themselves.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Broadcast(Broadcast { target, .. })
            | Self::SocketsJoin { target, .. }
            | Self::SocketsLeave { target, .. }
            | Self::DisconnectSockets { target, .. } => Some(target),
            Self::ServerSideEmit { .. } => None,
        }
    }
}
