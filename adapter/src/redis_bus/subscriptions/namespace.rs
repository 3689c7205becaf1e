//! One attached namespace: its names on the wire, and which channels it needs.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use roomcast_protocol::{
    channel::{Channels, Dialect, Mode, Uid},
    id::SocketId,
    wire::Echo,
};
use tokio::time::Instant;

use super::interest::Interest;
use crate::bus::{Listener, Tracking};

/// Maximum number of confirmed broadcasts that are remembered until they are asked about. The
/// question follows its broadcast at once.
const REACHED_REMEMBERED: usize = 1024;

/// A namespace that is attached to the bus.
pub(crate) struct AttachedNamespace {
    pub(crate) name: Arc<str>,
    pub(crate) uid: Uid,
    pub(crate) listener: Weak<dyn Listener>,
    /// Recognizes this node's own messages in the namespace.
    pub(crate) echo: Echo,
    pub(crate) private_rooms: Private,
    /// The channels that the namespace holds. Changed under the lock of the subscriptions only, so
    /// that changes cannot overtake each other.
    pub(super) channels: Mutex<NamespaceChannels>,
    pub(crate) reached: Mutex<Reached>,
    /// When it was attached.
    pub(crate) since: Instant,
    /// Whether it was created for a client. The number of such namespaces is not bounded.
    pub(crate) is_dynamic: bool,
}

/// The channels that a namespace holds.
#[derive(Default)]
pub(super) struct NamespaceChannels {
    /// By which the node takes part until the namespace is detached.
    pub(super) staying: Vec<Arc<str>>,
    /// On which it is asked and counted by Node's servers, until it retires.
    pub(super) asked: Vec<Arc<str>>,
    /// The channels of rooms.
    pub(super) rooms: Interest,
    /// The pattern that covers the channels of all rooms.
    pub(super) all_rooms: Option<AllRoomsPattern>,
}

/// ```text
///  none ──► beside the rooms' channels ──► alone ──► beside the rooms' channels ──► none
///       begin                      confirmed     `until`                     later
/// ```
pub(super) struct AllRoomsPattern {
    pub(super) name: Arc<str>,
    /// When this state ends.
    pub(super) until: Instant,
    /// Confirmed, so that the rooms' own channels are not subscribed: Redis would deliver and count
    /// each message twice.
    pub(super) is_alone: bool,
}

impl NamespaceChannels {
    /// Returns whether rooms are subscribed only by the pattern of all rooms.
    pub(super) fn is_by_pattern(&self) -> bool {
        let all_rooms = self.all_rooms.as_ref();
        all_rooms.is_some_and(|pattern| pattern.is_alone)
    }
}

/// How messages to the private rooms of the namespace arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Private {
    /// On a channel that is subscribed anyway, or not at all.
    Elsewhere,
    /// By this pattern, which matches the ids that begin with the tag of the node.
    Pattern { pattern: Arc<str>, tag: Box<str> },
    /// On one channel each.
    Channels,
}

/// How many sockets were reached by the broadcasts that will be asked about.
#[derive(Debug, Default)]
pub(crate) struct Reached(VecDeque<(Box<str>, usize)>);

impl Reached {
    pub(crate) fn note(&mut self, id: &str, sockets: usize) {
        if self.0.len() >= REACHED_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((id.into(), sockets));
    }

    /// Returns the number of sockets that the broadcast reached: 0 if it did not arrive here.
    pub(crate) fn take(&mut self, id: &str) -> usize {
        let found = self.0.iter().position(|(known, _)| **known == *id);
        found
            .and_then(|index| self.0.remove(index))
            .map_or(0, |(_, sockets)| sockets)
    }
}

impl AttachedNamespace {
    /// Returns the channel that has to be subscribed for a room, if any.
    pub(super) fn channel_of(&self, channels: &Channels, room: &str) -> Option<String> {
        let is_needed = match channels.dialect() {
            // With a channel in addition to the pattern, the message would arrive twice.
            Dialect::Classic => !self.matches_pattern(room),
            Dialect::Sharded(mode) => mode.has_channel(room),
            Dialect::Streams => false,
        };
        is_needed.then(|| channels.room(&self.name, room))
    }

    /// Returns whether messages on the channel arrive by the pattern of private rooms.
    pub(super) fn is_covered(&self, channels: &Channels, channel: &str) -> bool {
        let room = channels.room_of(channel, &self.name).flatten();
        room.is_some_and(|room| self.matches_pattern(room))
    }

    /// Returns whether the pattern matches the name of a room. Redis counts bytes, too.
    fn matches_pattern(&self, room: &str) -> bool {
        match &self.private_rooms {
            Private::Pattern { tag, .. } => room.len() == SocketId::LEN && room.starts_with(&**tag),
            Private::Elsewhere | Private::Channels => false,
        }
    }

    /// Returns whether messages to this private room arrive without a separate channel.
    /// In a sharded dialect that publishes them to everybody, all do.
    pub(crate) fn is_own(&self, room: &str) -> bool {
        match &self.private_rooms {
            Private::Pattern { .. } => self.matches_pattern(room),
            Private::Elsewhere | Private::Channels => true,
        }
    }

    /// Returns the changes that the namespace's listener reports.
    pub(crate) fn tracking(&self, dialect: Dialect) -> Tracking {
        match (dialect, &self.private_rooms) {
            (Dialect::Sharded(Mode::Static) | Dialect::Streams, _) => Tracking::Nothing,
            (_, Private::Channels) => Tracking::RoomsAndSockets,
            _ => Tracking::Rooms,
        }
    }
}
