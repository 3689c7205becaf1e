//! The log of a namespace's rooms in Redis.
//!
//! One script stores a broadcast in the stream of its room and publishes it, so that ids are heard in
//! the order in which they were assigned, and a reader that has heard one finds all earlier ones:
//!
//! ```text
//! publish ─► EVALSHA ─┬─ id: the counter of the namespace, or the clock if it is ahead
//!                     ├─ XADD, trim, EXPIRE: the stream of the room
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
};

use redis::Value;
use roomcast_emitter::redis::{PublishError, Reply, Route};
use roomcast_protocol::{
    args::Args,
    channel::{Dialect, Kind},
    message::{Message, Position},
    target::Target,
    wire::{Incoming, placed},
};
use tokio::time::Instant;

use super::{outgoing::Outgoing, subscriptions::AttachedNamespace, warnings::Warnings};
use crate::bus::{BusError, BusFuture, HistoryEntry, HistoryLimits, Log, Page};

/// Entries that are read with one command. Redis serves nobody else meanwhile: a hundred entries of
/// 1 KiB take it 50 µs.
const PAGE: usize = 100;

/// How much longer than the entries the counter is kept, in seconds. Ids that clients have are compared
/// with it.
const COUNTER_LIFE: u64 = 30 * 24 * 60 * 60;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("log/publish.lua")));

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("log/read.lua")));

struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        let sha = redis::Script::new(text).get_hash().to_owned();
        Self { text, sha }
    }

    /// Runs the script at the owner of the channel. The first attempt is enqueued when this returns.
    fn run(
        &'static self,
        outgoing: &Arc<Outgoing>,
        channel: &str,
        keys: [&str; 2],
        args: &[&[u8]],
    ) -> impl Future<Output = Result<Value, PublishError>> + Send + use<> {
        let mut command = vec![
            b"EVALSHA".to_vec(),
            self.sha.as_bytes().to_vec(),
            b"2".to_vec(),
        ];
        command.extend(keys.map(|key| key.as_bytes().to_vec()));
        command.extend(args.iter().map(|arg| arg.to_vec()));
        let sent = outgoing.command(&command, Route::Channel(channel));
        let (outgoing, channel) = (Arc::clone(outgoing), Box::<str>::from(channel));
        async move {
            let mut replies = match sent.await {
                Err(PublishError::Refused(reason)) if reason.starts_with("NOSCRIPT") => {
                    command[0] = b"EVAL".to_vec();
                    command[1] = self.text.into();
                    outgoing.command(&command, Route::Channel(&channel)).await?
                }
                replies => replies?,
            };
            replies.pop().ok_or_else(unexpected)
        }
    }
}

/// The log of one namespace of a node.
pub(super) struct RedisLog {
    outgoing: Arc<Outgoing>,
    namespace: Arc<AttachedNamespace>,
    limits: HistoryLimits,
    /// The channel on which everything is published.
    channel: Arc<str>,
    /// The key of the counter, with which the keys of the rooms begin.
    key: Arc<str>,
    unreadable: Arc<Warnings>,
}

impl RedisLog {
    pub(super) fn new(
        outgoing: &Arc<Outgoing>,
        namespace: &Arc<AttachedNamespace>,
        limits: HistoryLimits,
    ) -> Self {
        let channels = outgoing.wire.channels();
        Self {
            channel: channels.broadcast(&namespace.name).into(),
            key: channels.log(&namespace.name).into(),
            outgoing: Arc::clone(outgoing),
            namespace: Arc::clone(namespace),
            limits,
            unreadable: Arc::default(),
        }
    }

    /// The key of a room.
    fn room(&self, room: &str) -> String {
        [&*self.key, "#", room].concat()
    }

    /// The maximum age, in seconds. Redis counts streams' lifetimes so.
    fn age(&self) -> u64 {
        self.limits.age.as_secs().max(1)
    }
}

impl Log for RedisLog {
    fn publish(
        &self,
        room: &str,
        event: &str,
        args: Args,
    ) -> BusFuture<Result<Position, BusError>> {
        let outgoing = Arc::clone(&self.outgoing);
        let mut target = Target::default();
        target.add_rooms(room);
        let head = outgoing
            .wire
            .unplaced(&self.namespace.name, (&target, event, &args));
        let head = match head {
            Ok(publication) => publication.payload,
            Err(error) => return Box::pin(ready(Err(outgoing.invalid(&error)))),
        };
        let publish = match outgoing.wire.channels().dialect() {
            Dialect::Classic => "PUBLISH",
            Dialect::Sharded(_) => "SPUBLISH",
        };
        let numbers = [
            self.limits.messages.max(1).to_string(),
            self.limits.bytes.to_string(),
            self.age().to_string(),
            self.age().saturating_add(COUNTER_LIFE).to_string(),
        ];
        let [messages, bytes, age, life] = numbers.each_ref().map(|number| number.as_bytes());
        let started = Instant::now();
        let size = head.len() as u64;
        let running = PUBLISH.run(
            &outgoing,
            &self.channel,
            [&self.key, &self.room(room)],
            &[
                self.channel.as_bytes(),
                &head,
                messages,
                bytes,
                age,
                life,
                publish.as_bytes(),
            ],
        );
        Box::pin(async move {
            let published = running.await.and_then(|reply| published(&reply));
            let receivers = published.as_ref().map(|(_, receivers)| *receivers);
            outgoing.count(size, started, receivers);
            Ok(published?.0)
        })
    }

