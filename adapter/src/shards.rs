//! The room index of one namespace on this node, cut by socket.
//!
//! Cutting by socket and not by room lets one huge room use all cores and keeps the membership of a
//! socket under one lock. Lock order: shard, then directory; shard, then a member's connection.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use parking_lot::Mutex;
use roomcast_protocol::target::{Rooms as RoomNames, Target};
use smallvec::SmallVec;

use crate::{
    Member, SocketId, Tracking,
    directory::{Directory, ShardSet},
    rooms::{Change, Hash, Rooms},
};

/// The most shards that a node can have: one bit each in the directory.
pub(crate) const MAX_SHARDS: usize = ShardSet::BITS as usize;

/// Why a socket could not join a room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The socket is in as many rooms as a socket may be.
    #[error("a socket can be in at most {limit} rooms")]
    TooManyRooms {
        /// The limit.
        limit: usize,
    },
    /// The name of the room is too long.
    #[error("a room name can have at most {limit} bytes")]
    NameTooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The socket is not connected any more.
    #[error("the socket is disconnected")]
    Disconnected,
}

impl serde::Serialize for JoinError {
    /// The text, so that a handler may return it as its answer.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a socket may do to the index. Defaults are for the server's settings to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomLimits {
    /// Rooms per socket, its private one not counted.
    pub rooms_per_socket: usize,
    /// Length of a room name, in bytes.
    pub name_bytes: usize,
}

pub(crate) struct Shards<M> {
    hasher: RandomState,
    directory: Directory<RandomState>,
    shards: Box<[Shard<M>]>,
    /// Whose private rooms the bus wants to hear of: [`NONE`], [`UNUSUAL`] or [`ALL`].
    private: AtomicU8,
}

const NONE: u8 = 0;
/// Of sockets whose id is not of the ordinary length.
const UNUSUAL: u8 = 1;
const ALL: u8 = 2;

/// On a cache line pair of its own, so that shards don't slow each other down.
#[repr(align(128))]
struct Shard<M>(Mutex<Rooms<M>>);

impl<M: Member> Shards<M> {
    /// `count` is cut to what the directory can hold.
    pub(crate) fn new(count: usize) -> Self {
        let hasher = RandomState::new();
        let shards = (0..count.clamp(1, MAX_SHARDS))
            .map(|_| Shard(Mutex::default()))
            .collect();
        Self {
            directory: Directory::new(hasher.clone()),
            hasher,
            shards,
            private: AtomicU8::new(NONE),
        }
    }

    /// Says which rooms' first and last members are kept for [`take_changes`](Self::take_changes).
    /// Called before there are sockets.
    pub(crate) fn track(&self, tracking: Tracking) {
        debug_assert_eq!(self.len(), 0, "sockets from before are not told of");
        let private = match tracking {
            Tracking::Nothing => return,
            Tracking::Rooms => UNUSUAL,
            Tracking::RoomsAndSockets => ALL,
        };
        self.directory.track();
        self.private.store(private, Ordering::Relaxed);
    }

    /// Whether there may be changes since the last call; one of several callers is told.
    pub(crate) fn is_changed(&self) -> bool {
        self.directory.is_changed()
    }

    pub(crate) fn take_changes(&self, f: &mut dyn FnMut(&str, bool)) {
        self.directory.take_changes(f);
    }

    pub(crate) fn insert(&self, member: M) {
        debug_assert!(SocketId::is_plausible(member.id().as_str()));
        let id = member.id().clone();
        let hash = self.hash(id.as_str());
        let mut rooms = self.shards[self.index(&member)].0.lock();
        rooms.insert(member, hash);
        if self.is_told(&id) {
            self.directory.came(hash, id.as_str());
        }
    }

    /// Removes a socket; answers whether it was there.
    pub(crate) fn remove(&self, member: &M) -> bool {
        let index = self.index(member);
        let hash = self.hash(member.id().as_str());
        let mut rooms = self.shards[index].0.lock();
        let Some(slot) = rooms.slot(hash, member.id()) else {
            return false;
        };
        rooms.remove(slot, |hash, name| self.directory.vacated(hash, name, index));
        if self.is_told(member.id()) {
            self.directory.went(hash, member.id().as_str());
        }
        true
    }

