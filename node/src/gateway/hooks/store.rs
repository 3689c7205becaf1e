//! Disconnects in Redis, so that they outlive the node.
//!
//! ```text
//!  connect ──► put (reason "node lost") ─┐                   ┌─ HSET, HDEL ─► hash of the node
//!  disconnect ──► put (its own reason) ──┼─► records, dirty ─┤
//!  confirmed, given up ──► remove ───────┘                   └─ all again if Redis has lost them
//!
//!  every 2 s: renew the own lease ──► one of another node is over? ──► claim ──► deliver
//! ```
//!
//! A record is stored when a socket connects, because a dead node cannot store it.
//! Requests do not wait for Redis: changes are collected and written in batches, so the last
//! changes of a node that dies are lost.
//!
//! The leases of the bus are not suitable, because they end after 5 s. Those here are longer:
//! a node that merely hangs must not cause wrong disconnects for the application. All keys have one
//! hash tag, so that scripts may use them together in a cluster.

mod rooms;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use roomcast::{
    RedisConfig,
    emitter::redis::{PublishError, Publisher, PublisherState, Reply, Value},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{sleep, timeout},
};

pub(super) use self::rooms::{Kind, Update};
use super::{Hooks, metrics::Metrics};
use crate::gateway::{
    line_limit::LineLimit,
    redis_commands::{self, RedisCommands},
};

/// The most records of a node. The next ones are not stored.
/// Beyond the limits, a disconnect of a living node is still delivered: only that of a
/// dead one is lost. It is counted.
const MAX_RECORDS: usize = 200_000;

/// Maximum number of changes that wait while Redis is unreachable. Beyond it, everything is written
/// again.
const MAX_DIRTY: usize = 2 * MAX_RECORDS;

/// The most bytes of a node's records.
const MAX_BYTES: usize = 256 << 20;

/// The largest record, in bytes.
const MAX_RECORD: usize = 64 << 10;

/// The most records of one command, which so has at most 6.4 MB.
const BATCH: usize = 100;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);

/// How long a lease lasts, in milliseconds.
/// Four renewals may fail in the meantime.
const LEASE: &str = "10000";

const RENEWAL: Duration = Duration::from_secs(2);

/// Renewals after which a node claims. While Redis was unreachable, all leases expired: each node
/// has the time of a lease to renew its own.
const RENEWALS_BEFORE_CLAIM: u32 = 5;

/// How long records stay that no node renews or claims, in milliseconds.
const KEPT: &str = "86400000";

/// The pause after a failure of Redis.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a node that stops waits for Redis.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns 0 if the lease was unknown, 1 if it was over, 2 if it held; and a node whose
/// lease has expired.
/// The clock is Redis's, because those of the nodes differ.
const RENEW: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local till = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
local over = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)
local state = 0
if till then state = tonumber(till) > now and 2 or 1 end
return {state, over[1] or ''}
";

/// Moves some records of a node whose lease has expired to the own ones and returns them. A page of
/// the scan is moved before the next is read, so that two nodes never have the same.
const CLAIM: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local till = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not till or tonumber(till) > now then return {} end
local claimed, cursor = {}, '0'
repeat
  local page = redis.call('HSCAN', KEYS[3], cursor, 'COUNT', ARGV[2])
  cursor = page[1]
  for i = 1, #page[2], 2 do
    redis.call('HSET', KEYS[2], page[2][i], page[2][i + 1])
    redis.call('HDEL', KEYS[3], page[2][i])
    claimed[#claimed + 1] = page[2][i + 1]
  end
until #claimed > 0 or cursor == '0'
if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('ZREM', KEYS[1], ARGV[1]) end
return claimed
";

/// The data that another node needs to deliver a disconnect.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) hook: String,
    pub(super) namespace: String,
    body: String,
    forwarded: Vec<(String, String)>,
    /// Whether it is about a room, not about a socket.
    #[serde(default)]
    pub(super) is_room: bool,
}

impl Record {
    pub(super) fn new(
        id: String,
        hook: &str,
        namespace: &str,
        body: &[u8],
        forwarded: &HeaderMap,
    ) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let forwarded = forwarded.iter();
        Self {
            id,
            hook: hook.to_owned(),
            namespace: namespace.to_owned(),
            body: text(body),
            forwarded: forwarded
                .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                .collect(),
            is_room: false,
        }
    }

    pub(super) fn of_room(id: String, hook: &str, namespace: &str, body: &[u8]) -> Self {
        Self {
            is_room: true,
            ..Self::new(id, hook, namespace, body, &HeaderMap::new())
        }
    }

    pub(super) fn forwarded(&self) -> HeaderMap {
        let pairs = self.forwarded.iter().filter_map(|(name, value)| {
            let name = HeaderName::try_from(name).ok()?;
            Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
        });
        pairs.collect()
    }

    pub(super) fn into_body(self) -> Bytes {
        self.body.into()
    }
}

