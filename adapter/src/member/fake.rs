//! A socket without a network: it records deliveries and flushes.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Member, SocketId};

/// The flushes that the members of one test saw, each with the ids of its batch in order.
pub(crate) type Flushes = Arc<Mutex<Vec<Vec<String>>>>;

#[derive(Clone)]
pub(crate) struct Fake(Arc<Inner>);

struct Inner {
    id: SocketId,
    shard: usize,
    /// Frames in the order of delivery, and whether each was volatile.
    received: Mutex<Vec<(u64, bool)>>,
    flushes: Flushes,
}

impl Fake {
    pub(crate) fn new(id: &str, shard: usize, flushes: &Flushes) -> Self {
        Self(Arc::new(Inner {
            id: SocketId::new(id),
            shard,
            received: Mutex::default(),
            flushes: Arc::clone(flushes),
        }))
    }

    /// A member whose flushes are ignored.
    pub(crate) fn numbered(number: usize, shard: usize) -> Self {
        Self::new(&id(number), shard, &Flushes::default())
    }

    pub(crate) fn received(&self) -> Vec<(u64, bool)> {
        self.0.received.lock().clone()
    }
}

/// An id of the ordinary length.
pub(crate) fn id(number: usize) -> String {
    format!("node{number:016}")
}

impl Member for Fake {
    type Frame = u64;
    type Batch = Vec<Self>;

    fn id(&self) -> &SocketId {
        &self.0.id
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn shard(&self) -> usize {
        self.0.shard
    }

    fn deliver(&self, frame: &u64, volatile: bool, batch: &mut Vec<Self>) {
        self.0.received.lock().push((*frame, volatile));
        batch.push(self.clone());
    }

    fn flush(batch: Vec<Self>) {
        if let Some(first) = batch.first() {
            let ids = batch.iter().map(|member| member.id().to_string()).collect();
            first.0.flushes.lock().push(ids);
        }
    }
}
