//! Who shall receive: rooms, exceptions and flags of one broadcast or one operation on sockets.
//!
//! A target is plain data. It is built by the operators (`to`, `in_`, `except`, `volatile` …) of the
//! server and of the emitter, travels between nodes, and is applied to a room index by the adapter.

use std::{borrow::Cow, sync::Arc, time::Duration};

/// The recipients of a broadcast, or the sockets an operation applies to.
///
/// With no room, every socket of the namespace is meant; with several rooms, their union. A socket
/// that is in any room of `except` is left out. Nobody is meant twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Rooms whose members are meant; empty means the whole namespace.
    pub rooms: Vec<Box<str>>,
    /// Rooms whose members are left out.
    pub except: Vec<Box<str>>,
    /// How to deliver.
    pub flags: Flags,
}

impl Target {
    /// Adds rooms; a room that is already there is not added again.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn add_rooms(&mut self, rooms: impl Rooms) {
        rooms.each(&mut |room| add_distinct(&mut self.rooms, room));
    }

    /// Adds rooms whose members are left out.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn add_except(&mut self, rooms: impl Rooms) {
        rooms.each(&mut |room| add_distinct(&mut self.except, room));
    }
}

fn add_distinct(list: &mut Vec<Box<str>>, room: &str) {
    if !list.iter().any(|known| **known == *room) {
        list.push(room.into());
    }
}

/// How a broadcast is delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flags {
    /// Drop the packet for sockets whose transport cannot be written right now.
    pub volatile: bool,
    /// Only the sockets of this node are meant.
    pub local: bool,
    /// The caller's wish about compressing this packet; carried for peers, never required.
    pub compress: Option<bool>,
    /// How long to wait for acknowledgements and for the answers of other nodes.
    pub timeout: Option<Duration>,
}

/// One room name or a collection of them: what `to`, `join`, `except` and their like accept.
pub trait Rooms {
    /// Calls `f` with each name, in order.
    fn each(&self, f: &mut dyn FnMut(&str));
}

macro_rules! one_room {
    ($($t:ty),*) => {$(
        impl Rooms for $t {
            fn each(&self, f: &mut dyn FnMut(&str)) {
                f(self);
            }
        }
    )*};
}

one_room!(&str, String, &String, Box<str>, Arc<str>, Cow<'_, str>);

impl<T: AsRef<str>> Rooms for Vec<T> {
    fn each(&self, f: &mut dyn FnMut(&str)) {
        self.as_slice().each(f);
    }
}

impl<T: AsRef<str>> Rooms for &Vec<T> {
    fn each(&self, f: &mut dyn FnMut(&str)) {
        self.as_slice().each(f);
    }
}

impl<T: AsRef<str>, const N: usize> Rooms for [T; N] {
    fn each(&self, f: &mut dyn FnMut(&str)) {
        self.as_slice().each(f);
    }
}

impl<T: AsRef<str>> Rooms for &[T] {
    fn each(&self, f: &mut dyn FnMut(&str)) {
        for room in *self {
            f(room.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_named_twice_is_one_room() {
        let mut target = Target::default();
        target.add_rooms("a");
        target.add_rooms(["b", "a"]);
        target.add_rooms(vec![String::from("c")]);
        target.add_except(&["x", "x"][..]);
        assert_eq!(target.rooms, ["a", "b", "c"].map(Box::from));
        assert_eq!(target.except, ["x"].map(Box::from));
    }
}