/// The records that Redis holds for this node, or will hold.
#[derive(Default)]
struct Records {
    known: HashMap<String, Bytes>,
    bytes: usize,
    /// Those that differ from Redis's, or that it must remove.
    dirty: HashSet<String>,
    /// Whether Redis must remove all records before the next change, because some of them are
    /// unknown.
    is_stale: bool,
}

impl Records {
    fn put(&mut self, id: String, record: Bytes) -> Result<(), &'static str> {
        let before = self.known.get(&id).map(Bytes::len);
        let bytes = self.bytes - before.unwrap_or(0) + record.len();
        if record.len() > MAX_RECORD {
            return Err("too_large");
        }
        if bytes > MAX_BYTES || before.is_none() && self.known.len() >= MAX_RECORDS {
            return Err("too_many");
        }
        self.bytes = bytes;
        self.dirty.insert(id.clone());
        self.known.insert(id, record);
        Ok(())
    }

    fn remove(&mut self, id: &str) {
        if let Some(record) = self.known.remove(id) {
            self.bytes -= record.len();
        }
        self.dirty.insert(id.to_owned());
        // By then Redis may have outdated records, so the hash is emptied first.
        if self.dirty.len() > MAX_DIRTY {
            self.is_stale = true;
            self.write_all();
        }
    }

    fn write_all(&mut self) {
        self.dirty = self.known.keys().cloned().collect();
    }

    /// Takes some changes: the ids with their records, or with none if Redis must remove them. Each
    /// is written in its current state, so a record that changes often costs one command.
    fn take(&mut self) -> Vec<(String, Option<Bytes>)> {
        let some: Vec<_> = self.dirty.iter().take(BATCH).cloned().collect();
        let changes = some.into_iter().map(|id| {
            self.dirty.remove(&id);
            let record = self.known.get(&id).cloned();
            (id, record)
        });
        changes.collect()
    }
}

/// The disconnects of a node in Redis.
pub(super) struct Store {
    redis: RedisCommands,
    records: Mutex<Records>,
    has_changes: Notify,
    /// Held while a batch is written.
    writing: tokio::sync::Mutex<()>,
    link: OnceLock<Link>,
    metrics: Metrics,
    lines: LineLimit,
}

struct Link {
    publisher: Arc<Publisher>,
    node: String,
    /// The beginning of all keys.
    prefix: String,
    leases: String,
    own: String,
    keeper: OnceLock<AbortHandle>,
}

impl Store {
    pub(super) fn new(config: RedisConfig, metrics: &Metrics) -> Self {
        Self {
            redis: RedisCommands::new(config),
            records: Mutex::default(),
            has_changes: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            link: OnceLock::new(),
            metrics: metrics.clone(),
            lines: LineLimit::default(),
        }
    }

    /// Begins to write, and to look for records of dead nodes, unless it has begun.
    pub(super) fn start(self: &Arc<Self>, node: String, hooks: Hooks) {
        if self.link.get().is_some() {
            return;
        }
        let prefix = format!("{}-{{hooks}}#", self.redis.prefix());
        let link = self.link.get_or_init(|| Link {
            publisher: Arc::clone(self.redis.publisher()),
            leases: format!("{prefix}leases"),
            prefix,
            own: self.key(&node),
            keeper: OnceLock::new(),
            node,
        });
        let store = Arc::clone(self);
        tokio::spawn(async move { store.write_always().await });
        let store = Arc::clone(self);
        let keeper = tokio::spawn(async move { store.keep_always(&hooks).await });
        drop(link.keeper.set(keeper.abort_handle()));
    }

    /// Stores a record, in place of one with the same id.
    pub(super) fn put(&self, record: &Record) {
        let Ok(json) = serde_json::to_vec(record) else {
            return;
        };
        let id = record.id.clone();
        let outcome = self.records.lock().put(id, json.into());
        if let Err(reason) = outcome {
            self.metrics.unstored.with_label_values(&[reason]).inc();
            if let Some(left_out) = self.lines.pass() {
                let hook = &record.hook;
                tracing::warn!(hook, reason, left_out, "a disconnect is not stored");
            }
        }
        self.changed();
    }

