//! Messages that a namespace keeps: publishing them, and reading them again.
//!
//! ```text
//! publish:    one room, within the limits ─► stored and emitted by one step of the log
//! join_from:  hold what arrives ─► join ─► read the logs ─► kept events ─► held ones that are new
//! ```
//!
//! **Why a join comes before the reading.** An event that is published meanwhile is in
//! the log, or arrives, or both. Arriving events are held until those of the log are
//! sent, and their ids show which of them the client has.

use std::sync::Arc;

use roomcast_adapter::{BusError, HistoryEntry, Log, Page, Position};
use roomcast_protocol::{args::IntoArgs, target::Rooms};

use super::{
    broadcast::{BroadcastOperator, Visit},
    cluster::names,
    error::{EmitError, HistoryError, JoinFromError, PublishError},
    live_namespace::LiveNamespace,
    socket::{Socket, check_event},
};
use crate::transport::{
    frame::Frame,
    plain::{Followed, Hold, Reached, Source},
};

/// The messages that are kept of one room. [`BroadcastOperator::history`] makes it.
///
/// All methods return entries with the oldest one first, in the order of their ids.
///
/// ```
/// # use roomcast::{HistoryError, Server};
/// # async fn run(io: Server, last_seen: u64) -> Result<(), HistoryError> {
/// for entry in io.of("/").history("news").after(last_seen, 100).await? {
///     println!("{} {} {}", entry.id, entry.event, entry.args.json());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct History {
    log: Result<Arc<dyn Log>, HistoryError>,
    room: Box<str>,
    _visit: Option<Arc<Visit>>,
}

impl History {
    /// Returns the first entries after this id, at most `limit`. An `id` of 0 begins with
    /// the oldest entry that is kept. So does an id that the log has never assigned, because it is
    /// from a lost log.
    ///
    /// # Errors
    ///
    /// The namespace keeps no messages, or Redis cannot be reached. This applies to all methods.
    pub async fn after(&self, id: u64, limit: usize) -> Result<Vec<HistoryEntry>, HistoryError> {
        self.read(Page::After(id), limit).await
    }

    /// Returns the last entries before this id, at most `limit`.
    pub async fn before(&self, id: u64, limit: usize) -> Result<Vec<HistoryEntry>, HistoryError> {
        self.read(Page::Before(id), limit).await
    }

    /// Returns the last entries, at most `limit`.
    pub async fn latest(&self, limit: usize) -> Result<Vec<HistoryEntry>, HistoryError> {
        self.read(Page::Latest, limit).await
    }

    /// Returns the entry with this id, if it is kept.
    pub async fn get(&self, id: u64) -> Result<Option<HistoryEntry>, HistoryError> {
        Ok(self.read(Page::Only(id), 1).await?.pop())
    }

