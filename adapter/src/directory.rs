//! The shards of this node that have members of a room, so that a broadcast to a small room does
//! not take the lock of every shard; and the rooms that have got or lost members since the bus
//! asked.
//!
//! Its lock is a leaf: it is taken under the lock of a shard, and no lock is taken under it.

use std::{
    hash::BuildHasher,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::{rooms::Hash, watch::RoomWatch};

/// A set of shards, one bit each.
pub(crate) type ShardSet = u64;

/// Number of rooms for which an empty directory keeps its memory.
const DIRECTORY_KEEPS: usize = 1024;

pub(crate) struct Directory<S> {
    hasher: S,
    state: Mutex<State>,
    /// There may be changes that the bus was not notified of.
    is_changed: AtomicBool,
    /// There may be changes that the watches were not notified of.
    is_watched_changed: AtomicBool,
}

#[derive(Default)]
struct State {
    rooms: HashTable<(Arc<str>, ShardSet)>,
    /// Present if the bus tracks changes.
    interest: Option<Box<Interest>>,
    /// The watchers of the rooms.
    watches: Vec<Weak<RoomWatch>>,
}

/// The changes that must be reported to the bus.
///
/// A room is among the changes exactly while its state differs from the last one reported to the
/// bus: the second change of a room undoes the first. Their number is therefore bounded by the
/// rooms that the bus knows and those that have members, however often sockets come and go before
/// the bus asks, and none is lost.
#[derive(Default)]
struct Interest {
    /// The private rooms that are tracked.
    private: HashTable<Arc<str>>,
    /// With each room whether it has members now.
    changes: HashTable<(Arc<str>, bool)>,
}

impl<S: BuildHasher> Directory<S> {
    /// `tracks`: whether changes are kept for the bus.
    pub(crate) fn new(hasher: S, tracks: bool) -> Self {
        let state = State {
            interest: tracks.then(Box::default),
            ..State::default()
        };
        Self {
            hasher,
            state: Mutex::new(state),
            is_changed: AtomicBool::new(false),
            is_watched_changed: AtomicBool::new(false),
        }
    }

    /// A shard got its first member of a room.
    pub(crate) fn occupied(&self, hash: Hash, name: &Arc<str>, shard: usize) {
        let State {
            rooms,
            interest,
            watches,
        } = &mut *self.state.lock();
        if let Some((_, shards)) = rooms.find_mut(hash, |(known, _)| known == name) {
            *shards |= 1 << shard;
            return;
        }
        let entry = (Arc::clone(name), 1 << shard);
        rooms.insert_unique(hash, entry, |(name, _)| self.hasher.hash_one(&**name));
        if let Some(interest) = interest
            && !interest.has_private(hash, name)
        {
            self.note(interest, hash, name, true);
        }
        self.note_watches(watches, name, true);
    }

    /// A shard lost its last member of a room.
    pub(crate) fn vacated(&self, hash: Hash, name: &str, shard: usize) {
        let State {
            rooms,
            interest,
            watches,
        } = &mut *self.state.lock();
        if let Ok(mut found) = rooms.find_entry(hash, |(known, _)| **known == *name) {
            found.get_mut().1 &= !(1 << shard);
            if found.get().1 == 0 {
                let ((name, _), _) = found.remove();
                if let Some(interest) = interest
                    && !interest.has_private(hash, &name)
                {
                    self.note(interest, hash, &name, false);
                }
                self.note_watches(watches, &name, false);
            }
        }
        // Memory is given back as in a shard: when nothing is left.
        if rooms.is_empty() && rooms.capacity() > DIRECTORY_KEEPS {
            *rooms = HashTable::new();
        }
    }

    /// A socket has come whose private room is tracked.
    pub(crate) fn came(&self, hash: Hash, id: &str) {
        let State {
            rooms, interest, ..
        } = &mut *self.state.lock();
        let Some(interest) = interest else { return };
        let name: Arc<str> = id.into();
        interest
            .private
            .insert_unique(hash, Arc::clone(&name), |name| {
                self.hasher.hash_one(&**name)
            });
        if rooms.find(hash, |(known, _)| *known == name).is_none() {
            self.note(interest, hash, &name, true);
        }
    }

    /// A socket whose private room is tracked has disconnected.
    pub(crate) fn went(&self, hash: Hash, id: &str) {
        let State {
            rooms, interest, ..
        } = &mut *self.state.lock();
        let Some(interest) = interest else { return };
        let Ok(found) = interest.private.find_entry(hash, |known| **known == *id) else {
            return;
        };
        let (name, _) = found.remove();
        if rooms.find(hash, |(known, _)| *known == name).is_none() {
            self.note(interest, hash, &name, false);
        }
        if interest.private.is_empty() && interest.private.capacity() > DIRECTORY_KEEPS {
            interest.private = HashTable::new();
        }
    }

    /// The room has got its first member on this node, or lost its last one.
    fn note(&self, interest: &mut Interest, hash: Hash, name: &Arc<str>, is_occupied: bool) {
        let changes = &mut interest.changes;
        if let Ok(found) = changes.find_entry(hash, |(known, _)| known == name) {
            debug_assert_ne!(found.get().1, is_occupied, "first and last take turns");
            found.remove();
            return;
        }
        let change = (Arc::clone(name), is_occupied);
        changes.insert_unique(hash, change, |(name, _)| self.hasher.hash_one(&**name));
        self.is_changed.store(true, Ordering::Relaxed);
    }

    fn note_watches(&self, watches: &[Weak<RoomWatch>], name: &Arc<str>, is_occupied: bool) {
        for watch in watches.iter().filter_map(Weak::upgrade) {
            watch.note(name, is_occupied);
            self.is_watched_changed.store(true, Ordering::Relaxed);
        }
    }

    /// Begins to watch the rooms. Those that have members are the first changes.
    pub(crate) fn watch(&self) -> Arc<RoomWatch> {
        let mut state = self.state.lock();
        let rooms = state.rooms.iter().map(|(name, _)| Arc::clone(name));
        let watch = Arc::new(RoomWatch::new(rooms));
        state.watches.retain(|watch| watch.strong_count() > 0);
        state.watches.push(Arc::downgrade(&watch));
        watch
    }

    /// Wakes the watchers of rooms that have changed. Called without a lock.
    pub(crate) fn notify_watches(&self) {
        let flag = &self.is_watched_changed;
        if flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::AcqRel) {
            let watches = self.state.lock().watches.clone();
            for watch in watches.iter().filter_map(Weak::upgrade) {
                watch.notify();
            }
        }
    }

    /// Returns whether there may be changes since the last call. Either the thread that has made a
    /// change gets `true`, or another one that asks at the same time.
    pub(crate) fn is_changed(&self) -> bool {
        self.is_changed.load(Ordering::Relaxed) && self.is_changed.swap(false, Ordering::AcqRel)
    }

    /// Calls `f`, without the lock, with each room whose state differs from that in the last call.
    pub(crate) fn take_changes(&self, f: &mut dyn FnMut(&str, bool)) {
        let changes = match &mut self.state.lock().interest {
            Some(interest) => std::mem::take(&mut interest.changes),
            None => return,
        };
        for (name, is_occupied) in changes {
            f(&name, is_occupied);
        }
    }

    /// Returns the shards that have members of a room.
    pub(crate) fn shards_of(&self, hash: Hash, name: &str) -> ShardSet {
        self.state
            .lock()
            .rooms
            .find(hash, |(known, _)| **known == *name)
            .map_or(0, |(_, shards)| *shards)
    }

    /// Returns the number of rooms with members on this node, private rooms not counted.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().rooms.len()
    }

    /// Returns the names of all rooms with members on this node, without private rooms.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        let state = self.state.lock();
        let names = state.rooms.iter().map(|(name, _)| Arc::clone(name));
        names.collect()
    }
}

impl Interest {
    fn has_private(&self, hash: Hash, name: &Arc<str>) -> bool {
        self.private.find(hash, |known| known == name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use parking_lot::MutexGuard;

    use super::*;

    impl<S> Directory<S> {
        /// Blocks all threads that have to change or read the directory.
        pub(crate) fn hold(&self) -> MutexGuard<'_, impl Sized> {
            self.state.lock()
        }
    }

    #[test]
    fn a_room_is_known_until_its_last_shard_is_vacated() {
        let hasher = RandomState::new();
        let directory = Directory::new(hasher.clone(), false);
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
        let directory = Directory::new(hasher.clone(), false);
        let names: Vec<Arc<str>> = (0..5000).map(|n| Arc::from(n.to_string())).collect();
        for name in &names {
            directory.occupied(hasher.hash_one(&**name), name, 7);
        }
        assert_eq!(directory.len(), names.len());
        for name in &names {
            assert_eq!(directory.shards_of(hasher.hash_one(&**name), name), 1 << 7);
            directory.vacated(hasher.hash_one(&**name), name, 7);
        }
        assert_eq!(directory.state.lock().rooms.capacity(), 0);
    }
}
