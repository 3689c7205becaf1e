//! The parts of a connected socket that the adapter needs, and nothing more.

use crate::SocketId;

/// A handle to a connected socket of this node; cheap to clone.
///
/// Delivery has two steps. [`deliver`](Member::deliver) only enqueues, so that it can run
/// under the lock of the room index. [`flush`](Member::flush) passes the touched
/// connections to the tasks that write to the network. Neither may block or call back
/// into the adapter.
pub trait Member: Clone + Send + Sync + 'static {
    /// A packet, shared by all recipients.
    type Frame: Send + Sync;
    /// Collects the connections that a broadcast touched and that are not about to be flushed.
    type Batch: Default;

    /// Returns the id, which is also the name of the socket's private room.
    fn id(&self) -> &SocketId;

    /// Returns whether both are the same socket. Two sockets may have one id for a moment.
    fn is_same(&self, other: &Self) -> bool;

    /// Returns the number of the socket's shard in the index, taken modulo the number of shards.
    /// Constant over the socket's life.
    fn shard(&self) -> usize;

    /// Enqueues a frame. Called under the lock of a shard.
    fn deliver(&self, frame: &Self::Frame, volatile: bool, batch: &mut Self::Batch);

    /// Queues the touched connections for writing. Called without a lock.
    fn flush(batch: Self::Batch);
}

#[cfg(test)]
pub(crate) mod fake;
