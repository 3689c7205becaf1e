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

/// The rooms up to which an empty directory keeps the memory that it once took.
const DIRECTORY_KEEPS: usize = 1024;

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
        // Memory is given back as in a shard: when nothing is left.
        if rooms.is_empty() && rooms.capacity() > DIRECTORY_KEEPS {
            *rooms = HashTable::new();
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

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use parking_lot::MutexGuard;

    use super::*;

    impl<S> Directory<S> {
        /// Stops everybody who has to change or read the directory.
        pub(crate) fn hold(&self) -> MutexGuard<'_, impl Sized> {
            self.rooms.lock()
        }
    }

    #[test]
    fn a_room_is_known_until_its_last_shard_is_vacated() {
        let hasher = RandomState::new();
        let directory = Directory::new(hasher.clone());
        let name = Arc::from("a");
        let hash = hasher.hash_one("a");
        for shard in [0, 5, 63] {
            directory.occupied(hash, &name, shard);
        }
        assert_eq!(directory.shards_of(hash, "a"), 1 | 1 << 5 | 1 << 63);
        directory.vacated(hash, "a", 5);
        directory.vacated(hash, "a", 5);
        directory.vacated(hasher.hash_one("b"), "b", 0);
        assert_eq!(directory.shards_of(hash, "a"), 1 | 1 << 63);
        assert_eq!((directory.len(), directory.names()), (1, vec![name]));
        directory.vacated(hash, "a", 63);
        directory.vacated(hash, "a", 0);
        assert_eq!((directory.len(), directory.names()), (0, Vec::new()));
    }

    #[test]
    fn an_empty_directory_gives_its_memory_back() {
        let hasher = RandomState::new();
        let directory = Directory::new(hasher.clone());
        let names: Vec<Arc<str>> = (0..5000).map(|n| Arc::from(n.to_string())).collect();
        for name in &names {
            directory.occupied(hasher.hash_one(&**name), name, 7);
        }
        assert_eq!(directory.len(), names.len());
        for name in &names {
            assert_eq!(directory.shards_of(hasher.hash_one(&**name), name), 1 << 7);
            directory.vacated(hasher.hash_one(&**name), name, 7);
        }
        assert_eq!(directory.rooms.lock().capacity(), 0);
    }
}
