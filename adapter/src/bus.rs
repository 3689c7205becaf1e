//! The transport between the nodes of a cluster, as the server sees it.
//!
//! Trait objects and no type parameter: the call through them is one per message, not one per
//! recipient.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use roomcast_protocol::{
    args::Args,
    id::{NodeId, SocketId},
    message::{Broadcast, Message, Position},
    question::{Answer, Answered, Question},
    receipt::Receipt,
};

mod log;
mod sessions;

pub(crate) use log::to_room;
pub use log::{
    HistoryEntry, HistoryLimits, JournalEntry, JournalLimits, JournalPage, Log, LogLimits, Page,
};
pub use roomcast_emitter::log::Once;
pub use sessions::{Session, Sessions, Taken};

/// The futures of this module: boxed, because they cross a trait object.
pub type BusFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Carries messages and questions between the nodes of a cluster.
///
/// A node calls [`attach`](Self::attach) once per namespace and uses the [`BusHandle`] that it
/// returns. Every implementation gives these guarantees; one suite of tests checks all of them:
/// - A node receives neither its own messages nor those of namespaces it is not attached to.
/// - If a message is published after the publish of an earlier one has resolved, every other node
///   receives the two in that order.
/// - A message is delivered at most once. If it may have been lost, the publish resolves to an
///   error, or the nodes that may have missed it report a [`Gap`].
/// - Once [`confirm`](BusHandle::confirm) has resolved, messages to those rooms are delivered while
///   the rooms have members.
/// - A node that does not answer in time is listed as silent. It never makes the question fail.
pub trait Bus: Send + Sync + 'static {
    /// Attaches a namespace. From now on its listener receives the messages and questions of other
    /// nodes there. Dropping the handle detaches the namespace.
    ///
    /// The listener need not be alive yet: messages that arrive before it is are dropped.
    /// That allows attaching inside [`Arc::new_cyclic`].
    fn attach(&self, attachment: Attachment<'_>) -> Arc<dyn BusHandle>;

    /// Returns whether messages reach this node.
    fn health(&self) -> Health {
        Health::Flowing
    }

    /// Returns the nodes of the cluster as they were last seen, this one included. Node.js servers
    /// have no names and are not among them.
    fn nodes(&self) -> Vec<NodeId> {
        Vec::new()
    }

    /// Returns the other node whose ids begin with this tag, if it states an address and
    /// was alive when nodes were last read. Must not block.
    fn find_peer(&self, _tag: &str) -> Option<Peer> {
        None
    }

    /// Reads the nodes again, for a tag that [`find_peer`](Self::find_peer) cannot find.
    /// Resolves once all that were in the cluster at the time of the call are known, or
    /// cannot be read.
    fn read_peers(&self) -> BusFuture<()> {
        Box::pin(ready(()))
    }

    /// Returns the time of the cluster since 1970. It is the same on all nodes, regardless of the
    /// clocks of their hosts. `None` if it is not known.
    fn time(&self) -> Option<Duration> {
        None
    }

    /// Calls `f` whenever this node may have missed messages. `f` must not block.
    fn on_gap(&self, _f: Box<dyn Fn(&Gap) + Send + Sync>) {}

    /// The first step of a shutdown: resolves once no other node waits for answers of this one.
    /// Messages keep arriving.
    fn retire(&self, _node: &NodeId) -> BusFuture<()> {
        Box::pin(ready(()))
    }

    /// The last step of a shutdown: removes the node from the cluster and closes all connections.
    fn close(&self, _node: &NodeId) -> BusFuture<()> {
        Box::pin(ready(()))
    }

    /// Returns the metrics of the transport, to be registered once.
    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        Vec::new()
    }
}

/// One namespace of one node on a [`Bus`]. Dropping it detaches the namespace.
pub trait BusHandle: Send + Sync + 'static {
    /// The rooms whose first and last members the listener has to report. Constant, and read before
    /// the namespace has sockets. Default: none.
    fn tracking(&self) -> Tracking {
        Tracking::Nothing
    }

    /// Notifies the bus that the listener has changes for [`Listener::take_changes`]. Must not
    /// block.
    fn changed(&self) {}

    /// Resolves once messages to these rooms of this node are delivered. Takes the changes that
    /// were not reported yet.
    fn confirm(&self, _rooms: Vec<Box<str>>) -> BusFuture<Result<(), BusError>> {
        Box::pin(ready(Ok(())))
    }

    /// A socket with this id is about to connect. Resolves once messages to its private
    /// room are delivered; the socket should then be in the room within a second. `None` if they
    /// are delivered anyway, or cannot be delivered at the moment, which the bus's health reports.
    fn expect(&self, _socket: &SocketId) -> Option<BusFuture<Result<(), BusError>>> {
        None
    }

    /// Publishes a message to all other nodes. It is enqueued when this returns, in call order.
    fn publish(&self, message: Message) -> BusFuture<Result<Published, BusError>>;

    /// Publishes an event to all nodes, this one included, once for each idempotency key.
    /// The first result is returned again, with [`Published::is_replayed`]. A broadcast
    /// that belongs in a journal takes [`Log::broadcast_once`] instead. Default: the bus
    /// has no keys.
    fn publish_once(
        &self,
        _broadcast: Broadcast,
        _once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let reason = "the bus has no idempotency keys".into();
        Box::pin(ready(Err(BusError::Invalid(reason))))
    }

    /// Keeps the receipt of a broadcast with its idempotency key, for those that repeat it. Nothing
    /// happens if the result is no longer kept. Default: the bus has no keys.
    fn keep_receipt(&self, _once: Once, _receipt: Receipt) -> BusFuture<Result<(), BusError>> {
        Box::pin(ready(Ok(())))
    }

    /// Opens the logs of the namespace. `None` if the bus keeps none, which is the default.
    fn log(&self, _limits: LogLimits) -> Option<Arc<dyn Log>> {
        None
    }

    /// Returns the store of the sessions of the namespace's clients. `None` if the bus
    /// keeps none, which is the default.
    fn sessions(&self) -> Option<Arc<dyn Sessions>> {
        None
    }

    /// Returns whether this node made the id, so that messages to the private room of its
    /// socket arrive without being [tracked](Tracking::Rooms). A client that comes back from
    /// another node keeps its id from there. Default: always.
    fn is_own(&self, _socket: &SocketId) -> bool {
        true
    }

    /// Asks all other nodes and collects their answers, for `timeout` at most. The
    /// question is enqueued when this returns, in order with the messages. Over a stream
    /// in Redis it may overtake them.
    fn ask(&self, question: Question, timeout: Duration) -> BusFuture<Result<Answered, BusError>>;
}