    /// Joins all rooms, or none if a limit would be passed.
    pub(crate) fn join(
        &self,
        member: &M,
        names: &impl RoomNames,
        limits: RoomLimits,
    ) -> Result<(), JoinError> {
        let index = self.index(member);
        let id = member.id();
        let mut rooms = self.shards[index].0.lock();
        let slot = rooms
            .slot(self.hash(id.as_str()), id)
            .ok_or(JoinError::Disconnected)?;
        let mut fresh: SmallVec<[Hash; 8]> = SmallVec::new();
        let mut too_long = false;
        names.each(&mut |name| {
            let hash = self.hash(name);
            too_long |= name.len() > limits.name_bytes;
            if name != id.as_str() && !rooms.is_in(slot, hash, name) {
                fresh.push(hash);
            }
        });
        if too_long {
            return Err(JoinError::NameTooLong {
                limit: limits.name_bytes,
            });
        }
        // A room that is named twice is one room.
        fresh.sort_unstable();
        fresh.dedup();
        if rooms.room_count_of(slot) + fresh.len() > limits.rooms_per_socket {
            return Err(JoinError::TooManyRooms {
                limit: limits.rooms_per_socket,
            });
        }
        names.each(&mut |name| {
            if name == id.as_str() {
                return;
            }
            let hash = self.hash(name);
            if let (Change::Edge, name) = rooms.join(slot, hash, name) {
                self.directory.occupied(hash, &name, index);
            }
        });
        Ok(())
    }

    pub(crate) fn leave(&self, member: &M, names: &impl RoomNames) {
        let index = self.index(member);
        let id = member.id();
        let mut rooms = self.shards[index].0.lock();
        let Some(slot) = rooms.slot(self.hash(id.as_str()), id) else {
            return;
        };
        names.each(&mut |name| {
            let hash = self.hash(name);
            if rooms.leave(slot, hash, name) == Change::Edge {
                self.directory.vacated(hash, name, index);
            }
        });
    }

    /// The rooms of a socket, its private one first.
    pub(crate) fn rooms_of(&self, member: &M) -> Vec<Arc<str>> {
        let id = member.id();
        let rooms = self.shards[self.index(member)].0.lock();
        let Some(slot) = rooms.slot(self.hash(id.as_str()), id) else {
            return Vec::new();
        };
        std::iter::once(Arc::from(id.as_str()))
            .chain(rooms.rooms_of(slot).cloned())
            .collect()
    }

    /// Calls `f` with each socket that the target means, each once. `f` runs under the lock of a
    /// shard; `end_of_shard` runs after each shard, without it.
    pub(crate) fn select(
        &self,
        target: &Target,
        mut f: impl FnMut(&M),
        mut end_of_shard: impl FnMut(),
    ) {
        let names = target.rooms.iter().chain(&target.except);
        let hashes: SmallVec<[Hash; 4]> = names.map(|name| self.hash(name)).collect();
        let concerned = self.concerned(target, &hashes);
        for (index, shard) in self.shards.iter().enumerate() {
            if concerned & (1 << index) != 0 {
                shard.0.lock().select(target, &hashes, &mut f);
                end_of_shard();
            }
        }
    }

    /// The socket of this id.
    pub(crate) fn member(&self, id: &str) -> Option<M> {
        let hash = self.hash(id);
        self.shards
            .iter()
            .find_map(|shard| shard.0.lock().member(hash, id).cloned())
    }

    /// Whether a socket of this node is in the room, its private one included.
    pub(crate) fn has_room(&self, name: &str) -> bool {
        let hash = self.hash(name);
        self.directory.shards_of(hash, name) != 0
            || SocketId::is_plausible(name)
                && self
                    .shards
                    .iter()
                    .any(|shard| shard.0.lock().member(hash, name).is_some())
    }

    /// Calls `f` with the id of each socket, under the lock of its shard.
    pub(crate) fn each_id(&self, mut f: impl FnMut(&SocketId)) {
        for shard in &self.shards {
            shard.0.lock().each(|member| f(member.id()));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len()).sum()
    }

    pub(crate) fn room_count(&self) -> usize {
        self.directory.len()
    }

    pub(crate) fn room_names(&self) -> Vec<Arc<str>> {
        self.directory.names()
    }

    fn concerned(&self, target: &Target, hashes: &[Hash]) -> ShardSet {
        if target.rooms.is_empty() || self.shards.len() == 1 {
            return ShardSet::MAX;
        }
        let mut concerned = 0;
        for (name, hash) in target.rooms.iter().zip(hashes) {
            if SocketId::is_plausible(name) {
                return ShardSet::MAX;
            }
            concerned |= self.directory.shards_of(*hash, name);
        }
        concerned
    }

    /// Whether the private room of this socket is told of.
    fn is_told(&self, id: &SocketId) -> bool {
        match self.private.load(Ordering::Relaxed) {
            NONE => false,
            UNUSUAL => id.as_str().len() != SocketId::LEN,
            _ => true,
        }
    }

    fn index(&self, member: &M) -> usize {
        member.shard() % self.shards.len()
    }

    fn hash(&self, name: &str) -> Hash {
        self.hasher.hash_one(name)
    }
}

#[cfg(test)]
mod tests;
