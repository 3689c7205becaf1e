//! Messages that a namespace keeps: publishing them, and reading them again.

use std::sync::Arc;

use roomcast_adapter::{BusError, HistoryEntry, Log, Page, Position};
use roomcast_protocol::args::IntoArgs;

use super::{
    broadcast::{BroadcastOperator, Visit},
    error::{EmitError, HistoryError, PublishError},
    live_namespace::LiveNamespace,
    socket::check_event,
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
    /// Returns the first entries after this id, at most `limit`. An `id` of 0 begins with the oldest
    /// entry that is kept. So does an id that the log has never given, because it is from a log that
    /// was lost.
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
    /// Stores an event in the history of a room and emits it to the room's sockets, in one step. The
    /// namespace must keep a [history](super::Namespace::history), and exactly one room must be
    /// selected, without exceptions and without [`volatile`](Self::volatile) or [`local`](Self::local).
    ///
    /// The sockets of all nodes, this one included, receive the published events of a namespace in the
    /// order of their ids. A socket of this node may receive the event before or after this resolves.
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
    /// With [`PublishError::Unconfirmed`], the event may have been stored and emitted. With any other
    /// error, it was neither.
    pub async fn publish(self, event: &str, args: impl IntoArgs) -> Result<Position, PublishError> {
        let namespace = self.live()?;
        check_event(event)?;
        let args = args.into_args().map_err(EmitError::Args)?;
        let target = self.target();
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

impl LiveNamespace {
    /// The log of the namespace's rooms.
    fn log(&self) -> Result<&Arc<dyn Log>, HistoryError> {
        self.log.as_ref().ok_or(HistoryError::NotKept)
    }
}

impl From<BusError> for PublishError {
    fn from(error: BusError) -> Self {
        let reason = error.to_string().into();
        match error {
            BusError::Unconfirmed(_) => Self::Unconfirmed(reason),
            BusError::Unavailable(_) | BusError::Overloaded { .. } | BusError::Invalid(_) => {
                Self::Unavailable(reason)
            }
        }
    }
}