    /// Removes a record that is delivered or discarded.
    pub(super) fn remove(&self, id: &str) {
        self.records.lock().remove(id);
        self.changed();
    }

    fn changed(&self) {
        let records = self.records.lock().known.len();
        self.metrics
            .stored
            .set(i64::try_from(records).unwrap_or(i64::MAX));
        self.has_changes.notify_one();
    }

    /// Writes the remaining changes and releases the lease, so that another node takes over at
    /// once.
    pub(super) async fn finish(&self) {
        let Some(link) = self.link.get() else {
            return;
        };
        if let Some(keeper) = link.keeper.get() {
            // A renewal would take the lease again.
            keeper.abort();
        }
        let all = async {
            while self.write_some(link).await? {}
            // A lease of zero has expired, and the records are still there to be claimed.
            let give_up = ["ZADD", &link.leases, "XX", "0", &link.node];
            link.command(&give_up).await
        };
        match timeout(FINISH_TIMEOUT, all).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed("Redis did not confirm in time"),
        }
    }

    fn key(&self, node: &str) -> String {
        format!("{}-{{hooks}}#node:{node}", self.redis.prefix())
    }

    fn failed(&self, error: &str) {
        self.metrics.store_failures.inc();
        if let Some(left_out) = self.lines.pass() {
            tracing::warn!(
                error,
                left_out,
                "disconnects of hooks cannot be stored in Redis"
            );
        }
    }

    async fn write_always(&self) {
        let Some(link) = self.link.get() else {
            return;
        };
        loop {
            self.has_changes.notified().await;
            // A burst of connects becomes few commands.
            sleep(GATHER).await;
            loop {
                link.is_up().await;
                match self.write_some(link).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.failed(&error.to_string());
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Writes a batch. Returns `false` if there was none.
    async fn write_some(&self, link: &Link) -> Result<bool, PublishError> {
        // `finish` writes concurrently with the task. Two batches at a time could overtake each
        // other.
        let _writing = self.writing.lock().await;
        if self.records.lock().is_stale {
            link.command(&["DEL", &link.own]).await?;
            self.records.lock().is_stale = false;
        }
        let changes = self.records.lock().take();
        if changes.is_empty() {
            return Ok(false);
        }
        let written = link.write(&changes).await;
        if written.is_err() {
            // The next attempt writes their state at that time.
            let ids = changes.into_iter().map(|(id, _)| id);
            self.records.lock().dirty.extend(ids);
        }
        written.map(|()| true)
    }

    async fn keep_always(&self, hooks: &Hooks) {
        let Some(link) = self.link.get() else {
            return;
        };
        let mut renewals = 0;
        loop {
            link.is_up().await;
            if let Err(error) = self.keep(link, &mut renewals, hooks).await {
                self.failed(&error.to_string());
            }
            sleep(RENEWAL).await;
        }
    }

    /// Renews the lease and claims the records of dead nodes.
    async fn keep(
        &self,
        link: &Link,
        renewals: &mut u32,
        hooks: &Hooks,
    ) -> Result<(), PublishError> {
        let Link {
            leases, own, node, ..
        } = link;
        let [rooms, counts] = &link.kept();
        let renew = [
            "EVAL", RENEW, "4", leases, own, rooms, counts, node, LEASE, KEPT,
        ];
        let reply = link.command(&renew).await?;
        let parts = reply.as_ref().and_then(Reply::list).unwrap_or_default();
        let state = parts.first().and_then(Reply::integer);
        let dead = parts.get(1).and_then(Reply::text).unwrap_or_default();
        match state {
            Some(2) => *renewals = renewals.saturating_add(1),
            Some(1) => {
                // Another node may have taken out some rooms.
                *renewals = 0;
                hooks.rooms_again();
            }
            _ => {
                // Redis was emptied, or another node has claimed everything.
                *renewals = 0;
                let mut records = self.records.lock();
                let forgotten = std::mem::take(&mut records.dirty);
                records.write_all();
                records.dirty.extend(forgotten);
                self.has_changes.notify_one();
                drop(records);
                hooks.rooms_again();
            }
        }
        if *renewals < RENEWALS_BEFORE_CLAIM || dead.is_empty() {
            return Ok(());
        }
        // Rooms before records: claiming the last record removes the node.
        self.sweep_rooms(link, dead, hooks).await?;
        let (theirs, count) = (self.key(dead), BATCH.to_string());
        let claim = ["EVAL", CLAIM, "3", leases, own, &theirs, dead, &count];
        let mut total = 0;
        while hooks.may_claim() {
            let reply = link.command(&claim).await?;
            let claimed = reply.as_ref().and_then(Reply::list).unwrap_or_default();
            for record in claimed {
                self.adopt(record.text().unwrap_or_default(), hooks);
            }
            total += claimed.len();
            if claimed.is_empty() {
                break;
            }
        }
        if total > 0 {
            tracing::warn!(
                node = dead,
                disconnects = total,
                "a node has died: its disconnects are delivered here"
            );
        }
        Ok(())
    }

    fn adopt(&self, json: &str, hooks: &Hooks) {
        match serde_json::from_str::<Record>(json) {
            Ok(record) => {
                let labels = [record.hook.as_str()];
                self.metrics.adopted.with_label_values(&labels).inc();
                // It is in Redis already; it is known here in case Redis loses it.
                self.put(&record);
                hooks.adopt(record);
            }
            Err(error) => self.failed(&format!("a stored disconnect cannot be read: {error}")),
        }
    }
}

impl Link {
    async fn is_up(&self) {
        let mut state = self.publisher.state();
        drop(state.wait_for(|state| *state == PublisherState::Up).await);
    }

    /// All keys are on one server, so the own one finds it for every command.
    async fn command<A: AsRef<[u8]>>(&self, args: &[A]) -> Result<Option<Value>, PublishError> {
        redis_commands::send(&self.publisher, &self.own, args).await
    }

    async fn write(&self, changes: &[(String, Option<Bytes>)]) -> Result<(), PublishError> {
        let mut set = vec![&b"HSET"[..], self.own.as_bytes()];
        let mut forget = vec![&b"HDEL"[..], self.own.as_bytes()];
        for (id, record) in changes {
            match record {
                Some(record) => set.extend([id.as_bytes(), record]),
                None => forget.push(id.as_bytes()),
            }
        }
        // No record is in both commands, so their order does not matter.
        for command in [set, forget] {
            if command.len() > 2 {
                self.command(&command).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_taken_once_each_as_they_are_by_then() {
        let mut records = Records::default();
        let bytes = Bytes::from_static;
        records.put("a".into(), bytes(b"first")).unwrap();
        records.put("a".into(), bytes(b"second")).unwrap();
        records.put("b".into(), bytes(b"b")).unwrap();
        records.remove("b");
        let mut changes = records.take();
        changes.sort();
        let expected = [("a", Some(bytes(b"second"))), ("b", None)];
        assert_eq!(changes, expected.map(|(id, record)| (id.into(), record)));
        assert_eq!((records.take().len(), records.bytes), (0, 6));
    }

    #[test]
    fn records_are_bounded_in_size_and_number() {
        let mut records = Records::default();
        let large = Bytes::from(vec![0; MAX_RECORD + 1]);
        assert_eq!(records.put("a".into(), large), Err("too_large"));
        for number in 0..MAX_RECORDS {
            records.put(number.to_string(), Bytes::new()).unwrap();
        }
        let one = || Bytes::from_static(b"x");
        assert_eq!(records.put("more".into(), one()), Err("too_many"));
        // One that is known may change.
        assert_eq!(records.put("0".into(), one()), Ok(()));
        assert_eq!(records.take().len(), BATCH);
    }

    #[test]
    fn changes_that_wait_too_long_become_a_new_beginning() {
        let mut records = Records::default();
        let bytes = Bytes::from_static(b"a");
        records.put("a".into(), bytes.clone()).unwrap();
        for number in 0..MAX_DIRTY {
            assert!(!records.is_stale, "{number}");
            records.remove(&number.to_string());
        }
        assert!(records.is_stale);
        assert_eq!(records.take(), [("a".into(), Some(bytes))]);
    }

    #[test]
    fn a_record_keeps_what_a_request_needs() {
        let mut headers = HeaderMap::new();
        headers.insert("x-tenant", HeaderValue::from_static("acme"));
        let record = Record::new("1".into(), "app", "/", b"{}", &headers);
        let json = serde_json::to_string(&record).unwrap();
        let read: Record = serde_json::from_str(&json).unwrap();
        assert_eq!((&read, read.forwarded()), (&record, headers));
        assert_eq!(read.into_body(), "{}");
    }
}
