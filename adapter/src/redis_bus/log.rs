//! The logs of a namespace in Redis.
//!
//! One script stores a broadcast in the stream of its room, in the journal, or in both, and publishes it,
//! so that ids are heard in the order in which they were assigned, and a reader that has heard one finds
//! all earlier ones:
//!
//! ```text
//! publish ─► EVALSHA ─┬─ id: the counter of the namespace, or the clock if it is ahead
//!                     ├─ XADD, trim, EXPIRE: the streams
//!                     └─ PUBLISH on the namespace's channel ─► all nodes, the publishing one included
//!    NOSCRIPT ─► EVAL: Redis has restarted, and nothing was executed
//! ```
//!
//! The stream has what [`Wire::unplaced`] writes; the script appends the position to what it publishes.
//! All keys are in the slot of the channel. An attempt without a reply is never repeated.
//!
//! [`Wire::unplaced`]: roomcast_protocol::wire::Wire::unplaced

use std::{
    future::ready,
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::Value;
use roomcast_emitter::redis::{PublishError, Reply};
use roomcast_protocol::{
    args::Args,
    channel::{Dialect, Kind},
    message::{Message, Position},
    target::Target,
    wire::{Incoming, placed},
};
use tokio::time::Instant;

use super::{
    outgoing::Outgoing,
    script::{Script, unexpected},
    subscriptions::{AttachedNamespace, Subscriptions},
    warnings::Warnings,
};
use crate::bus::{
    BusError, BusFuture, HistoryEntry, JournalEntry, JournalPage, Log, LogLimits, Page, Published,
};

/// Entries that are read with one command. Redis serves nobody else meanwhile: a hundred entries of
/// 1 KiB take it 50 µs.
const PAGE: usize = 100;

/// How much longer than the entries the counter is kept, in seconds. Ids that clients have are compared
/// with it.
const COUNTER_LIFE: u64 = 30 * 24 * 60 * 60;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("log/publish.lua")));

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("log/read.lua")));

/// The logs of one namespace of a node.
pub(super) struct RedisLog {
    outgoing: Arc<Outgoing>,
    subscriptions: Arc<Subscriptions>,
    namespace: Arc<AttachedNamespace>,
    limits: LogLimits,
    /// The channel on which everything is published.
    channel: Arc<str>,
    /// The key of the counter, with which the keys of the rooms begin.
    key: Arc<str>,
    /// The key of the journal.
    journal: Arc<str>,
    unreadable: Arc<Warnings>,
}

impl RedisLog {
    pub(super) fn new(
        outgoing: &Arc<Outgoing>,
        subscriptions: &Arc<Subscriptions>,
        namespace: &Arc<AttachedNamespace>,
        limits: LogLimits,
    ) -> Self {
        let channels = outgoing.wire.channels();
        Self {
            channel: channels.broadcast(&namespace.name).into(),
            key: channels.log(&namespace.name).into(),
            journal: channels.journal(&namespace.name).into(),
            outgoing: Arc::clone(outgoing),
            subscriptions: Arc::clone(subscriptions),
            namespace: Arc::clone(namespace),
            limits,
            unreadable: Arc::default(),
        }
    }

    /// The key of a room.
    fn room(&self, room: &str) -> String {
        [&*self.key, "#", room].concat()
    }

    /// Stores a broadcast in the journal, if there is one, and in the log of the room, if it is named.
    /// Resolves to its position and the number of connections that received it.
    fn store(
        &self,
        target: &Target,
        event: &str,
        args: &Args,
        room: Option<&str>,
    ) -> BusFuture<Result<(Position, u64), BusError>> {
        let outgoing = Arc::clone(&self.outgoing);
        let head = outgoing
            .wire
            .unplaced(&self.namespace.name, (target, event, args));
        let head = match head {
            Ok(publication) => publication.payload,
            Err(error) => return Box::pin(ready(Err(outgoing.invalid(&error)))),
        };
        let publish = match outgoing.wire.channels().dialect() {
            Dialect::Classic => "PUBLISH",
            Dialect::Sharded(_) => "SPUBLISH",
        };
        let LogLimits { history, journal } = self.limits;
        let history = history.zip(room.map(|room| self.room(room)));
        let ages = [
            history.as_ref().map(|(limits, _)| limits.age),
            journal.map(|limits| limits.age),
        ];
        let age = ages.into_iter().flatten().max().map_or(1, seconds);
        let mut keys = vec![&*self.key];
        let mut numbers = vec![age.saturating_add(COUNTER_LIFE)];
        numbers.push(u64::from(journal.is_some()));
        if let Some(limits) = journal {
            keys.push(&self.journal);
            numbers.push(limits.messages.max(1) as u64);
            numbers.extend([limits.bytes as u64, seconds(limits.age)]);
        }
        if let Some((limits, key)) = &history {
            keys.push(key);
            numbers.push(limits.messages.max(1) as u64);
            numbers.extend([limits.bytes as u64, seconds(limits.age)]);
        }
        let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
        let mut args: Vec<&[u8]> = vec![self.channel.as_bytes(), &head, publish.as_bytes()];
        args.extend(numbers.iter().map(String::as_bytes));
        let started = Instant::now();
        let size = head.len() as u64;
        let running = PUBLISH.run(&outgoing, &keys, &args);
        Box::pin(async move {
            let published = running.await.and_then(|reply| published(&reply));
            let receivers = published.as_ref().map(|(_, receivers)| *receivers);
            outgoing.count(size, started, receivers);
            Ok(published?)
        })
    }

