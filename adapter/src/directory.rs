//! Which shards of this node have members of a room, so that a broadcast to a small room does not
//! take the lock of every shard.
//!
//! Its lock is a leaf: it is taken under the lock of a shard and nothing is taken under it.

use std::{hash::BuildHasher, sync::Arc};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::rooms::Hash;

/// A set of shards, one bit each.
pub(crate) type ShardSet = u64;

pub(crate) struct Directory<S> {
    hasher: S,
    rooms: Mutex<HashTable<(Arc<str>, ShardSet)>>,
}

impl<S: BuildHasher> Directory<S> {
    pub(crate) fn new(hasher: S) -> Self {
        Self {
            hasher,
            rooms: Mutex::default(),
        }
    }

    /// A shard got its first member of a room.
    pub(crate) fn occupied(&self, hash: Hash, name: &Arc<str>, shard: usize) {
        let mut rooms = self.rooms.lock();
        match rooms.find_mut(hash, |(known, _)| known == name) {
            Some((_, shards)) => *shards |= 1 << shard,
            None => {
                let entry = (Arc::clone(name), 1 << shard);
                rooms.insert_unique(hash, entry, |(name, _)| self.hasher.hash_one(&**name));
            }
        }
    }

    /// A shard lost its last member of a room.
    pub(crate) fn vacated(&self, hash: Hash, name: &str, shard: usize) {
        let mut rooms = self.rooms.lock();
        if let Ok(mut found) = rooms.find_entry(hash, |(known, _)| **known == *name) {
            found.get_mut().1 &= !(1 << shard);
            if found.get().1 == 0 {
                found.remove();
            }
        }
    }

    /// The shards that have members of a room.
    pub(crate) fn shards_of(&self, hash: Hash, name: &str) -> ShardSet {
        self.rooms
            .lock()
            .find(hash, |(known, _)| **known == *name)
            .map_or(0, |(_, shards)| *shards)
    }

    /// The number of rooms with members on this node, private rooms not counted.
    pub(crate) fn len(&self) -> usize {
        self.rooms.lock().len()
    }

    /// The names of all rooms with members on this node, private rooms not among them.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.rooms
            .lock()
            .iter()
            .map(|(name, _)| Arc::clone(name))
            .collect()
    }
}
