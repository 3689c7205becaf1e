//! The room index of one namespace on this node: the members of rooms, and broadcasts to them.
//!
//! The index is sharded by socket, so that one huge room uses all cores, and the membership of a
//! socket is under one lock.
//!
//! ```text
//! join, leave ─► shard of the socket (lock) ─► Rooms: socket ↔ rooms
//!                     │ first or last member of a room on this shard
//!                     ▼
//!                Directory (lock): room ─► shards with members; changes for the bus
//!
//! fan_out ─► Directory: which shards? ─► each shard (lock): push into outboxes ─► flush (no lock)
//! ```
//!
//! Lock order: shard, then directory; shard, then a member's connection.

use std::{
    cell::RefCell,
    collections::{BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
    iter,
    sync::Arc,
};

use parking_lot::Mutex;
use roomcast_protocol::target::{Rooms as RoomNames, Target};
use smallvec::SmallVec;

use crate::{
    BusHandle, Member, SocketId, Tracking,
    directory::{Directory, ShardSet},
    rooms::{Change, Hash, Rooms},
    watch::RoomWatch,
};

/// Maximum number of shards of a node: one bit each in the directory.
const MAX_SHARDS: usize = ShardSet::BITS as usize;

/// Why a socket could not join a room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The rooms would be more than a socket may be in. None of them was joined.
    #[error("a socket can be in at most {limit} rooms, and {free} more than now")]
    TooManyRooms {
        /// The limit.
        limit: usize,
        /// The number of rooms that the socket can still join.
        free: usize,
    },
    /// The name of the room is too long.
    #[error("a room name can have at most {limit} bytes")]
    NameTooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The socket is no longer connected.
    #[error("the socket is disconnected")]
    Disconnected,
}

/// Limits of the index. The server's settings have the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomLimits {
    /// Rooms per socket, its private one not counted.
    pub rooms_per_socket: usize,
    /// Length of a room name, in bytes.
    pub name_bytes: usize,
}

/// The rooms of one namespace on this node.
///
/// All methods are synchronous and short: they take the lock of one shard at a time and never wait
/// for the network. A room exists while it has members. Each socket is in its private room, which
/// has the name of its id, from [`insert`](Self::insert) to [`remove`](Self::remove).
pub struct Adapter<M: Member> {
    hasher: RandomState,
    directory: Directory<RandomState>,
    shards: Box<[Shard<M>]>,
    limits: RoomLimits,
    /// Notified of rooms that got their first member or lost their last one.
    bus: Option<Arc<dyn BusHandle>>,
    tracking: Tracking,
}

/// On a separate cache line pair, so that shards don't slow each other down.
#[repr(align(128))]
struct Shard<M>(Mutex<Rooms<M>>);

impl<M: Member> Adapter<M> {
    /// Creates an index of `shards` parts, at most 64. More parts than worker threads bring no
    /// benefit.
    ///
    /// `bus` is notified of rooms that get their first member or lose their last one, as far as it
    /// [tracks](BusHandle::tracking) them.
    pub fn new(shards: usize, limits: RoomLimits, bus: Option<Arc<dyn BusHandle>>) -> Self {
        let hasher = RandomState::new();
        let tracking = bus.as_ref().map_or(Tracking::Nothing, |bus| bus.tracking());
        let directory = Directory::new(hasher.clone(), tracking != Tracking::Nothing);
        let shards = 0..shards.clamp(1, MAX_SHARDS);
        Self {
            hasher,
            directory,
            shards: shards.map(|_| Shard(Mutex::default())).collect(),
            limits,
            bus,
            tracking,
        }
    }

    /// Adds a connected socket. It receives broadcasts from now on.
    pub fn insert(&self, member: M) {
        debug_assert!(SocketId::is_plausible(member.id().as_str()));
        let id = member.id().clone();
        let hash = self.hash(id.as_str());
        let mut rooms = self.shards[self.index(&member)].0.lock();
        rooms.insert(member, hash);
        if self.is_tracked(&id) {
            self.directory.came(hash, id.as_str());
        }
        drop(rooms);
        self.notify();
    }

    /// Removes a socket from all rooms. Returns `true` if it was present.
    pub fn remove(&self, member: &M) -> bool {
        let index = self.index(member);
        let hash = self.hash(member.id().as_str());
        let mut rooms = self.shards[index].0.lock();
        let Some(slot) = rooms.slot(hash, member) else {
            return false;
        };
        rooms.remove(slot, |hash, name| self.directory.vacated(hash, name, index));
        if self.is_tracked(member.id()) {
            self.directory.went(hash, member.id().as_str());
        }
        drop(rooms);
        self.notify();
        true
    }

