//! The logs of a namespace in Redis.
//!
//! One script stores a broadcast in the stream of its room and in the journal, another
//! one many broadcasts in the journal, and both publish them, so that ids are received in the order
//! in which they were assigned, and a reader that has received one finds all earlier ones:
//!
//! ```text
//! publish ─► EVALSHA ─┬─ id: the counter of the namespace, or the clock if it is ahead
//!                     ├─ XADD, trim, EXPIRE: the streams
//!                     └─ PUBLISH on the namespace's channel ─► all nodes, the publishing one included
//!    NOSCRIPT ─► EVAL: Redis has restarted, and nothing was executed
//! ```
//!
//! The stream stores the output of [`Wire::unplaced`]; the script appends the position to the
//! published message. All keys are in the slot of the channel. An attempt without a reply is never
//! repeated.
//!
//! [`Wire::unplaced`]: roomcast_protocol::wire::Wire::unplaced
//!
//! **Why scripts.** An id that is assigned in one step and published in another could
//! be overtaken: a node would receive 7 before 6, and could not distinguish a late broadcast from a
//! lost one. Redis runs a script as a whole, so the order of ids is the order of arrival.
//!
//! **Why one queue, if there is a journal.** Broadcasts for the journal are combined, see
//! [`batches`]. A broadcast for the log of a room shares no call, but goes through the same queue,
//! so that the order of calls stays the order of ids.
//!
//! **Entries may come from any version**, with any settings. So each entry is
//! checked like a message from the bus, and one that cannot be read is reported and
//! left out, because a single bad entry must not make the rest of a log unreadable.

mod batches;

use std::{
    future::ready,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redis::Value;
use roomcast_emitter::{
    log::{COUNTER_LIFE, JOURNAL, Names, PUBLISH, Placed, appended, published, seconds},
    redis::{PublishError, Reply, Route},
};
use roomcast_protocol::{
    args::Args,
    channel::Kind,
    message::{Broadcast, Message, Position},
    wire::{Incoming, placed},
};
use tokio::time::Instant;

use self::batches::{Batches, Single};
use super::{
    once,
    outgoing::Outgoing,
    script::{Script, run, unexpected},
    subscriptions::{AttachedNamespace, Subscriptions},
    warnings::Warnings,
};
use crate::bus::{
    BusError, BusFuture, HistoryEntry, JournalPage, Log, LogLimits, Once, Page, Published, to_room,
};

/// Entries that are read with one command. Redis serves no other client meanwhile: a hundred
/// entries of 1 KiB take it 50 µs.
const PAGE: usize = 100;

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("log/read.lua")));

/// The logs of one namespace of a node.
pub(super) struct RedisLog {
    outgoing: Arc<Outgoing>,
    subscriptions: Arc<Subscriptions>,
    namespace: Arc<AttachedNamespace>,
    limits: LogLimits,
    names: Arc<Names>,
    /// The broadcasts that are on their way to the journal, if there is one.
    batches: Option<Arc<Batches>>,
    unreadable: Arc<Warnings>,
}

impl RedisLog {
    pub(super) fn new(
        outgoing: &Arc<Outgoing>,
        subscriptions: &Arc<Subscriptions>,
        namespace: &Arc<AttachedNamespace>,
        limits: LogLimits,
    ) -> Self {
        let names = Arc::new(Names::new(outgoing.wire.channels(), &namespace.name));
        let batches = limits.journal.map(|kept| {
            let numbers = [counter_life(limits)].into_iter();
            let numbers = numbers.chain(bounds(kept.messages, kept.bytes, kept.age));
            let mut settings = vec![names.channel.as_bytes().to_vec(), names.publish.into()];
            settings.extend(numbers.map(|number| number.to_string().into_bytes()));
            Batches::new(outgoing, &names, settings)
        });
        Self {
            names,
            batches,
            outgoing: Arc::clone(outgoing),
            subscriptions: Arc::clone(subscriptions),
            namespace: Arc::clone(namespace),
            limits,
            unreadable: Arc::default(),
        }
    }

    /// The key of a room.
    fn room(&self, room: &str) -> String {
        [&*self.names.counter, "#", room].concat()
    }

