//! The task that reads the stream and has its entries carried out, one after the other.
//!
//! ```text
//!  connect ─► where the stream ends (first time)       ─► XREAD behind the last entry ─► carry out ─┐
//!          └► is the last entry still there? no: a gap ─►      ▲                                    │
//!                                                              └──────── still there? no: a gap ◄───┘
//! ```
//!
//! Redis removes entries at the beginning of the stream only. So if the entry before a page still
//! exists after the page was read, no entry is missing in between.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use redis::{Pipeline, Value};
use roomcast_emitter::{
    backoff::Backoff,
    redis::{Address, ConnectError, Connection, Endpoint, Multiplexed, Purpose, Reply},
};
use roomcast_protocol::{channel::slot, wire::Entry};
use tokio::time::{self, Instant};

use super::{
    Chain, Streams,
    entries::{self, Id, Read},
};
use crate::{bus::Gap, redis_bus::Core};

/// How long Redis waits for entries, in milliseconds. Its reply is the sign of life.
const BLOCK_MILLIS: &str = "1000";

/// Maximum number of entries that are read at a time, as in Node.
const PAGE: usize = 100;

/// The size of a page that is aimed at, in bytes. After a larger one, fewer entries are
/// read at a time.
const PAGE_BYTES: usize = 4 << 20;

/// How often the reader makes sure that it reads from the primary. In a failover its
/// connection may stay open.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long a reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The place of the reader.
struct Place {
    /// The last entry that was read. `None` until the end of the stream is known.
    last: Option<Id>,
    /// When everything in the stream had been read.
    complete: SystemTime,
    count: usize,
}

/// Reads the stream until the bus is dropped.
pub(in super::super) async fn read(core: Weak<Core>, streams: Arc<Streams>, endpoint: Endpoint) {
    let mut place = Place {
        last: None,
        complete: SystemTime::now(),
        count: PAGE,
    };
    let mut backoff = Backoff::default();
    loop {
        let failed = match connect(&endpoint, &streams.key).await {
            Ok(connection) => {
                let at = (&endpoint, connection);
                follow(&core, &streams, at, &mut place, &mut backoff).await
            }
            Err(error) => Err(error.to_string()),
        };
        let Err(reason) = failed else {
            return;
        };
        let reason = Arc::<str>::from(reason);
        let before = streams.interrupted.send_replace(Some(Arc::clone(&reason)));
        if before.is_none() {
            streams.metrics.up.set(0);
            streams.metrics.reconnects.inc();
            tracing::warn!(%reason, stream = &*streams.key, "reading the stream has stopped; reconnecting");
        }
        time::sleep(backoff.next_delay()).await;
    }
}

/// Connects to the server that has the stream.
async fn connect(endpoint: &Endpoint, key: &str) -> Result<Connection, ConnectError> {
    let owner = endpoint.cluster_map(None).await?;
    let owner = owner.and_then(|map| map.owner(slot(key)).cloned());
    match owner {
        Some(address) => endpoint.connect_to(&address, Purpose::Reader, None).await,
        None => endpoint.connect(Purpose::Reader, None).await,
    }
}

/// The server from which the stream is read.
struct Source<'a> {
    endpoint: &'a Endpoint,
    address: Option<Address>,
    redis: Multiplexed,
    /// When it was certain that it is the primary.
    checked: Instant,
}

impl Source<'_> {
    async fn ask(&mut self, pipeline: &Pipeline, replies: usize) -> Result<Vec<Value>, String> {
        let sent = self.redis.send_packed_commands(pipeline, 0, replies);
        let replies = time::timeout(REPLY_TIMEOUT, sent).await;
        let replies = replies.map_err(|_| "Redis does not answer".to_owned())?;
        let replies = replies.map_err(|error| error.to_string())?;
        let replies = replies.into_iter().map(Value::extract_error);
        let replies = replies.collect::<Result<Vec<_>, _>>();
        replies.map_err(|error| error.to_string())
    }

    /// Makes sure now and then that the server is the primary.
    async fn check(&mut self) -> Result<(), String> {
        if self.checked.elapsed() < CHECK_INTERVAL {
            return Ok(());
        }
        self.checked = Instant::now();
        let primary = self.endpoint.primary().await;
        // Sentinels that cannot be reached prove nothing about the primary.
        let is_other =
            matches!(&primary, Ok(Some(primary)) if self.address.as_ref() != Some(primary));
        // It takes no right beyond those of the login.
        let mut hello = Pipeline::with_capacity(1);
        hello.cmd("HELLO");
        let replies = self.ask(&hello, 1).await?;
        match is_other || replies.first().is_some_and(is_replica) {
            true => Err("the server is no longer the primary".to_owned()),
            false => Ok(()),
        }
    }
}

