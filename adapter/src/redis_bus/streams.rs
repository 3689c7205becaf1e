//! The streams dialect: messages are entries of one stream in Redis, which every node reads.
//!
//! ```text
//!  publish ─► XADD, MAXLEN ~ n ─► the stream ─► XREAD BLOCK, on a connection of its own ─► Receiver
//!                                     └────────► XRANGE: the journal, for clients that come back
//!  ask     ─► PUBLISH on the namespace's channel, as in the other dialects
//! ```
//!
//! An outage of Redis loses nothing: the reader continues after the last entry that it has read.
//! Only if the stream was trimmed or lost beyond that entry does it report a gap. Answers and
//! questions use channels, as in Node's adapter, so a question may overtake a message.

mod entries;
mod log;
mod reader;

use std::{
    collections::HashMap,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use roomcast_emitter::redis::{Reply, Route};
use roomcast_protocol::{
    message::Message,
    wire::{Entry, WireError},
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};

use self::entries::Id;
pub(super) use self::{log::StreamLog, reader::read};
use super::{
    membership::Membership, metrics::StreamMetrics, once, outgoing::Outgoing, script::unexpected,
};
use crate::bus::{BusError, BusFuture, Once, Published};

/// How long a namespace waits for the reader.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of the stream that the parts of the bus share.
pub(super) struct Streams {
    outgoing: Arc<Outgoing>,
    membership: Arc<Membership>,
    key: Arc<str>,
    /// About how many entries Redis keeps.
    max_len: usize,
    metrics: StreamMetrics,
    /// The prefix of the keys of sessions.
    pub(super) session_prefix: Arc<str>,
    /// Why the stream is not read; `None` while it is.
    interrupted: watch::Sender<Option<Arc<str>>>,
    /// The last entry of each journal that was delivered.
    chains: Mutex<HashMap<Arc<str>, Chain>>,
    /// Whether a namespace has a log that is published on its channel.
    has_channel_logs: AtomicBool,
}

/// How far a journal was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// No entry of it was delivered yet.
    Unknown,
    /// Up to the entry with this id. 0: there is none.
    UpTo(u64),
}

impl Streams {
    pub(super) fn new(
        outgoing: &Arc<Outgoing>,
        membership: &Arc<Membership>,
        max_len: usize,
        session_prefix: &str,
        metrics: StreamMetrics,
    ) -> Self {
        Self {
            metrics,
            session_prefix: session_prefix.into(),
            outgoing: Arc::clone(outgoing),
            membership: Arc::clone(membership),
            key: outgoing.wire.channels().stream().into(),
            max_len: max_len.max(1),
            interrupted: watch::Sender::new(Some("connecting to Redis".into())),
            chains: Mutex::default(),
            has_channel_logs: false.into(),
        }
    }

    /// Returns why the stream is not read, if it is not.
    pub(super) fn interrupted(&self) -> Option<Arc<str>> {
        self.interrupted.borrow().clone()
    }

    /// Resolves once the reader has its place in the stream.
    pub(super) async fn begun(&self) -> Result<(), BusError> {
        let mut interrupted = self.interrupted.subscribe();
        let is_read = interrupted.wait_for(Option::is_none);
        if matches!(time::timeout(BEGIN_TIMEOUT, is_read).await, Ok(Ok(_))) {
            return Ok(());
        }
        let reason = self.interrupted().unwrap_or_default();
        Err(BusError::Unavailable(reason))
    }

    /// Notes that a namespace has a log that is published on its channel.
    pub(super) fn has_channel_log(&self) {
        self.has_channel_logs.store(true, Ordering::Relaxed);
    }

    /// Whether messages other than questions can be missed on channels while they are not
    /// subscribed.
    pub(super) fn loses_by_channels(&self) -> bool {
        self.has_channel_logs.load(Ordering::Relaxed)
    }

    /// Appends a message to the stream. It is enqueued when this returns.
    pub(super) fn publish(
        &self,
        namespace: &str,
        uid: &str,
        message: &Message,
    ) -> BusFuture<Result<Published, BusError>> {
        let entry = self.outgoing.wire.entry(namespace, uid, message, None);
        let adding = match self.add(entry) {
            Ok(adding) => adding,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        let nodes = self.others();
        Box::pin(async move {
            adding.await?;
            Ok(Published {
                nodes,
                ..Published::default()
            })
        })
    }

    /// Appends a message to the stream, once for each idempotency key. The position is that of its entry.
    pub(super) fn publish_once(
        &self,
        namespace: &str,
        uid: &str,
        message: &Message,
        once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let entry = self.outgoing.wire.entry(namespace, uid, message, None);
        let command = match entry {
            Ok(entry) => self.command(&entry),
            Err(error) => return Box::pin(ready(Err(self.outgoing.invalid(&error)))),
        };
        let appending = once::append(&self.outgoing, namespace, &command, once, self.others());
        Box::pin(async move {
            let (published, id) = appending.await?;
            let id = Id::parse(&id).ok_or_else(unexpected)?;
            Ok(Published {
                position: id.position(None),
                ..published
            })
        })
    }

    /// The command that appends an entry.
    fn command(&self, entry: &Entry<'_>) -> Vec<String> {
        let max_len = self.max_len.to_string();
        let head = ["XADD", &self.key, "MAXLEN", "~", &max_len, "*"];
        let fields = entry.fields().flat_map(|(name, value)| [name, value]);
        head.into_iter().chain(fields).map(str::to_owned).collect()
    }

    /// Appends an entry. The future resolves to its id.
    fn add(
        &self,
        entry: Result<Entry<'_>, WireError>,
    ) -> Result<impl Future<Output = Result<Id, BusError>> + Send + use<>, BusError> {
        let entry = entry.map_err(|error| self.outgoing.invalid(&error))?;
        let command = self.command(&entry);
        let bytes = entry.data.len() as u64;
        let started = Instant::now();
        let adding = self.outgoing.command(&command, Route::Key(&self.key));
        let outgoing = Arc::clone(&self.outgoing);
        Ok(outgoing.clone().followed(async move {
            let replies = adding.await;
            let added = replies.and_then(|replies| {
                let id = replies.first().and_then(|reply| Id::parse(reply.text()?));
                id.ok_or_else(unexpected)
            });
            outgoing.count(bytes, started, added.as_ref().map(|_| 0));
            added.map_err(BusError::from)
        }))
    }

    /// The number of other nodes, as it was a moment ago: Redis does not report the readers of a
    /// stream.
    fn others(&self) -> usize {
        self.membership.leases().alive().saturating_sub(1)
    }

    /// The namespace has a journal from now on.
    fn follow_chain(&self, namespace: &Arc<str>) {
        let mut chains = self.chains.lock();
        chains
            .entry(Arc::clone(namespace))
            .or_insert(Chain::Unknown);
    }

    /// The namespace is detached.
    pub(super) fn forget_chain(&self, namespace: &str) {
        self.chains.lock().remove(namespace);
    }
}
