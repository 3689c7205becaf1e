//! Helpers that the tests of the index share.

mod broadcasts;
mod index;

use super::*;
use crate::member::fake::Fake;

impl Adapter<Fake> {
    /// The number of sockets.
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len()).sum()
    }

    /// Whether the index has a socket of this id.
    fn has_member(&self, id: &str) -> bool {
        let hash = self.hash(id);
        let mut shards = self.shards.iter();
        shards.any(|shard| shard.0.lock().member(hash, id).is_some())
    }
}