/// Reads over one connection. Resolves to `Ok` once the bus is dropped.
async fn follow(
    core: &Weak<Core>,
    streams: &Arc<Streams>,
    (endpoint, connection): (&Endpoint, Connection),
    place: &mut Place,
    backoff: &mut Backoff,
) -> Result<(), String> {
    let mut source = Source {
        endpoint,
        address: connection.info().address.clone(),
        redis: connection.into_inner(),
        checked: Instant::now(),
    };
    let mut is_missing = begin(streams, &mut source, place).await?;
    backoff.reset();
    streams.metrics.up.set(1);
    if streams.interrupted.send_replace(None).is_some() {
        tracing::info!(stream = &*streams.key, "reading the stream");
    }
    loop {
        source.check().await?;
        let last = place.last.unwrap_or_default();
        let before = SystemTime::now();
        let replies = source
            .ask(&next(&streams.key, last, place.count), 2)
            .await?;
        let (page, kept) = (
            entries::entries_of_stream(&replies[0]),
            entries::entries(&replies[1]),
        );
        let (Some(page), Some(kept)) = (page, kept) else {
            return Err("an unexpected reply".to_owned());
        };
        let Some(core) = core.upgrade() else {
            return Ok(());
        };
        is_missing |= !page.is_empty() && last != Id::default() && kept.is_empty();
        if std::mem::take(&mut is_missing) {
            streams.chains_are_broken();
            core.gaps.report(&Gap {
                from: place.complete.min(before),
                to: before,
            });
        }
        let is_full = page.len() >= place.count;
        let bytes = carry_out(&core, streams, page, place).await;
        place.count = match bytes {
            0..PAGE_BYTES => (place.count * 2).min(PAGE),
            _ => (place.count / 2).max(1),
        };
        if !is_full {
            place.complete = before;
        }
    }
}

/// Finds out where to read. Returns whether entries after the last one that was read may be
/// missing.
async fn begin(
    streams: &Streams,
    source: &mut Source<'_>,
    place: &mut Place,
) -> Result<bool, String> {
    let replies = source.ask(&beginning(&streams.key, place.last), 2).await?;
    let (end, kept) = (entries::entries(&replies[0]), entries::entries(&replies[1]));
    let (Some(end), Some(kept)) = (end, kept) else {
        return Err("an unexpected reply".to_owned());
    };
    let end = end.first().map(|read| read.id).unwrap_or_default();
    let is_missing = place.last.is_some_and(|last| last != Id::default()) && kept.is_empty();
    // A replica that lagged behind, or an empty Redis, assigns smaller ids.
    place.last = Some(place.last.map_or(end, |last| last.min(end)));
    Ok(is_missing)
}

/// Whether the reply to HELLO is that of a server that follows another one.
fn is_replica(hello: &Value) -> bool {
    let fields = hello.pairs().unwrap_or_default();
    let is_role = |(name, value): &(&Value, &Value)| {
        name.text() == Some("role") && value.text() != Some("master")
    };
    fields.iter().any(is_role)
}

/// The commands that find the end of the stream, and the last entry that was read.
fn beginning(key: &str, last: Option<Id>) -> Pipeline {
    let last = last.unwrap_or_default().to_string();
    let mut pipeline = Pipeline::with_capacity(2);
    for args in [["XREVRANGE", key, "+", "-"], ["XRANGE", key, &last, &last]] {
        let command = pipeline.cmd(args[0]).arg(&args[1..]);
        command.arg("COUNT").arg(1);
    }
    pipeline
}

/// The commands that read the next page, and look whether the entry before it is still there.
fn next(key: &str, last: Id, count: usize) -> Pipeline {
    let last = last.to_string();
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.cmd("XREAD").arg("COUNT").arg(count);
    pipeline.arg("BLOCK").arg(BLOCK_MILLIS);
    pipeline.arg("STREAMS").arg(key).arg(&last);
    pipeline.cmd("XRANGE").arg(key).arg(&last).arg(&last);
    pipeline.arg("COUNT").arg(1);
    pipeline
}

/// Carries out a page. Returns its size in bytes.
async fn carry_out(
    core: &Core,
    streams: &Arc<Streams>,
    page: Vec<Read<'_>>,
    place: &mut Place,
) -> usize {
    let mut bytes = 0;
    for Read { id, entry } in page {
        if let Some(entry) = &entry {
            bytes += entries::size(entry);
            carry_out_one(core, streams, id, entry).await;
        }
        place.last = Some(id);
    }
    bytes
}

async fn carry_out_one(core: &Core, streams: &Arc<Streams>, id: Id, entry: &Entry<'_>) {
    let Some((namespace, incoming)) = core.incoming.read_entry(entry) else {
        return;
    };
    let name = &namespace.name;
    let known = streams.chains.lock().get(name).copied();
    let position = match known {
        Some(chain) if Entry::is_kept(&incoming) => {
            let after = match chain {
                Chain::UpTo(after) => Some(after),
                Chain::Unknown => streams.before(&namespace, id).await.ok(),
            };
            id.position(after)
        }
        _ => None,
    };
    if let Some(position) = position {
        let mut chains = streams.chains.lock();
        if let Some(chain) = chains.get_mut(name) {
            *chain = Chain::UpTo(position.id);
        }
    }
    core.incoming
        .carry_out_entry(&namespace, incoming, position);
}