    /// The part of a broadcast that is stored.
    fn head(&self, broadcast: &Broadcast) -> Result<Bytes, BusError> {
        let head = self.outgoing.wire.unplaced(&self.namespace.name, broadcast);
        match head {
            Ok(publication) => self
                .outgoing
                .sealed_head(&self.names.channel, publication.payload),
            Err(error) => Err(self.outgoing.invalid(&error)),
        }
    }

    /// Stores a broadcast in the journal.
    /// The future may be dropped: the broadcast is enqueued when this returns.
    fn store_in_journal(&self, head: Bytes) -> BoxFuture<'static, Result<Placed, PublishError>> {
        match &self.batches {
            Some(batches) => Box::pin(batches.push(head, None)),
            None => {
                let reason = "the namespace has no journal".into();
                Box::pin(ready(Err(PublishError::Refused(reason))))
            }
        }
    }

    /// Stores a broadcast in the log of a room, and in the journal if there is one.
    fn store_in_room(
        &self,
        room: &str,
        head: Bytes,
    ) -> BoxFuture<'static, Result<Placed, PublishError>> {
        let LogLimits { history, journal } = self.limits;
        let Some(history) = history else {
            return self.store_in_journal(head);
        };
        let mut keys = vec![self.names.counter.to_string()];
        let mut numbers = vec![counter_life(self.limits), u64::from(journal.is_some())];
        if let Some(limits) = journal {
            keys.push(self.names.journal.to_string());
            numbers.extend(bounds(limits.messages, limits.bytes, limits.age));
        }
        // The order of keys and numbers is that of the script.
        keys.push(self.room(room));
        numbers.extend(bounds(history.messages, history.bytes, history.age));
        let mut args = vec![
            self.names.channel.as_bytes().to_vec(),
            head.to_vec(),
            self.names.publish.into(),
        ];
        args.extend(numbers.iter().map(|number| number.to_string().into_bytes()));
        if let Some(batches) = &self.batches {
            // After the earlier broadcasts.
            return Box::pin(batches.push(head, Some(Single { keys, args })));
        }
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let args: Vec<_> = args.iter().map(Vec::as_slice).collect();
        let (started, size) = (Instant::now(), head.len() as u64);
        let outgoing = Arc::clone(&self.outgoing);
        let running = run(&PUBLISH, &outgoing, &keys, &args);
        Box::pin(async move {
            let published = running.await.and_then(|reply| published(&reply));
            let receivers = published.as_ref().map(|(_, receivers)| *receivers);
            outgoing.count(size, started, receivers);
            published
        })
    }

    fn reading(&self, stream: &str) -> Reading {
        Reading {
            outgoing: Arc::clone(&self.outgoing),
            namespace: Arc::clone(&self.namespace),
            unreadable: Arc::clone(&self.unreadable),
            names: Arc::clone(&self.names),
            stream: stream.into(),
        }
    }
}

/// How long the counter of a namespace is kept, in seconds.
/// Longer than any entry is kept: a counter that lapsed before its entries would give
/// ids that readers have seen already.
fn counter_life(limits: LogLimits) -> u64 {
    let history = limits.history.map(|limits| limits.age);
    let journal = limits.journal.map(|limits| limits.age);
    let age = history.max(journal).map_or(1, seconds);
    age.saturating_add(COUNTER_LIFE)
}

/// The bounds of a stream, in the order of the scripts.
fn bounds(messages: usize, bytes: usize, age: Duration) -> [u64; 3] {
    [messages.max(1) as u64, bytes as u64, seconds(age)]
}