    fn reading(&self, stream: &str) -> Reading {
        Reading {
            outgoing: Arc::clone(&self.outgoing),
            namespace: Arc::clone(&self.namespace),
            unreadable: Arc::clone(&self.unreadable),
            counter: Arc::clone(&self.key),
            stream: stream.into(),
        }
    }
}

/// A time in seconds, at least one: Redis counts streams' lifetimes so.
fn seconds(age: Duration) -> u64 {
    age.as_secs().max(1)
}

impl Log for RedisLog {
    fn publish(
        &self,
        room: &str,
        event: &str,
        args: Args,
    ) -> BusFuture<Result<Position, BusError>> {
        let mut target = Target::default();
        target.add_rooms(room);
        let storing = self.store(&target, event, &args, Some(room));
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

    fn broadcast(
        &self,
        target: Target,
        event: &str,
        args: Args,
    ) -> BusFuture<Result<Published, BusError>> {
        let own = self
            .subscriptions
            .own_subscriptions(&self.namespace, &self.channel);
        let storing = self.store(&target, event, &args, None);
        Box::pin(async move {
            let (position, receivers) = storing.await?;
            let receivers = usize::try_from(receivers).unwrap_or(usize::MAX);
            Ok(Published {
                nodes: receivers.saturating_sub(own),
                position: Some(position),
            })
        })
    }

    fn read_journal(&self, page: Page, limit: usize) -> BusFuture<Result<JournalPage, BusError>> {
        let reading = self.reading(&self.journal);
        Box::pin(async move { Ok(reading.read_journal(page, limit).await?) })
    }
}

/// Reads the reply of the script that publishes.
fn published(reply: &Value) -> Result<(Position, u64), PublishError> {
    let number = |value: &Value| u64::try_from(value.integer()?).ok();
    let read = || {
        let (id, time, receivers, after) = match reply.list()? {
            [id, time, receivers] => (id, time, receivers, None),
            [id, time, receivers, after] => (id, time, receivers, Some(number(after)?)),
            _ => return None,
        };
        let (id, time) = (number(id)?, number(time)?);
        Some((Position { id, time, after }, number(receivers)?))
    };
    read().ok_or_else(unexpected)
}

/// One stream that is read, page by page.
struct Reading {
    outgoing: Arc<Outgoing>,
    namespace: Arc<AttachedNamespace>,
    unreadable: Arc<Warnings>,
    counter: Arc<str>,
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
    /// Reads the log of a room, without what is older than `age` milliseconds.
    async fn read_room(
        &self,
        room: &str,
        page: Page,
        limit: usize,
        age: u64,
    ) -> Result<Vec<HistoryEntry>, PublishError> {
        let mut found = Vec::new();
        self.each_page(page, limit, |page| {
            // A stream is trimmed when something is stored, so it may have entries that are too old.
            let oldest = page.now.saturating_sub(age);
            let before = found.len();
            let kept = page.entries.iter();
            let kept = kept.filter(|raw| raw.position.time >= oldest);
            found.extend(kept.filter_map(|raw| {
                let (_, event, args) = self.decode(raw)?;
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
                    let position = raw.position;
                    match self.decode(raw) {
                        Some((target, event, args)) => read.entries.push(JournalEntry {
                            position,
                            target,
                            event,
                            args,
                        }),
                        None => read.unreadable.push(position),
                    }
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

    /// Passes pages to `take`, which returns how many entries it took, until these are `limit` or the
    /// stream ends. Returns whether there may be more.
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
        let keys = [&*self.counter, &*self.stream];
        READ.run(&self.outgoing, &keys, &args).await
    }

    /// Reads what was stored, by this version or another, with the settings of now.
    fn decode(&self, raw: &Raw<'_>) -> Option<(Target, Box<str>, Args)> {
        let payload = placed(raw.head, raw.position);
        let wire = &self.outgoing.wire;
        let read = wire.read(&self.namespace.name, Kind::Broadcast, &payload);
        if let Ok(Incoming::Message {
            message:
                Message::Broadcast {
                    target,
                    event,
                    args,
                },
            ..
        }) = read
        {
            return Some((target, event, args));
        }
        self.unreadable.warn(|suppressed| {
            let error = read.err().map(tracing::field::display);
            let (namespace, stream, id) = (&*self.namespace.name, &*self.stream, raw.position.id);
            tracing::warn!(
                namespace,
                stream,
                id,
                error,
                suppressed,
                "an entry of the log cannot be read: was the dialect of the cluster changed?"
            );
        });
        None
    }
}

fn is_backwards(page: Page) -> bool {
    matches!(page, Page::Before(_) | Page::Latest)
}

/// Reads the reply of the script that reads.
fn entries(reply: &Value) -> Option<RawPage<'_>> {
    let [now, entries, newest] = reply.list()? else {
        return None;
    };
    let number = |value: &Value| u64::try_from(value.integer()?).ok();
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
