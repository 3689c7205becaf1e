//! What nodes and emitters ask the nodes of a cluster, and what these answer.

use std::time::Duration;

use crate::{
    args::Args,
    id::{NodeId, SocketId},
    message::Message,
    target::Target,
};

/// A question to all nodes, each for its own sockets.
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
        /// Who is asked.
        target: Target,
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
        /// How long the sockets have.
        timeout: Duration,
    },
    /// What do the servers' own handlers of this event answer?
    ServerSideEmit {
        /// The name of the event.
        event: Box<str>,
        /// Its arguments.
        args: Args,
    },
    /// How many sockets did the broadcast reach that was published with this question's id? The
    /// target is the broadcast's, for nodes that can only say how many sockets it means now.
    Reached(Target),
    /// Carry this out, and say so if a socket was meant. Asked by Node's adapter before version 7.
    Command(Message),
}

/// What one node answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Its sockets that were meant.
    Sockets(Vec<Description>),
    /// Their ids.
    SocketIds(Vec<SocketId>),
    /// Its rooms.
    Rooms(Vec<Box<str>>),
    /// What its sockets have acknowledged.
    Acks {
        /// The answers, in the order in which they came. Node's servers don't say whose they are.
        answers: Vec<(Option<SocketId>, Args)>,
        /// Sockets that gave none.
        missing: Vec<SocketId>,
        /// The number of further sockets that gave none, of servers that don't tell their ids.
        missing_unnamed: usize,
    },
    /// What the server's own handler answered; nothing if there is no handler.
    ServerSideEmit(Option<Args>),
    /// The number of sockets that a broadcast reached.
    Reached(usize),
    /// Whether a socket of the node was meant.
    Command(bool),
}

/// The answers to a question.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answered {
    /// One for each node that answered.
    pub answers: Vec<Answer>,
    /// Nodes that are alive and did not answer in time.
    pub silent: Vec<NodeId>,
}

/// A socket as its node describes it to others.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The id.
    pub id: SocketId,
    /// The rooms, the private one first.
    pub rooms: Vec<String>,
    /// What the application attached to the socket.
    pub data: serde_json::Value,
    /// The first request of the client: `headers`, `time`, `address`, `xdomain`, `secure`,
    /// `issued`, `url`, `query` and `auth`, as Node's server describes it.
    pub handshake: serde_json::Value,
}
