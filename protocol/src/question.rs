//! The questions of nodes and emitters to the nodes of a cluster, and the answers.

use std::time::Duration;

use crate::{
    args::Args,
    id::{NodeId, SocketId},
    message::Message,
    target::Target,
};

/// The suffix of the id of a [`Question::Reached`] that refers to no broadcast by its id: nodes
/// count their selected sockets. A broadcast that a journal stores has no id.
pub const REACHED_NOW: &str = "#now";

/// A question to all nodes; each answers for its own sockets.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// Who are these sockets?
    Sockets(Target),
    /// What are their ids? Asked by Node's adapter before version 8.
    SocketIds(Target),
    /// Which rooms have members, private ones included?
    Rooms,
    /// What do these sockets acknowledge?
    Acks {
        /// The sockets that receive the event.
        target: Target,
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
        /// The time that the sockets have to acknowledge.
        timeout: Duration,
    },
    /// What do the servers' own handlers of this event return?
    ServerSideEmit {
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
    },
    /// How many sockets did the broadcast with this question's id reach? The target is the
    /// broadcast's, because a Node server can only count the sockets that match it now.
    Reached(Target),
    /// Carry out the message and answer whether it was for a socket of the node. Node's adapter
    /// before version 7 sends it for a single socket.
    Command(Message),
}

/// The answer of one node.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Its sockets that match.
    Sockets(Vec<Description>),
    /// Their ids.
    SocketIds(Vec<SocketId>),
    /// Its rooms.
    Rooms(Vec<Box<str>>),
    /// The acknowledgements of its sockets.
    Acks {
        /// The acknowledgements in the order of their arrival. Node's servers do not name
        /// the sockets.
        answers: Vec<(Option<SocketId>, Args)>,
        /// Sockets that did not acknowledge in time.
        missing: Vec<SocketId>,
        /// How many further sockets did not, on servers that do not name them.
        missing_unnamed: usize,
    },
    /// The result of the server's own handler; `None` if there is no handler.
    ServerSideEmit(Option<Args>),
    /// The number of sockets that a broadcast reached.
    Reached(usize),
    /// Whether the command was for a socket of the node.
    Command(bool),
}

/// The answers to a question.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answered {
    /// One for each node that answered.
    pub answers: Vec<Answer>,
    /// Nodes that are alive but did not answer in time.
    pub silent: Vec<NodeId>,
}

impl Answer {
    /// The number of sockets that a broadcast reached, in whatever form a server answers.
    pub fn reached(&self) -> usize {
        match self {
            Self::Reached(sockets) => *sockets,
            Self::Sockets(sockets) => sockets.len(),
            Self::SocketIds(ids) => ids.len(),
            _ => 0,
        }
    }
}

impl Answered {
    /// The names of the silent nodes.
    pub fn silent_names(&self) -> Vec<String> {
        self.silent.iter().map(NodeId::to_string).collect()
    }
}

/// A socket as its node describes it to other nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The id.
    pub id: SocketId,
    /// The rooms, the private one first.
    pub rooms: Vec<String>,
    /// The data that the application attached to the socket.
    pub data: serde_json::Value,
    /// The client's first request in the form of Node's server: `headers`, `time`, `address`,
    /// `xdomain`, `secure`, `issued`, `url`, `query` and `auth`.
    pub handshake: serde_json::Value,
}