impl Log for RedisLog {
    fn publish(
        &self,
        room: &str,
        event: &str,
        args: Args,
    ) -> BusFuture<Result<Position, BusError>> {
        let head = match self.head(&to_room(room, event, args)) {
            Ok(head) => head,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        let storing = self.store_in_room(room, head);
        Box::pin(async move { Ok(storing.await?.0) })
    }

    fn read(
        &self,
        room: &str,
        page: Page,
        limit: usize,
    ) -> BusFuture<Result<Vec<HistoryEntry>, BusError>> {
        let reading = self.reading(&self.room(room));
        let age = self.limits.history.map_or(1, |limits| seconds(limits.age));
        let room = Box::<str>::from(room);
        Box::pin(async move {
            let age = age.saturating_mul(1000);
            Ok(reading.read_room(&room, page, limit, age).await?)
        })
    }

    fn broadcast(&self, broadcast: Broadcast) -> BusFuture<Result<Published, BusError>> {
        // Our own subscription is one of the receivers that Redis counts, and no other
        // node.
        let own = self
            .subscriptions
            .own_subscriptions(&self.namespace, &self.names.channel);
        let storing = match self.head(&broadcast) {
            Ok(head) => self.store_in_journal(head),
            Err(error) => return Box::pin(ready(Err(error))),
        };
        Box::pin(async move {
            let (position, receivers) = storing.await?;
            let receivers = usize::try_from(receivers).unwrap_or(usize::MAX);
            Ok(Published {
                nodes: receivers.saturating_sub(own),
                position: Some(position),
                ..Published::default()
            })
        })
    }

    fn broadcast_once(
        &self,
        broadcast: Broadcast,
        once: Once,
    ) -> BusFuture<Result<Published, BusError>> {
        let (outgoing, subscriptions) = (&self.outgoing, &self.subscriptions);
        let (namespace, journal) = (&self.namespace, self.limits.journal);
        once::publish(
            outgoing,
            subscriptions,
            namespace,
            &broadcast,
            once,
            journal,
        )
    }

    fn read_journal(&self, page: Page, limit: usize) -> BusFuture<Result<JournalPage, BusError>> {
        let reading = self.reading(&self.names.journal);
        Box::pin(async move { Ok(reading.read_journal(page, limit).await?) })
    }

    fn announce(&self, at_least_once: bool) -> BusFuture<Result<(), BusError>> {
        let Some(limits) = self.limits.journal else {
            return Box::pin(ready(Ok(())));
        };
        let key = &*self.names.limits;
        let command = limits.announce(key, at_least_once);
        let written = self.outgoing.command(&command, Route::Key(key));
        Box::pin(async move {
            written.await?;
            Ok(())
        })
    }
}

fn number(value: &Value) -> Option<u64> {
    u64::try_from(value.integer()?).ok()
}

/// One stream that is read, page by page.
struct Reading {
    outgoing: Arc<Outgoing>,
    namespace: Arc<AttachedNamespace>,
    unreadable: Arc<Warnings>,
    names: Arc<Names>,
    stream: Box<str>,
}

/// The result of a script that reads.
struct RawPage<'a> {
    /// Redis's time, in milliseconds since 1970.
    now: u64,
    entries: Vec<Raw<'a>>,
    /// The last id that was given.
    newest: u64,
}

/// An entry of the stream.
struct Raw<'a> {
    position: Position,
    head: &'a [u8],
}

impl Reading {
    /// Reads the log of a room, without entries older than `age` milliseconds.
    async fn read_room(
        &self,
        room: &str,
        page: Page,
        limit: usize,
        age: u64,
    ) -> Result<Vec<HistoryEntry>, PublishError> {
        let mut found = Vec::new();
        self.each_page(page, limit, |page| {
            // A stream is trimmed when something is stored, so it may have entries that
            // are too old.
            let oldest = page.now.saturating_sub(age);
            let before = found.len();
            let kept = page.entries.iter();
            let kept = kept.filter(|raw| raw.position.time >= oldest);
            found.extend(kept.filter_map(|raw| {
                let Broadcast { event, args, .. } = self.decode(raw)?;
                Some(HistoryEntry {
                    id: raw.position.id,
                    time: raw.position.time,
                    room: room.into(),
                    event,
                    args,
                })
            }));
            found.len() - before
        })
        .await?;
        if is_backwards(page) {
            found.reverse();
        }
        Ok(found)
    }

    async fn read_journal(&self, page: Page, limit: usize) -> Result<JournalPage, PublishError> {
        let mut read = JournalPage::default();
        read.is_full = self
            .each_page(page, limit, |page| {
                read.newest = page.newest;
                for raw in &page.entries {
                    read.push(raw.position, self.decode(raw));
                }
                page.entries.len()
            })
            .await?;
        if is_backwards(page) {
            read.entries.reverse();
            read.unreadable.reverse();
        }
        Ok(read)
    }

