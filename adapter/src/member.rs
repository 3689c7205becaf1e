//! What the adapter needs of a connected socket, and nothing more.

use crate::SocketId;

/// A handle to a connected socket of this node; cheap to clone.
///
/// Delivery is split in two: [`deliver`](Member::deliver) only queues, so that it can run under the
/// lock of the room index, and [`flush`](Member::flush) hands what was touched to whoever writes to
/// the network. Neither blocks, and neither may call back into the adapter.
pub trait Member: Clone + Send + Sync + 'static {
    /// A packet in the form in which all recipients share it.
    type Frame: Send + Sync;
    /// Collects the connections that a broadcast touched and that nobody is yet about to flush.
    type Batch: Default;

    /// The id, which is also the socket's private room.
    fn id(&self) -> &SocketId;

    /// Which shard of the index the socket belongs to. Constant over its life.
    fn shard(&self) -> usize;

    /// Queues a frame. Called under the lock of a shard.
    fn deliver(&self, frame: &Self::Frame, volatile: bool, batch: &mut Self::Batch);

    /// Has the touched connections written.
    fn flush(batch: Self::Batch);
}

#[cfg(test)]
pub(crate) mod fake;