    async fn read(&self, page: Page, limit: usize) -> Result<Vec<HistoryEntry>, HistoryError> {
        let log = self.log.as_ref().map_err(Clone::clone)?;
        if limit == 0 {
            return Ok(Vec::new());
        }
        let read = log.read(&self.room, page, limit).await;
        read.map_err(|error| HistoryError::Unavailable(error.to_string().into()))
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History")
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

impl BroadcastOperator {
    /// Stores an event in the history of a room and emits it to the room's sockets, in
    /// one step. The namespace must keep a [history](super::Namespace::history), and
    /// exactly one room must be selected, without exceptions and without
    /// [`volatile`](Self::volatile) or [`local`](Self::local).
    ///
    /// The sockets of all nodes, this one included, receive the published events of a
    /// namespace in the order of their ids. A socket of this node may receive the event
    /// before or after this resolves.
    ///
    /// ```
    /// # use roomcast::{PublishError, Server};
    /// # async fn run(io: Server) -> Result<(), PublishError> {
    /// let position = io.to("news").publish("headline", "It rains").await?;
    /// println!("stored as {} at {} ms", position.id, position.time);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// With [`PublishError::Unconfirmed`], the event may have been stored and emitted.
    /// With any other error, it was neither.
    pub async fn publish(self, event: &str, args: impl IntoArgs) -> Result<Position, PublishError> {
        let namespace = self.live()?;
        check_event(event)?;
        let args = namespace.encode(args).map_err(EmitError::Args)?;
        let target = self.target();
        if target.flags.at_least_once {
            let reason = "an event that is published does not keep the flag";
            return Err(EmitError::AtLeastOnce(reason).into());
        }
        let ([room], [], false, false) = (
            &target.rooms[..],
            &target.except[..],
            target.flags.volatile,
            target.flags.local,
        ) else {
            return Err(PublishError::NotOneRoom);
        };
        let log = namespace.log()?;
        let limit = namespace.handlers.history.map_or(0, |limits| limits.bytes);
        let attached: usize = args.attachments().iter().map(bytes::Bytes::len).sum();
        if event.len() + args.json().len() + attached > limit {
            return Err(PublishError::TooLarge { limit });
        }
        Ok(log.publish(room, event, args).await?)
    }

    /// Selects the messages that are kept of a room. Other rooms that were selected are ignored.
    pub fn history(&self, room: &str) -> History {
        let log = match self.namespace() {
            Ok(namespace) => namespace.log().cloned(),
            Err(name) => Err(HistoryError::UnknownNamespace(name.into())),
        };
        History {
            log,
            room: room.into(),
            _visit: self.visit(),
        }
    }
}

impl Socket {
    /// Makes the socket of a [plain connection](crate::plain) join rooms that keep a
    /// [history](super::Namespace::history), so that it receives every event published to them
    /// after the id `after`, once and in the order of ids across these rooms: first the kept
    /// events, then new ones. Without `after`, it begins with events published from now on.
    ///
    /// Returns the id that the next event follows: that of the last event that was sent, or of the
    /// newest one of the rooms; 0 if nothing is kept. A client that later passes it as `after`, on
    /// any node, misses no event that is still kept.
    ///
    /// After a [gap](crate::Gap), the node reads the histories again and sends the missing events.
    /// They follow the events that have arrived meanwhile, so ids are out of order there. If a
    /// history cannot be read, the node retries at least every 5 s. If Redis has lost its data, ids
    /// may be lower than before, but the times of the events are later.
    ///
    /// Kept messages wait in the outbox, within its
    /// [limits](crate::Limits::outbox_bytes). Events that are emitted without being
    /// published are not kept and not numbered.
    ///
    /// # Errors
    ///
    /// After any but [`JoinFromError::Emit`] with a refused join, the socket is in the rooms
    /// nevertheless, and receives events published to them from now on.
    pub async fn join_from(
        &self,
        rooms: impl Rooms,
        after: Option<u64>,
    ) -> Result<u64, JoinFromError> {
        if !self.local_socket().is_plain() {
            return Err(EmitError::NotPlain.into());
        }
        let names = names(&rooms);
        let namespace = self.live();
        let log = namespace.log()?;
        let from = match after {
            Some(id) => Reached { id, time: 0 },
            None => newest(&**log, &names).await?,
        };
        let hold = Hold::new(self.connection());
        self.join_confirmed(names.as_slice()).await?;
        let limit = namespace
            .handlers
            .history
            .map_or(0, |limits| limits.messages);
        // The logs are read one after the other. A message published meanwhile may be in a
        // later one and not in an earlier one, so it is left to arrive, after all earlier messages.
        let until = match names.len() {
            0 | 1 => u64::MAX,
            _ => newest(&**log, &names).await?.id,
        };
        let (mut entries, mut follow) = (Vec::new(), Vec::new());
        for room in names {
            let mut page = log.read(&room, Page::After(from.id), limit).await?;
            let known = match page.first() {
                Some(first) => Some(place(first)),
                None => log.read(&room, Page::Latest, 1).await?.first().map(place),
            };
            let last = match known {
                // The time of the client's id is not known. This one is not before it,
                // and not after that of an event which arrives later.
                Some(known) if page.is_empty() || known.id > from.id => Reached {
                    id: from.id,
                    time: from.time.max(known.time),
                },
                // An id that the log has not given is from one that was lost.
                _ => Reached::default(),
            };
            page.retain(|entry| entry.id <= until);
            let begin = page.last().map_or(last, place);
            follow.push(Followed { room, begin, last });
            entries.extend(page);
        }
        entries.sort_unstable_by_key(|entry| entry.id);
        let begin = follow.iter().map(|room| room.last.id).max().unwrap_or(0);
        let last = entries.last().map_or(begin, |entry| entry.id);
        let frames = entries.into_iter().map(|entry| namespace.frame_of(entry));
        let frames: Vec<_> = frames.collect::<Result<_, _>>()?;
        hold.replay(follow, &frames);
        Ok(last)
    }
}

/// The place of the newest entry of all these rooms.
async fn newest(log: &dyn Log, rooms: &[Box<str>]) -> Result<Reached, BusError> {
    let mut newest = Reached::default();
    for room in rooms {
        let page = log.read(room, Page::Latest, 1).await?;
        let of_room = page.first().map(place);
        if let Some(of_room) = of_room.filter(|of_room| of_room.id > newest.id) {
            newest = of_room;
        }
    }
    Ok(newest)
}

fn place(entry: &HistoryEntry) -> Reached {
    Reached {
        id: entry.id,
        time: entry.time,
    }
}

impl LiveNamespace {
    /// An entry of a log as it was published.
    pub(super) fn frame_of(&self, entry: HistoryEntry) -> Result<Frame, EmitError> {
        let frame = self
            .parser
            .event(&self.name, None, &entry.event, &entry.args)?;
        Ok(frame.of_event(Source {
            name: entry.event,
            args: entry.args,
            room: Some(entry.room),
            position: Some(Position {
                id: entry.id,
                time: entry.time,
                after: None,
            }),
        }))
    }

    /// The log of the namespace's rooms.
    fn log(&self) -> Result<&Arc<dyn Log>, HistoryError> {
        let log = self.log.as_ref();
        log.filter(|_| self.handlers.history.is_some())
            .ok_or(HistoryError::NotKept)
    }
}

impl From<BusError> for PublishError {
    fn from(error: BusError) -> Self {
        let reason = error.to_string().into();
        match error {
            BusError::Unconfirmed(_) => Self::Unconfirmed(reason),
            // Redis also refuses commands that it could accept later, for example when its memory
            // is full.
            BusError::Unavailable(_)
            | BusError::Overloaded { .. }
            | BusError::KeyReused
            | BusError::Invalid(_) => Self::Unavailable(reason),
        }
    }
}
