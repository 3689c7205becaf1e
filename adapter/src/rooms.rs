//! The two-way index of one shard: sockets and their rooms, rooms and their members.
//!
//! ```text
//! ids   ─► members[slot]: socket, places ─┬─► { room, position }
//!                                         │        │
//! names ─► rooms[room]: members ◄─────────┴────────┘
//!                       [position] = slot
//! ```
//!
//! No locks, no async, no clock. Members and rooms live in slabs and refer to each other by index,
//! so that joining and leaving are O(1) regardless of the size of the room: a member knows its
//! position in each of its rooms, and when it leaves, the last member of the room moves there. The
//! private room of a socket (the room named as its id) is not stored: it is the socket's entry
//! itself.

use std::sync::Arc;

use hashbrown::HashTable;
use roomcast_protocol::target::Target;
use slab::Slab;
use smallvec::SmallVec;

use crate::Member;

/// A member's index in its shard. Returned by [`Rooms::insert`], valid until [`Rooms::remove`].
pub(crate) type Slot = u32;

/// The hash of a name. All tables of a node use one function, so that a name is hashed once.
pub(crate) type Hash = u64;

/// The index of one shard.
pub(crate) struct Rooms<M> {
    members: Slab<Entry<M>>,
    ids: HashTable<Slot>,
    rooms: Slab<Room>,
    names: HashTable<u32>,
    /// Marks members as selected or excluded during one selection. Incremented with each.
    epoch: u32,
}

struct Entry<M> {
    member: M,
    hash: u32,
    mark: u32,
    places: SmallVec<[Place; 2]>,
}

/// A member's position in one room.
#[derive(Clone, Copy)]
struct Place {
    room: u32,
    position: u32,
}

struct Room {
    name: Arc<str>,
    hash: Hash,
    members: Vec<Slot>,
}

/// The effect of a change of membership on the room on this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// None: the member already was, or was not, in the room.
    None,
    /// The room has members as before.
    Some,
    /// The room got its first member here, or lost its last one.
    Edge,
}

impl<M> Default for Rooms<M> {
    fn default() -> Self {
        Self {
            members: Slab::new(),
            ids: HashTable::new(),
            rooms: Slab::new(),
            names: HashTable::new(),
            epoch: 0,
        }
    }
}

impl<M: Member> Rooms<M> {
    /// Adds a socket, in no room but its private one. `hash` is the hash of its id.
    pub(crate) fn insert(&mut self, member: M, hash: Hash) -> Slot {
        debug_assert!(
            self.find_member(hash, member.id().as_str()).is_none(),
            "{} is already there",
            member.id()
        );
        let entry = Entry {
            member,
            hash: short(hash),
            mark: 0,
            places: SmallVec::new(),
        };
        let slot = index(self.members.insert(entry));
        let members = &self.members;
        self.ids.insert_unique(spread(short(hash)), slot, |&slot| {
            spread(members[slot as usize].hash)
        });
        slot
    }

    /// Removes a socket from all its rooms and from the index. Calls `emptied` with the hash and
    /// name of each room that lost its last member here.
    pub(crate) fn remove(&mut self, slot: Slot, mut emptied: impl FnMut(Hash, &Arc<str>)) {
        let Some(entry) = self.members.try_remove(slot as usize) else {
            return;
        };
        for spot in entry.places {
            self.vacate(spot, &mut emptied);
        }
        if let Ok(found) = self
            .ids
            .find_entry(spread(entry.hash), |&known| known == slot)
        {
            found.remove();
        }
        self.shrink();
    }

    /// Adds a socket to a room. Returns the room's shared name as well.
    pub(crate) fn join(&mut self, slot: Slot, hash: Hash, name: &str) -> (Change, Arc<str>) {
        let room = self.find_room(hash, name);
        if let Some(room) = room
            && self
                .entry(slot)
                .places
                .iter()
                .any(|place| place.room == room)
        {
            return (Change::None, Arc::clone(&self.rooms[room as usize].name));
        }
        let edge = room.is_none();
        let key = room.unwrap_or_else(|| self.new_room(hash, name));
        let room = &mut self.rooms[key as usize];
        let position = index(room.members.len());
        room.members.push(slot);
        let name = Arc::clone(&room.name);
        let place = Place {
            room: key,
            position,
        };
        self.members[slot as usize].places.push(place);
        (if edge { Change::Edge } else { Change::Some }, name)
    }