    /// Adds a socket to rooms: to all of them, or to none if a limit would be exceeded.
    pub fn join(&self, member: &M, names: &impl RoomNames) -> Result<(), JoinError> {
        let index = self.index(member);
        let id = member.id();
        let mut rooms = self.shards[index].0.lock();
        let slot = rooms
            .slot(self.hash(id.as_str()), member)
            .ok_or(JoinError::Disconnected)?;
        let mut fresh: SmallVec<[Hash; 8]> = SmallVec::new();
        let mut too_long = false;
        names.each(&mut |name| {
            let hash = self.hash(name);
            too_long |= name.len() > self.limits.name_bytes;
            if name != id.as_str() && !rooms.is_in(slot, hash, name) {
                fresh.push(hash);
            }
        });
        if too_long {
            let limit = self.limits.name_bytes;
            return Err(JoinError::NameTooLong { limit });
        }
        // A room that is named twice counts once.
        fresh.sort_unstable();
        fresh.dedup();
        let limit = self.limits.rooms_per_socket;
        let free = limit.saturating_sub(rooms.room_count_of(slot));
        if fresh.len() > free {
            return Err(JoinError::TooManyRooms { limit, free });
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
        drop(rooms);
        self.notify();
        Ok(())
    }

    /// Removes a socket from rooms. The private room of a socket cannot be left.
    pub fn leave(&self, member: &M, names: &impl RoomNames) {
        let index = self.index(member);
        let id = member.id();
        let mut rooms = self.shards[index].0.lock();
        let Some(slot) = rooms.slot(self.hash(id.as_str()), member) else {
            return;
        };
        names.each(&mut |name| {
            let hash = self.hash(name);
            if rooms.leave(slot, hash, name) == Change::Edge {
                self.directory.vacated(hash, name, index);
            }
        });
        drop(rooms);
        self.notify();
    }

    /// Returns the rooms of a socket, its private one first. Empty if it is not connected.
    pub fn rooms_of(&self, member: &M) -> Vec<Arc<str>> {
        let id = member.id();
        let rooms = self.shards[self.index(member)].0.lock();
        let Some(slot) = rooms.slot(self.hash(id.as_str()), member) else {
            return Vec::new();
        };
        iter::once(Arc::from(id.as_str()))
            .chain(rooms.rooms_of(slot).cloned())
            .collect()
    }

    /// Delivers a frame to every socket of this node that the target selects, each once, and
    /// returns their number. `each` is called with every recipient, under the lock of its shard.
    ///
    /// When this returns, the frame is in the outbox of every recipient: two broadcasts of one
    /// caller reach all recipients in order.
    pub fn fan_out(&self, target: &Target, frame: &M::Frame, mut each: impl FnMut(&M)) -> usize {
        let volatile = target.flags.volatile;
        let mut recipients = 0;
        let batch = RefCell::new(M::Batch::default());
        self.each_selected(
            target,
            |member| {
                recipients += 1;
                each(member);
                member.deliver(frame, volatile, &mut batch.borrow_mut());
            },
            || M::flush(batch.take()),
        );
        recipients
    }

    /// Returns the sockets of this node that the target selects, each once.
    pub fn select(&self, target: &Target) -> Vec<M> {
        let mut members = Vec::new();
        self.each_selected(target, |member| members.push(member.clone()), || {});
        members
    }

    /// Calls `f` with each tracked room that has got its first member on this node (true) or lost
    /// its last one (false) since the last call. Rooms that are back in their earlier state are
    /// left out.
    pub fn take_changes(&self, f: &mut dyn FnMut(&str, bool)) {
        self.directory.take_changes(f);
    }

    /// Begins to watch which rooms have members on this node. Rooms that have some are the first
    /// changes. Private rooms are not watched. Dropping the result ends it.
    pub fn watch_rooms(&self) -> Arc<RoomWatch> {
        self.directory.watch()
    }

    /// Returns whether a socket of this node is in the room. Private rooms count.
    pub fn has_room(&self, name: &str) -> bool {
        let hash = self.hash(name);
        self.directory.shards_of(hash, name) != 0
            || SocketId::is_plausible(name)
                && self
                    .shards
                    .iter()
                    .any(|shard| shard.0.lock().member(hash, name).is_some())
    }

    /// Returns the number of rooms with members on this node, private rooms not counted.
    pub fn room_count(&self) -> usize {
        self.directory.len()
    }

    /// Returns the names of all rooms with members on this node, private ones included, each once,
    /// sorted.
    pub fn all_room_names(&self) -> Vec<Box<str>> {
        let names = self.directory.names();
        let mut all: BTreeSet<Box<str>> = names.iter().map(|name| (**name).into()).collect();
        for shard in &self.shards {
            shard.0.lock().each(|member| {
                all.insert(member.id().as_str().into());
            });
        }
        all.into_iter().collect()
    }

    /// Notifies the bus and the watches of changes. Called without a lock after each
    /// change of membership; when several threads have changes, one of them notifies.
    fn notify(&self) {
        if let Some(bus) = &self.bus
            && self.directory.is_changed()
        {
            bus.changed();
        }
        self.directory.notify_watches();
    }

    /// Calls `f` with each socket that the target selects, each once, under the lock of its shard.
    /// `end_of_shard` is called after each shard, without the lock.
    fn each_selected(
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

    /// Returns the shards that may have sockets that the target selects.
    fn concerned(&self, target: &Target, hashes: &[Hash]) -> ShardSet {
        if target.rooms.is_empty() || self.shards.len() == 1 {
            return ShardSet::MAX;
        }
        let mut concerned = 0;
        for (name, hash) in target.rooms.iter().zip(hashes) {
            // The directory does not contain private rooms.
            if SocketId::is_plausible(name) {
                return ShardSet::MAX;
            }
            concerned |= self.directory.shards_of(*hash, name);
        }
        concerned
    }

    /// Returns whether the bus is notified of the private room of this socket.
    fn is_tracked(&self, id: &SocketId) -> bool {
        match self.tracking {
            Tracking::Nothing => false,
            Tracking::Rooms => {
                let is_own = || self.bus.as_ref().is_none_or(|bus| bus.is_own(id));
                id.as_str().len() != SocketId::LEN || !is_own()
            }
            Tracking::RoomsAndSockets => true,
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
