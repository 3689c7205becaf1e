//! The transport between the nodes of a cluster, as the server sees it.
//!
//! A small runtime object and not a type parameter: the call through it is one per message, not one
//! per recipient.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use roomcast_emitter::{args::Args, message::Message, target::Target};

use crate::SocketId;

/// A future as the bus returns it.
pub type BusFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The name of a node, unique in its cluster.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Takes over a name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.0)
    }
}

/// Carries messages and questions from one node to all others.
///
/// Guarantees, which every implementation gives and the shared tests check:
/// - a node never hears its own messages, and hears nothing of namespaces it is not attached to;
/// - two messages of one node, the second published after the first has resolved, arrive in that
///   order at every other node;
/// - a message arrives at most once; when it may have been lost, the future resolves to an error;
/// - an answer that does not come in time makes its node silent, and never the question fail.
pub trait Bus: Send + Sync + 'static {
    /// From now on the listener hears what others say in the namespace.
    fn attach(&self, node: &NodeId, namespace: &str, listener: Weak<dyn Listener>);

    /// The node's listeners of the namespace that do not exist any more are forgotten.
    fn detach(&self, node: &NodeId, namespace: &str);

    /// Tells all other nodes. The message is on its way when this returns; the future resolves to
    /// the number of nodes that took it.
    fn publish(
        &self,
        node: &NodeId,
        namespace: &str,
        message: Message,
    ) -> BusFuture<Result<usize, BusError>>;

    /// Asks all other nodes and waits for their answers, no longer than `timeout`.
    fn ask(
        &self,
        node: &NodeId,
        namespace: &str,
        question: Question,
        timeout: Duration,
    ) -> BusFuture<Result<Answered, BusError>>;
}

/// A node's side of a namespace: what the bus calls.
pub trait Listener: Send + Sync {
    /// Carries out what another node has said. Must not block.
    fn receive(&self, message: &Message);

    /// Answers another node about this node's own sockets.
    fn answer(self: Arc<Self>, question: Question) -> BusFuture<Answer>;
}

/// What a node asks all others.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Question {
    /// Who are these sockets?
    Sockets(Target),
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
}

/// What a node answers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Answer {
    /// Its sockets that were meant.
    Sockets(Vec<Description>),
    /// What its sockets have acknowledged.
    Acks {
        /// The answers, in the order in which they came.
        answers: Vec<(SocketId, Args)>,
        /// Sockets that gave none.
        missing: Vec<SocketId>,
    },
}

/// The answers to a question.
#[derive(Debug, Clone, Default)]
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

/// Why a message may not have reached other nodes.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The transport is not available.
    #[error("other nodes cannot be reached: {0}")]
    Unavailable(Arc<str>),
}