    /// Removes a socket from a room.
    pub(crate) fn leave(&mut self, slot: Slot, hash: Hash, name: &str) -> Change {
        let Some(room) = self.find_room(hash, name) else {
            return Change::None;
        };
        let places = &mut self.members[slot as usize].places;
        let Some(index) = places.iter().position(|place| place.room == room) else {
            return Change::None;
        };
        let spot = places.swap_remove(index);
        if places.spilled() && places.len() <= places.inline_size() {
            places.shrink_to_fit();
        }
        let mut edge = false;
        self.vacate(spot, &mut |_, _| edge = true);
        if edge { Change::Edge } else { Change::Some }
    }

    /// Calls `f` with each member that the target selects, each once. `hashes` are the hashes of
    /// `target.rooms`, then of `target.except`.
    pub(crate) fn select(&mut self, target: &Target, hashes: &[Hash], mut f: impl FnMut(&M)) {
        let (wanted, excluded) = hashes.split_at(target.rooms.len());
        if target.except.is_empty() && target.rooms.len() == 1 {
            return self.select_one(wanted[0], &target.rooms[0], f);
        }
        let epoch = self.next_epoch();
        for (hash, name) in excluded.iter().zip(&target.except) {
            self.each_in(*hash, name, |entry| entry.mark = epoch);
        }
        if target.rooms.is_empty() {
            for (_, entry) in &self.members {
                if entry.mark != epoch {
                    f(&entry.member);
                }
            }
            return;
        }
        for (hash, name) in wanted.iter().zip(&target.rooms) {
            self.each_in(*hash, name, |entry| {
                if entry.mark != epoch {
                    entry.mark = epoch;
                    f(&entry.member);
                }
            });
        }
    }

    /// One room and no exception: the common case. Marks are needed only if a room has the name of
    /// a socket that is not in it.
    fn select_one(&mut self, hash: Hash, name: &str, mut f: impl FnMut(&M)) {
        match (self.find_room(hash, name), self.find_member(hash, name)) {
            (Some(room), None) => {
                for &slot in &self.rooms[room as usize].members {
                    f(&self.entry(slot).member);
                }
            }
            (None, Some(slot)) => f(&self.entry(slot).member),
            (None, None) => {}
            (Some(_), Some(_)) => {
                let epoch = self.next_epoch();
                self.each_in(hash, name, |entry| {
                    if entry.mark != epoch {
                        entry.mark = epoch;
                        f(&entry.member);
                    }
                });
            }
        }
    }

    fn each_in(&mut self, hash: Hash, name: &str, mut f: impl FnMut(&mut Entry<M>)) {
        if let Some(room) = self.find_room(hash, name) {
            for &slot in &self.rooms[room as usize].members {
                f(&mut self.members[slot as usize]);
            }
        }
        if let Some(slot) = self.find_member(hash, name) {
            f(&mut self.members[slot as usize]);
        }
    }

    /// Returns the slot of the socket. `hash` is the hash of its id, which another socket may have,
    /// too.
    pub(crate) fn slot(&self, hash: Hash, member: &M) -> Option<Slot> {
        self.ids
            .find(spread(short(hash)), |&slot| {
                self.entry(slot).member.is_same(member)
            })
            .copied()
    }

    /// Returns the socket with this id.
    pub(crate) fn member(&self, hash: Hash, id: &str) -> Option<&M> {
        self.find_member(hash, id)
            .map(|slot| &self.entry(slot).member)
    }

    /// Returns the names of the rooms that a socket has joined, in no particular order, without its
    /// private one.
    pub(crate) fn rooms_of(&self, slot: Slot) -> impl Iterator<Item = &Arc<str>> {
        self.entry(slot)
            .places
            .iter()
            .map(|place| &self.rooms[place.room as usize].name)
    }

