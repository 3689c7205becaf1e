//! The receivers of a broadcast or of an operation on sockets: rooms, exceptions and flags.
//!
//! A target is plain data. The operators of the server and of the emitter (`to`, `in_`, `except`,
//! `volatile` …) build it, it travels between nodes, and the adapter applies it to its room index.

use std::{borrow::Cow, sync::Arc, time::Duration};

/// The receivers of a broadcast, or the sockets that an operation applies to.
///
/// Without a room these are all sockets of the namespace; with several rooms, their union. A socket
/// in any room of `except` is left out. Each socket counts once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Rooms whose members receive; empty for the whole namespace.
    pub rooms: Vec<Box<str>>,
    /// Rooms whose members are left out.
    pub except: Vec<Box<str>>,
    /// How the message is delivered.
    pub flags: Flags,
}

impl Target {
    /// Adds rooms. A room that is already there is ignored.
    #[expect(clippy::needless_pass_by_value, reason = "callers name rooms in place")]
    pub fn add_rooms(&mut self, rooms: impl Rooms) {
        rooms.each(&mut |room| add_distinct(&mut self.rooms, room));
    }

    /// Adds rooms whose members are left out. A room that is already there is ignored.
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
    /// Drop the packet for sockets whose transport cannot be written immediately.
    pub volatile: bool,
    /// Only sockets of this node receive.
    pub local: bool,
    /// Whether the packet should be compressed. It is forwarded to other servers; Roomcast itself
    /// does not compress.
    pub compress: Option<bool>,
    /// The time to wait for acknowledgements and for answers of other nodes. On the wire it is
    /// rounded up to milliseconds and limited to 2^31 - 1.
    pub timeout: Option<Duration>,
    /// Each client acknowledges the event, and otherwise receives it again after a recovery. Only
    /// Roomcast nodes support this flag; Node's servers deliver the event like any other.
    pub at_least_once: bool,
}

impl Flags {
    /// The same with another time to wait.
    #[must_use]
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout),
            ..self
        }
    }
}

/// One room name or a collection of them, as `to`, `join` and `except` accept it.
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
