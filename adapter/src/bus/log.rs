//! The bounded logs of a namespace, as the server sees them: of each room, and of all broadcasts.

use std::{future::ready, time::Duration};

pub use roomcast_emitter::JournalLimits;
use roomcast_protocol::{
    args::Args,
    message::{Broadcast, Position},
    target::Target,
};

use super::{BusError, BusFuture, Once, Published};

/// Stores and publishes the broadcasts of rooms.
///
/// A namespace can have a *history* of each room and a *journal* of all its broadcasts, which share
/// their ids. A message published to a room is in both; any other broadcast is in the journal only.
///
/// Every implementation gives these guarantees; one suite of tests checks all of them:
/// - Every broadcast is stored and published in one step, so none is published without being
///   stored.
/// - All nodes, the publishing one included, receive the broadcasts of a namespace in the order of
///   their ids, except for losses that a [`Gap`](super::Gap) covers. So a reader that has the
///   broadcast of one id in the log has all earlier ones of the room that are kept.
/// - Ids of a namespace increase. They begin at the seconds since 1970, so that they increase even
///   after a loss of the log, as long as a namespace gets at most one broadcast a second on
///   average; otherwise [`Page::After`] an id that the log has not given returns all that is kept.
///   The unit is not finer, because clients of Syncano keep ids in 32 bits.
/// - Where ids fall because the log is lost, the times of positions grow. So a broadcast
///   is new to a reader if its id or its time is greater than those of all that it has
///   seen.
/// - With a journal, each position names the one [before](Position::after) it, so a
///   receiver notices what it has missed.
pub trait Log: Send + Sync + 'static {
    /// Stores an event for one room and publishes it. The future resolves to its position
    /// once it is stored, which may be before or after the members of the room receive
    /// it.
    ///
    /// Resolves to [`BusError::Unconfirmed`] if the event may have been stored and
    /// published. With any other error it was not.
    fn publish(&self, room: &str, event: &str, args: Args)
    -> BusFuture<Result<Position, BusError>>;

    /// Reads at most `limit` entries of a room, the oldest first.
    fn read(
        &self,
        room: &str,
        page: Page,
        limit: usize,
    ) -> BusFuture<Result<Vec<HistoryEntry>, BusError>>;

    /// Stores a broadcast in the journal and publishes it, with the errors of
    /// [`publish`](Self::publish). The result always has a position.
    fn broadcast(&self, broadcast: Broadcast) -> BusFuture<Result<Published, BusError>>;

    /// The same, once for each idempotency key of the namespace. The first result is
    /// returned again, with [`Published::is_replayed`]. Default: the log has no keys.
    fn broadcast_once(
        &self,
        _broadcast: Broadcast,
        _once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let reason = "the log has no idempotency keys".into();
        Box::pin(ready(Err(BusError::Invalid(reason))))
    }

    /// Reads at most `limit` entries of the journal, the oldest first.
    fn read_journal(&self, page: Page, limit: usize) -> BusFuture<Result<JournalPage, BusError>>;

    /// Announces the journal of the namespace to emitters, so that they append their messages to
    /// it. Call it regularly, because Redis may lose the entry. Default: there are no emitters.
    /// `at_least_once`: whether broadcasts can be emitted at least once.
    fn announce(&self, _at_least_once: bool) -> BusFuture<Result<(), BusError>> {
        Box::pin(ready(Ok(())))
    }

    /// Returns the text by which clients name the place of a broadcast when they come
    /// back, from its id and its time. Default: both, with a hyphen between them.
    fn offset(&self, id: u64, time: u64) -> String {
        format!("{id}-{time}")
    }

    /// Reads a text of [`offset`](Self::offset).
    fn read_offset(&self, text: &str) -> Option<(u64, u64)> {
        let (id, time) = text.split_once('-')?;
        Some((id.parse().ok()?, time.parse().ok()?))
    }
}

/// The logs that a namespace keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogLimits {
    /// Of each room.
    pub history: Option<HistoryLimits>,
    /// Of all broadcasts.
    pub journal: Option<JournalLimits>,
}

impl From<HistoryLimits> for LogLimits {
    fn from(history: HistoryLimits) -> Self {
        Self {
            history: Some(history),
            journal: None,
        }
    }
}

impl From<JournalLimits> for LogLimits {
    fn from(journal: JournalLimits) -> Self {
        Self {
            history: None,
            journal: Some(journal),
        }
    }
}

/// A broadcast of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Its place. [`Position::after`] is set.
    pub position: Position,
    /// The event.
    pub broadcast: Broadcast,
}

impl JournalEntry {
    /// Its size in memory, roughly.
    pub fn bytes(&self) -> usize {
        let Broadcast {
            target,
            event,
            args,
        } = &self.broadcast;
        let names = target.rooms.iter().chain(&target.except);
        let names: usize = names.map(|name| name.len() + size_of::<Box<str>>()).sum();
        let attached: usize = args.attachments().iter().map(bytes::Bytes::len).sum();
        size_of::<Self>() + names + event.len() + args.json().len() + attached
    }
}

/// A page of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalPage {
    /// The entries, the oldest first.
    pub entries: Vec<JournalEntry>,
    /// The places of broadcasts between them that are stored and cannot be read, the
    /// oldest first. They are links of the chain, so only their content is missing.
    pub unreadable: Vec<Position>,
    /// Whether there may be more entries in the direction of reading.
    pub is_full: bool,
    /// The last id that the namespace has assigned, whether or not its broadcast is kept. 0 if it
    /// has assigned none, or the log was lost.
    pub newest: u64,
}

impl JournalPage {
    /// Adds the broadcast at a position, `None` if it cannot be read.
    pub(crate) fn push(&mut self, position: Position, broadcast: Option<Broadcast>) {
        match broadcast {
            Some(broadcast) => self.entries.push(JournalEntry {
                position,
                broadcast,
            }),
            None => self.unreadable.push(position),
        }
    }
}

/// The limits of a log for each room. The oldest entries are removed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Maximum number of entries of a room. Default 1,000.
    pub messages: usize,
    /// Maximum size of a room's entries, in bytes as they are stored. The newest entry is kept
    /// regardless of its size. Default 1 MiB.
    pub bytes: usize,
    /// How long an entry is kept, in whole seconds, at least one. Default 24 hours.
    pub age: Duration,
    /// Maximum size of all rooms of a namespace, in bytes. The rooms whose latest entry is oldest
    /// are removed. For logs in memory only: in Redis, `maxmemory` is the limit. Default 64 MiB.
    pub memory_bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            messages: 1000,
            bytes: 1 << 20,
            age: Duration::from_secs(24 * 60 * 60),
            memory_bytes: 64 << 20,
        }
    }
}

/// A stored broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The id. Within a room, ids increase and have gaps.
    pub id: u64,
    /// When it was stored, in milliseconds since 1970.
    pub time: u64,
    /// The room.
    pub room: Box<str>,
    /// The name of the event.
    pub event: Box<str>,
    /// Its arguments.
    pub args: Args,
}

/// An event for one room.
pub(crate) fn to_room(room: &str, event: &str, args: Args) -> Broadcast {
    let mut target = Target::default();
    target.add_rooms(room);
    Broadcast {
        target,
        event: event.into(),
        args,
    }
}

/// Which entries of a room are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The first ones after this id. After an id that is greater than all assigned ones, the first
    /// ones that are kept, because the id is from an earlier log that was lost.
    After(u64),
    /// The last ones before this id.
    Before(u64),
    /// The last ones.
    Latest,
    /// The one with this id.
    Only(u64),
}