    /// Returns how many rooms a socket has joined, without its private one.
    pub(crate) fn room_count_of(&self, slot: Slot) -> usize {
        self.entry(slot).places.len()
    }

    /// Returns whether a socket has joined a room.
    pub(crate) fn is_in(&self, slot: Slot, hash: Hash, name: &str) -> bool {
        self.find_room(hash, name).is_some_and(|room| {
            self.entry(slot)
                .places
                .iter()
                .any(|place| place.room == room)
        })
    }

    /// Calls `f` with each socket.
    pub(crate) fn each(&self, mut f: impl FnMut(&M)) {
        for (_, entry) in &self.members {
            f(&entry.member);
        }
    }

    /// Returns the number of sockets.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    fn find_room(&self, hash: Hash, name: &str) -> Option<u32> {
        self.names
            .find(hash, |&room| *self.rooms[room as usize].name == *name)
            .copied()
    }

    fn find_member(&self, hash: Hash, id: &str) -> Option<Slot> {
        self.ids
            .find(spread(short(hash)), |&slot| {
                self.entry(slot).member.id().as_str() == id
            })
            .copied()
    }

    fn new_room(&mut self, hash: Hash, name: &str) -> u32 {
        let room = Room {
            name: name.into(),
            hash,
            members: Vec::with_capacity(1),
        };
        let key = index(self.rooms.insert(room));
        let rooms = &self.rooms;
        self.names
            .insert_unique(hash, key, |&room| rooms[room as usize].hash);
        key
    }

    /// Removes the member at a place from the room; the last member of the room moves there.
    fn vacate(&mut self, spot: Place, emptied: &mut impl FnMut(Hash, &Arc<str>)) {
        let room = &mut self.rooms[spot.room as usize];
        room.members.swap_remove(spot.position as usize);
        // Memory of a room that was huge is released. Amortised, because half of it is left free.
        let capacity = room.members.capacity();
        if capacity > ROOM_KEEPS && room.members.len() < capacity / 4 {
            room.members.shrink_to(capacity / 2);
        }
        if let Some(&moved) = room.members.get(spot.position as usize) {
            let places = &mut self.members[moved as usize].places;
            let place = places.iter_mut().find(|place| place.room == spot.room);
            place
                .expect("a member of a room has a place in it")
                .position = spot.position;
        } else if room.members.is_empty() {
            self.drop_room(spot.room, emptied);
        }
    }

    fn drop_room(&mut self, key: u32, emptied: &mut impl FnMut(Hash, &Arc<str>)) {
        let room = self.rooms.remove(key as usize);
        if let Ok(found) = self.names.find_entry(room.hash, |&known| known == key) {
            found.remove();
        }
        emptied(room.hash, &room.name);
    }

    /// Releases memory when a shard has become empty, as after a storm of short connections.
    fn shrink(&mut self) {
        if self.ids.is_empty() && self.members.capacity() > SHARD_KEEPS {
            *self = Self {
                epoch: self.epoch,
                ..Self::default()
            };
        }
    }

    fn next_epoch(&mut self) -> u32 {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            // It wrapped around: old marks could be taken for new ones.
            for (_, entry) in &mut self.members {
                entry.mark = 0;
            }
            self.epoch = 1;
        }
        self.epoch
    }

    fn entry(&self, slot: Slot) -> &Entry<M> {
        &self.members[slot as usize]
    }
}

/// Number of members for which a room keeps its memory.
const ROOM_KEEPS: usize = 64;

/// Number of members for which an empty shard keeps its memory.
const SHARD_KEEPS: usize = 1024;

/// Members keep half of their hash, which is enough to rehash a table of at most 2^32 entries.
fn short(hash: Hash) -> u32 {
    (hash >> 32) as u32
}

/// Spreads a short hash over 64 bits: the table takes its tag from the highest bits and its bucket
/// from the lowest.
fn spread(hash: u32) -> u64 {
    (u64::from(hash) << 32) | u64::from(hash)
}

/// Indexes have half of a word, because members keep several.
fn index(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 entries")
}

#[cfg(test)]
mod tests;
