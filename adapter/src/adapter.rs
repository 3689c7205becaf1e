//! The verbs of one namespace: who is in which room, and broadcasts to them.

use std::{collections::BTreeSet, sync::Arc};

use roomcast_protocol::target::{Rooms as RoomNames, Target};

pub use crate::shards::{JoinError, RoomLimits};
use crate::{BusHandle, Member, shards::Shards};

/// The rooms of one namespace on this node.
///
/// All methods are synchronous and short: they take the lock of one shard at a time and never wait
/// for the network.
pub struct Adapter<M: Member> {
    shards: Shards<M>,
    limits: RoomLimits,
    /// Notified of rooms that got their first member or lost their last one.
    bus: Option<Arc<dyn BusHandle>>,
}

impl<M: Member> Adapter<M> {
    /// An index cut into `shards` parts; at most 64, of use up to the number of worker threads.
    ///
    /// `bus` is notified of rooms that get their first member or lose their last one, as far as it
    /// [tracks](BusHandle::tracking) them.
    pub fn new(shards: usize, limits: RoomLimits, bus: Option<Arc<dyn BusHandle>>) -> Self {
        let shards = Shards::new(shards);
        if let Some(bus) = &bus {
            shards.track(bus.tracking());
        }
        Self {
            shards,
            limits,
            bus,
        }
    }

    /// Called without a lock after each change of membership. When several threads have changes,
    /// one of them notifies the bus.
    fn notify(&self) {
        if let Some(bus) = &self.bus
            && self.shards.is_changed()
        {
            bus.changed();
        }
    }

    /// Adds a connected socket; from now on it receives broadcasts.
    pub fn insert(&self, member: M) {
        self.shards.insert(member);
        self.notify();
    }

    /// Removes a socket from all rooms; answers whether it was there.
    pub fn remove(&self, member: &M) -> bool {
        let was_there = self.shards.remove(member);
        self.notify();
        was_there
    }

    /// Puts a socket into rooms: into all of them, or into none if a limit would be passed.
    pub fn join(&self, member: &M, rooms: &impl RoomNames) -> Result<(), JoinError> {
        let joined = self.shards.join(member, rooms, self.limits);
        self.notify();
        joined
    }

    /// Takes a socket out of rooms. The private room of a socket cannot be left.
    pub fn leave(&self, member: &M, rooms: &impl RoomNames) {
        self.shards.leave(member, rooms);
        self.notify();
    }

    /// The rooms of a socket, its private one first; empty if it is not connected.
    pub fn rooms_of(&self, member: &M) -> Vec<Arc<str>> {
        self.shards.rooms_of(member)
    }

    /// Delivers a frame to every socket of this node that the target means, each once, and answers
    /// how many these are. `each` sees every recipient, under the lock of its shard.
    ///
    /// When this returns, the frame stands in the outbox of every recipient: two broadcasts of one
    /// caller reach everybody in order.
    pub fn fan_out(&self, target: &Target, frame: &M::Frame, mut each: impl FnMut(&M)) -> usize {
        let volatile = target.flags.volatile;
        let mut recipients = 0;
        let batch = std::cell::RefCell::new(M::Batch::default());
        self.shards.select(
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

    /// The sockets of this node that the target means, each once.
    pub fn select(&self, target: &Target) -> Vec<M> {
        let mut members = Vec::new();
        self.shards
            .select(target, |member| members.push(member.clone()), || {});
        members
    }

    /// The socket of this id, if it is connected to this node.
    pub fn member(&self, id: &str) -> Option<M> {
        self.shards.member(id)
    }

    /// Calls `f` with each room that has got its first member on this node (true) or lost its last
    /// one (false) since the last call; not with one that is as it was then.
    pub fn take_changes(&self, f: &mut dyn FnMut(&str, bool)) {
        self.shards.take_changes(f);
    }

    /// Whether a socket of this node is in the room, private rooms included.
    pub fn has_room(&self, room: &str) -> bool {
        self.shards.has_room(room)
    }

    /// The number of sockets on this node.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether there is no socket on this node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of rooms with members on this node, private rooms not counted.
    pub fn room_count(&self) -> usize {
        self.shards.room_count()
    }

    /// The names of the rooms with members on this node, private rooms not among them.
    pub fn room_names(&self) -> Vec<Arc<str>> {
        self.shards.room_names()
    }

    /// The names of all rooms with members on this node, private ones included, each once, sorted.
    pub fn all_room_names(&self) -> Vec<Box<str>> {
        let names = self.shards.room_names();
        let mut all: BTreeSet<Box<str>> = names.iter().map(|name| (**name).into()).collect();
        self.shards.each_id(|id| {
            all.insert(id.as_str().into());
        });
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