    /// Passes pages to `take`, which returns how many entries it took, until these are
    /// `limit` or the stream ends. Returns whether there may be more.
    async fn each_page(
        &self,
        mut page: Page,
        limit: usize,
        mut take: impl FnMut(&RawPage<'_>) -> usize,
    ) -> Result<bool, PublishError> {
        let mut taken = 0;
        while taken < limit {
            if page == Page::Before(0) {
                return Ok(false);
            }
            let count = PAGE.min(limit - taken);
            let reply = self.page(page, count).await?;
            let read = entries(&reply).ok_or_else(unexpected)?;
            taken += take(&read);
            // A page that is not full is the last one.
            let Some(last) = read.entries.last().filter(|_| read.entries.len() == count) else {
                return Ok(false);
            };
            page = match page {
                Page::After(_) => Page::After(last.position.id),
                Page::Before(_) | Page::Latest => Page::Before(last.position.id),
                Page::Only(_) => return Ok(false),
            };
        }
        Ok(true)
    }

    /// Bounds are exclusive, so that an entry is not read twice at the border of two
    /// pages.
    async fn page(&self, page: Page, count: usize) -> Result<Value, PublishError> {
        let (first, last) = ("-".to_owned(), "+".to_owned());
        let (command, from, to, seen) = match page {
            Page::After(id) => ("XRANGE", format!("({id}-0"), last, id.to_string()),
            Page::Only(id) => (
                "XRANGE",
                format!("{id}-0"),
                format!("{id}-0"),
                String::new(),
            ),
            Page::Before(id) => ("XREVRANGE", format!("({id}-0"), first, String::new()),
            Page::Latest => ("XREVRANGE", last, first, String::new()),
        };
        let count = count.to_string();
        let args = [command, &from, &to, &count, &seen].map(str::as_bytes);
        let keys = [&*self.names.counter, &*self.stream];
        run(&READ, &self.outgoing, &keys, &args).await
    }

    /// Reads an entry stored by this or another version, with the current settings.
    /// Logged once in a while, since a page may have a hundred such entries.
    fn decode(&self, raw: &Raw<'_>) -> Option<Broadcast> {
        let Raw { head, position } = *raw;
        let payload = match &self.outgoing.signer {
            None => Ok(placed(head, position)),
            Some(signer) => signer.open_head(&self.names.channel, head, position),
        };
        let (wire, namespace) = (&self.outgoing.wire, &*self.namespace.name);
        let read = match payload {
            Ok(payload) => {
                let read = wire.read(namespace, Kind::Broadcast, &payload);
                read.map_err(|error| error.to_string())
            }
            Err(rejection) => Err(rejection.to_string()),
        };
        if let Ok(Incoming::Message {
            message: Message::Broadcast(broadcast),
            ..
        }) = read
        {
            return Some(broadcast);
        }
        self.unreadable.warn(|suppressed| {
            let error = read.err().map(tracing::field::display);
            let (stream, id) = (&*self.stream, position.id);
            tracing::warn!(
                namespace,
                stream,
                id,
                error,
                suppressed,
                "an entry of the log cannot be read: was the dialect or the key of the cluster changed?"
            );
        });
        None
    }
}

fn is_backwards(page: Page) -> bool {
    matches!(page, Page::Before(_) | Page::Latest)
}

/// Reads the reply of the script that reads.
/// Unknown fields are skipped, because a newer version may store more.
fn entries(reply: &Value) -> Option<RawPage<'_>> {
    let [now, entries, newest] = reply.list()? else {
        return None;
    };
    let entries = entries.list()?.iter().map(|entry| {
        let [name, fields] = entry.list()? else {
            return None;
        };
        let (id, _) = name.text()?.split_once('-')?;
        let (mut time, mut head, mut after) = (None, None, None);
        for (name, value) in fields.pairs()? {
            match (name.text()?, value) {
                ("t", value) => time = number(value),
                ("p", value) => after = number(value),
                ("b", Value::BulkString(bytes)) => head = Some(&bytes[..]),
                _ => {}
            }
        }
        let (id, time) = (id.parse().ok()?, time?);
        let position = Position { id, time, after };
        Some(Raw {
            position,
            head: head?,
        })
    });
    Some(RawPage {
        now: number(now)?,
        entries: entries.collect::<Option<_>>()?,
        newest: number(newest)?,
    })
}
