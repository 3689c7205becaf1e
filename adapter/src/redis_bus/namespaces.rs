//! The namespaces of this node: their names on the wire, and which channels they want to hear.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use super::interest::Interest;
use crate::bus::{Listener, Tracking};
use parking_lot::{Mutex, RwLock};
use roomcast_protocol::{
    channel::{Channels, Dialect, Mode, Uid},
    id::SocketId,
    wire::Echo,
};
use tokio::time::Instant;

/// How many confirmed broadcasts are remembered until they are asked about. The question follows
/// its broadcast at once.
const REACHED_REMEMBERED: usize = 1024;

/// All namespaces by name.
#[derive(Default)]
pub(super) struct Namespaces(RwLock<HashMap<Arc<str>, Arc<Attached>>>);

/// A namespace that is attached.
pub(super) struct Attached {
    pub(super) namespace: Arc<str>,
    pub(super) uid: Uid,
    pub(super) listener: Weak<dyn Listener>,
    /// Knows what this node has published in the namespace.
    pub(super) echo: Echo,
    pub(super) private_rooms: Private,
    /// The rooms' channels. Changes are taken and carried out under the bus's lock for what it
    /// subscribes, so that they cannot overtake each other.
    pub(super) interest: Mutex<Interest>,
    pub(super) reached: Mutex<Reached>,
    /// When it was attached.
    pub(super) since: Instant,
    /// Whether it was made for a client: there may be any number of those.
    pub(super) is_dynamic: bool,
}

/// How messages to the private rooms of the namespace arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Private {
    /// On a channel that is subscribed anyway, or not at all.
    Elsewhere,
    /// By this pattern, which stands for ids that begin with the tag of the node.
    Pattern { pattern: String, tag: Box<str> },
    /// On one channel each.
    Channels,
}

/// How many sockets the broadcasts reached that will be asked about.
#[derive(Debug, Default)]
pub(super) struct Reached(VecDeque<(Box<str>, usize)>);

impl Reached {
    pub(super) fn note(&mut self, id: &str, sockets: usize) {
        if self.0.len() >= REACHED_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((id.into(), sockets));
    }

    /// The sockets that the broadcast reached; none if it did not come by.
    pub(super) fn take(&mut self, id: &str) -> usize {
        let found = self.0.iter().position(|(known, _)| **known == *id);
        found
            .and_then(|index| self.0.remove(index))
            .map_or(0, |(_, sockets)| sockets)
    }
}

impl Namespaces {
    pub(super) fn get(&self, namespace: &str) -> Option<Arc<Attached>> {
        self.0.read().get(namespace).cloned()
    }

    pub(super) fn insert(&self, attached: Arc<Attached>) -> Option<Arc<Attached>> {
        self.0
            .write()
            .insert(Arc::clone(&attached.namespace), attached)
    }

    /// Removes the namespace unless another one of this name has replaced it. Returns whether it
    /// was there.
    pub(super) fn remove(&self, attached: &Arc<Attached>) -> bool {
        let mut namespaces = self.0.write();
        let current = namespaces.get(&attached.namespace);
        let is_current = current.is_some_and(|current| Arc::ptr_eq(current, attached));
        if is_current {
            namespaces.remove(&attached.namespace);
        }
        is_current
    }

    pub(super) fn all(&self) -> Vec<Arc<Attached>> {
        self.0.read().values().cloned().collect()
    }
}

impl Attached {
    /// The channel of a room, if it is to be subscribed for it.
    pub(super) fn channel_of(&self, channels: &Channels, room: &str) -> Option<String> {
        let is_wanted = match channels.dialect() {
            // It would arrive twice.
            Dialect::Classic => !self.matches_pattern(room),
            Dialect::Sharded(mode) => mode.has_channel(room),
        };
        is_wanted.then(|| channels.room(&self.namespace, room))
    }

    /// Whether what is published on the channel arrives through the pattern of private rooms.
    pub(super) fn is_covered(&self, channels: &Channels, channel: &str) -> bool {
        let room = channels.room_of(channel, &self.namespace).flatten();
        room.is_some_and(|room| self.matches_pattern(room))
    }

    /// Whether the room's name is one that the pattern stands for. Redis counts bytes, too.
    fn matches_pattern(&self, room: &str) -> bool {
        match &self.private_rooms {
            Private::Pattern { tag, .. } => room.len() == SocketId::LEN && room.starts_with(&**tag),
            Private::Elsewhere | Private::Channels => false,
        }
    }

    /// What the namespace's listener has to report.
    pub(super) fn tracking(&self, dialect: Dialect) -> Tracking {
        match (dialect, &self.private_rooms) {
            (Dialect::Sharded(Mode::Static), _) => Tracking::Nothing,
            (_, Private::Channels) => Tracking::RoomsAndSockets,
            _ => Tracking::Rooms,
        }
    }
}
