//! The transport between the nodes of a cluster, as the server sees it.
//!
//! A small runtime object and not a type parameter: the call through it is one per message, not one
//! per recipient.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use roomcast_protocol::{
    args::Args,
    id::{NodeId, SocketId},
    message::Message,
    question::{Answer, Answered, Question},
};

/// A future as the bus returns it.
pub type BusFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Carries messages and questions from one node to all others.
///
/// Guarantees, which every implementation gives and the shared tests check:
/// - a node never hears its own messages, and hears nothing of namespaces it is not attached to;
/// - two messages of one node, the second published after the first has resolved, arrive in that
///   order at every other node;
/// - a message arrives at most once; when it may have been lost, the future resolves to an error or
///   the nodes that may have missed it report a [`Gap`];
/// - once `confirm` has resolved, messages to those rooms arrive as long as they have members;
/// - an answer that does not come in time makes its node silent, and never the question fail.
pub trait Bus: Send + Sync + 'static {
    /// From now on the listener hears what others say in the namespace, and is asked.
    fn attach(&self, attachment: Attachment<'_>);

    /// The node's listeners of the namespace that do not exist any more are forgotten.
    fn detach(&self, node: &NodeId, namespace: &str);

    /// The listener has changes for [`Listener::take_changes`]. Must not block.
    fn interest_changed(&self, _node: &NodeId, _namespace: &str) {}

    /// Resolves once messages to these rooms of the node, which have members, would be delivered.
    fn confirm(
        &self,
        _node: &NodeId,
        _namespace: &str,
        _rooms: Vec<Box<str>>,
    ) -> BusFuture<Result<(), BusError>> {
        Box::pin(ready(Ok(())))
    }

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

    /// Whether messages flow to this node.
    fn health(&self) -> Health {
        Health::Flowing
    }

    /// Calls `f` whenever this node may have missed messages. Must not block.
    fn on_gap(&self, _f: Box<dyn Fn(&Gap) + Send + Sync>) {}

    /// The first step of a shutdown: resolves once no other node waits for answers of this one any
    /// more. Messages go on arriving.
    fn retire(&self, _node: &NodeId) -> BusFuture<()> {
        Box::pin(ready(()))
    }

    /// The last step: the node is forgotten and everything that was opened is closed.
    fn close(&self, _node: &NodeId) -> BusFuture<()> {
        Box::pin(ready(()))
    }

    /// The metrics of the transport, to be registered once.
    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        Vec::new()
    }
}

/// A namespace of a node, as it introduces itself to the bus.
pub struct Attachment<'a> {
    /// The node.
    pub node: &'a NodeId,
    /// The name, with its slash.
    pub namespace: &'a str,
    /// Whether it was made for a client and goes when it is empty.
    pub is_dynamic: bool,
    /// What the bus calls.
    pub listener: Weak<dyn Listener>,
}

/// A node's side of a namespace: what the bus calls.
///
/// All methods may be called from any thread, and none may block or call back into the bus.
pub trait Listener: Send + Sync {
    /// Carries out what another node or an emitter has said; answers how many sockets of this node
    /// were meant.
    fn receive(&self, message: &Message) -> usize;

    /// Answers about this node's own sockets. What is known early is told to `progress` on the way.
    fn answer(
        self: Arc<Self>,
        question: Question,
        progress: Option<Arc<dyn Progress>>,
    ) -> BusFuture<Answer>;

    /// Whether a socket of this node is in the room, private rooms included.
    fn has_room(&self, room: &str) -> bool;

    /// Says which rooms' first and last members the bus wants to hear of. Called in `attach`,
    /// before there are members.
    fn track(&self, tracking: Tracking);

    /// Hands over the rooms that got their first member (true) or lost their last one (false) on
    /// this node since the last call. A room that is as it was then is not among them. Calls are
    /// made one at a time, or what one of them hands over may be older than it seems.
    fn take_changes(&self, f: &mut dyn FnMut(&str, bool));
}

/// Hears of the answers to [`Question::Acks`] while they come.
pub trait Progress: Send + Sync {
    /// The number of sockets that were asked. Called once, before any answer.
    fn asked(&self, sockets: usize);

    /// A socket has answered.
    fn acknowledged(&self, socket: &SocketId, args: &Args);
}

/// Which rooms a bus wants to hear of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tracking {
    /// None: everything arrives anyway.
    #[default]
    Nothing,
    /// Public rooms, and the private rooms of sockets whose id is not of the ordinary length
    /// ([`SocketId::LEN`]).
    Rooms,
    /// All rooms, private ones included.
    RoomsAndSockets,
}

/// A time in which messages of others may not have reached this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Up to here everything has arrived.
    pub from: SystemTime,
    /// From here on everything arrives again.
    pub to: SystemTime,
}

impl Gap {
    /// The time between two moments.
    pub fn new(from: SystemTime, to: SystemTime) -> Self {
        Self { from, to }
    }
}

/// Whether messages flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// What this node publishes comes back to it.
    Flowing,
    /// It does not, for this reason.
    Interrupted(Arc<str>),
}

/// Why a message may not have reached other nodes.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The transport is not available; the message has not left this node.
    #[error("other nodes cannot be reached: {0}")]
    Unavailable(Arc<str>),
    /// The transport took the message and did not say in time what became of it.
    #[error("other nodes may not have been reached: {0}")]
    Unconfirmed(Arc<str>),
    /// More is waiting to be published than may; the message has not left this node.
    #[error("{queued_bytes} bytes are waiting to be published already")]
    Overloaded {
        /// What is waiting.
        queued_bytes: usize,
    },
    /// The message cannot be published.
    #[error("the message cannot be published: {0}")]
    Invalid(Arc<str>),
}

impl BusError {
    /// What may be told to anybody: nothing of addresses or of what other servers say.
    pub fn outline(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "other nodes cannot be reached",
            Self::Unconfirmed(_) => "other nodes may not have been reached",
            Self::Overloaded { .. } => "too much is waiting to be published already",
            Self::Invalid(_) => "the message cannot be published",
        }
    }
}