    fn read(
        &self,
        room: &str,
        page: Page,
        limit: usize,
    ) -> BusFuture<Result<Vec<HistoryEntry>, BusError>> {
        let reading = Reading {
            outgoing: Arc::clone(&self.outgoing),
            namespace: Arc::clone(&self.namespace),
            unreadable: Arc::clone(&self.unreadable),
            channel: Arc::clone(&self.channel),
            counter: Arc::clone(&self.key),
            room: room.into(),
            stream: self.room(room),
            age: self.age().saturating_mul(1000),
        };
        Box::pin(async move { Ok(reading.read(page, limit).await?) })
    }
}

/// Reads the reply of the script that publishes.
fn published(reply: &Value) -> Result<(Position, u64), PublishError> {
    let number = |value: &Value| u64::try_from(value.integer()?).ok();
    let read = || match reply.list()? {
        [id, time, receivers] => {
            let (id, time) = (number(id)?, number(time)?);
            Some((Position { id, time }, number(receivers)?))
        }
        _ => None,
    };
    read().ok_or_else(unexpected)
}

/// One room that is read, page by page.
struct Reading {
    outgoing: Arc<Outgoing>,
    namespace: Arc<AttachedNamespace>,
    unreadable: Arc<Warnings>,
    channel: Arc<str>,
    counter: Arc<str>,
    room: Box<str>,
    stream: String,
    /// In milliseconds.
    age: u64,
}

/// An entry of the stream.
struct Raw<'a> {
    position: Position,
    head: &'a [u8],
}

impl Reading {
    async fn read(&self, mut page: Page, limit: usize) -> Result<Vec<HistoryEntry>, PublishError> {
        let is_backwards = matches!(page, Page::Before(_) | Page::Latest);
        let mut found = Vec::new();
        while found.len() < limit && page != Page::Before(0) {
            let count = PAGE.min(limit - found.len());
            let reply = self.page(page, count).await?;
            let (now, raw) = entries(&reply).ok_or_else(unexpected)?;
            // A stream is trimmed when something is stored, so it may have entries that are too old.
            let oldest = now.saturating_sub(self.age);
            let kept = raw.iter().filter(|raw| raw.position.time >= oldest);
            found.extend(kept.filter_map(|raw| self.decode(raw)));
            let Some(last) = raw.last().filter(|_| raw.len() == count) else {
                break;
            };
            page = match page {
                Page::After(_) => Page::After(last.position.id),
                Page::Before(_) | Page::Latest => Page::Before(last.position.id),
                Page::Only(_) => break,
            };
        }
        if is_backwards {
            found.reverse();
        }
        Ok(found)
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
        let keys = [&*self.counter, &self.stream];
        READ.run(&self.outgoing, &self.channel, keys, &args).await
    }

    /// Reads what was stored, by this version or another, with the settings of now.
    fn decode(&self, raw: &Raw<'_>) -> Option<HistoryEntry> {
        let Position { id, time } = raw.position;
        let payload = placed(raw.head, raw.position);
        let wire = &self.outgoing.wire;
        let read = wire.read(&self.namespace.name, Kind::Broadcast, &payload);
        if let Ok(Incoming::Message {
            message: Message::Broadcast { event, args, .. },
            ..
        }) = read
        {
            let room = self.room.clone();
            return Some(HistoryEntry {
                id,
                time,
                room,
                event,
                args,
            });
        }
        self.unreadable.warn(|suppressed| {
            let error = read.err().map(tracing::field::display);
            let (namespace, room) = (&*self.namespace.name, &*self.room);
            tracing::warn!(
                namespace,
                room,
                id,
                error,
                suppressed,
                "an entry of the log cannot be read: was the dialect of the cluster changed?"
            );
        });
        None
    }
}

/// Reads the reply of the script that reads: Redis's time, and entries.
fn entries(reply: &Value) -> Option<(u64, Vec<Raw<'_>>)> {
    let [now, entries] = reply.list()? else {
        return None;
    };
    let entries = entries.list()?.iter().map(|entry| {
        let [name, fields] = entry.list()? else {
            return None;
        };
        let (id, _) = name.text()?.split_once('-')?;
        let (mut time, mut head) = (None, None);
        for (name, value) in fields.pairs()? {
            match (name.text()?, value) {
                ("t", value) => time = u64::try_from(value.integer()?).ok(),
                ("b", Value::BulkString(bytes)) => head = Some(&bytes[..]),
                _ => {}
            }
        }
        let (id, time) = (id.parse().ok()?, time?);
        let position = Position { id, time };
        Some(Raw {
            position,
            head: head?,
        })
    });
    let now = u64::try_from(now.integer()?).ok()?;
    Some((now, entries.collect::<Option<_>>()?))
}

fn unexpected() -> PublishError {
    PublishError::Unconfirmed("an unexpected reply".into())
}