/// The outcome of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The number of other nodes that received it.
    pub nodes: usize,
    /// The position of the message, if the bus stores published messages. Both buses of this crate
    /// store only messages that are published through a [`Log`].
    pub position: Option<Position>,
    /// Whether it was published earlier, under the same idempotency key, and not now.
    pub is_replayed: bool,
    /// The receipt of that one, if it was [kept](BusHandle::keep_receipt).
    pub receipt: Option<Receipt>,
}

/// A namespace of a node, as it introduces itself to the bus.
pub struct Attachment<'a> {
    /// The node.
    pub node: &'a NodeId,
    /// The name of the namespace, with its slash.
    pub namespace: &'a str,
    /// Whether the namespace was created for a client and is removed with its last socket.
    pub is_dynamic: bool,
    /// The functions that the bus calls.
    pub listener: Weak<dyn Listener>,
}

/// A node's side of a namespace: the interface that the bus calls.
///
/// All methods may be called from any thread. None may block or call back into the bus.
pub trait Listener: Send + Sync {
    /// Carries out a message of another node or of an emitter, or a stored message of any
    /// node, which has a position. Returns the number of sockets of this node that it selects.
    fn receive(&self, message: &Message, position: Option<Position>) -> usize;

    /// Answers a question about the sockets of this node. Acknowledgements are reported to
    /// `progress` as they arrive.
    fn answer(
        self: Arc<Self>,
        question: Question,
        progress: Option<Arc<dyn Progress>>,
    ) -> BusFuture<Answer>;

    /// Returns whether a socket of this node is in the room. Private rooms count.
    fn has_room(&self, room: &str) -> bool;

    /// Calls `f` with each tracked room that has got its first member (true) or lost its last one
    /// (false) on this node since the last call. Rooms that are back in their earlier state are
    /// left out. Calls must not overlap, because changes taken by one could otherwise be applied
    /// after newer ones of the other.
    fn take_changes(&self, f: &mut dyn FnMut(&str, bool));
}

/// Receives the answers to [`Question::Acks`] as they arrive.
pub trait Progress: Send + Sync {
    /// The number of sockets that were asked. Called once, before any answer.
    fn asked(&self, sockets: usize);

    /// A socket has answered.
    fn acknowledged(&self, socket: &SocketId, args: &Args);
}

/// The rooms about which a bus has to be notified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tracking {
    /// None: the bus receives everything.
    #[default]
    Nothing,
    /// Public rooms, and the private rooms of sockets whose id does not have the ordinary length
    /// ([`SocketId::LEN`]) or was not [made](BusHandle::is_own) by this node.
    Rooms,
    /// All rooms, private ones included.
    RoomsAndSockets,
}

/// A period in which messages of other nodes may not have reached this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Every message that was published before has arrived.
    pub from: SystemTime,
    /// Every message that is published after arrives.
    pub to: SystemTime,
}

/// Another node of the cluster, and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// Its address as it states it: see [`RedisConfig::address`](crate::RedisConfig::address).
    pub address: Arc<str>,
}

/// Whether messages reach a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Messages of this node come back to it.
    Flowing,
    /// It does not, for this reason.
    Interrupted(Arc<str>),
}

/// Why a message may not have reached other nodes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BusError {
    /// The transport is not available. The message has not left this node.
    #[error("other nodes cannot be reached: {0}")]
    Unavailable(Arc<str>),
    /// The transport took the message and did not confirm it in time. It may have been published.
    #[error("other nodes may not have been reached: {0}")]
    Unconfirmed(Arc<str>),
    /// The queue of outgoing messages is full. The message has not left this node.
    #[error("{queued_bytes} bytes are waiting to be published already")]
    Overloaded {
        /// The bytes in the queue.
        queued_bytes: usize,
    },
    /// The idempotency key was used for another broadcast. The message has not left this node.
    #[error("the idempotency key was used for another broadcast")]
    KeyReused,
    /// The message cannot be published.
    #[error("the message cannot be published: {0}")]
    Invalid(Arc<str>),
}

impl BusError {
    /// Returns a text that is safe to show to anyone: it contains neither addresses nor replies of
    /// other servers.
    pub fn outline(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "other nodes cannot be reached",
            Self::Unconfirmed(_) => "other nodes may not have been reached",
            Self::Overloaded { .. } => "too much is waiting to be published already",
            Self::KeyReused => "the idempotency key was used for another broadcast",
            Self::Invalid(_) => "the message cannot be published",
        }
    }
}
