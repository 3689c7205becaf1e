//! The subscriptions of each digest, which may be made before its socket exists.
//!
//! ```text
//!  subscribe ─► add ──► nobody is connected: kept for the lifetime
//!                  └──► connected: the caller has the socket join as well
//!  connect ───► open ─► the channels; the node is noted
//!  disconnect ► close ► forgotten, or kept for the grace
//! ```
//!
//! In a cluster, Redis holds a set for each digest: its channels, and the nodes with its sockets. Each
//! step is one script, so a subscription that is made while its socket connects is either among the
//! channels that `open` returns, or `add` reports that the digest is connected. Sets of connected
//! sockets are renewed, so those of a node that dies lapse. On a single node, memory holds the same.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use roomcast::{
    RedisConfig,
    emitter::redis::{PublishError, Reply},
};
use tokio::time::Instant;

use crate::gateway::redis_commands::RedisCommands;

/// The most digests that memory holds. Redis has its own limits.
const MAX_DIGESTS: usize = 200_000;

/// The beginning of a member that names a node. Channels cannot begin like that.
const NODE: &str = "pw:node:";

/// Adds channels. Returns the nodes with sockets of the digest, or -1 if there are too many channels.
const ADD: &str = "
local nodes, count = {}, 0
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.sub(member, 1, 8) == 'pw:node:' then nodes[#nodes + 1] = member else count = count + 1 end
end
for i = 3, #ARGV do count = count + 1 - redis.call('SISMEMBER', KEYS[1], ARGV[i]) end
if count > tonumber(ARGV[2]) then return -1 end
for i = 3, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return nodes
";

/// Removes channels. Returns the nodes with sockets of the digest.
const REMOVE: &str = "
for i = 1, #ARGV do redis.call('SREM', KEYS[1], ARGV[i]) end
local nodes = {}
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.sub(member, 1, 8) == 'pw:node:' then nodes[#nodes + 1] = member end
end
return nodes
";

/// Notes a node and returns all members.
const OPEN: &str = "
redis.call('SADD', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('SMEMBERS', KEYS[1])
";

/// Takes a node out, and the rest if it was the last one.
const CLOSE: &str = "
redis.call('SREM', KEYS[1], ARGV[2])
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.sub(member, 1, 8) == 'pw:node:' then return 0 end
end
if ARGV[1] == '0' then redis.call('DEL', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1
";

/// Why the registry could not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error("a socket may be subscribed to {0} channels")]
    TooManyChannels(usize),
    #[error("too many subscriptions wait for their sockets")]
    Full,
    #[error("subscriptions are kept in Redis: {0}")]
    Redis(#[from] PublishError),
    #[error("subscriptions are kept in Redis, which replied otherwise than expected")]
    Reply,
}

/// How long what is kept, and how much of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) lifetime: Duration,
    pub(super) grace: Duration,
    pub(super) channels: usize,
}

/// The subscriptions of all digests.
pub(super) struct Registry {
    bounds: Bounds,
    store: Store,
}

enum Store {
    Memory(Mutex<Memory>),
    Redis(Box<Shared>),
}

impl Registry {
    pub(super) fn new(bounds: Bounds, redis: Option<RedisConfig>) -> Self {
        let store = match redis {
            Some(config) => Store::Redis(Box::new(Shared(RedisCommands::new(config)))),
            None => Store::Memory(Mutex::default()),
        };
        Self { bounds, store }
    }

    /// Whether connected digests must be [renewed](Self::renew).
    pub(super) fn lapses(&self) -> bool {
        matches!(self.store, Store::Redis(_))
    }

    /// Subscribes a digest. Its sockets must join as well.
    pub(super) async fn add(
        &self,
        digest: &str,
        channels: &[String],
    ) -> Result<Holders, RegistryError> {
        let shared = match &self.store {
            Store::Memory(memory) => {
                return memory.lock().add(digest, channels, self.bounds, now());
            }
            Store::Redis(shared) => shared,
        };
        let (lifetime, most) = (
            millis(self.bounds.lifetime),
            self.bounds.channels.to_string(),
        );
        let mut args = vec![lifetime.as_str(), most.as_str()];
        args.extend(channels.iter().map(String::as_str));
        let reply = shared.run(ADD, digest, &args).await?;
        if reply.integer() == Some(-1) {
            return Err(RegistryError::TooManyChannels(self.bounds.channels));
        }
        holders(&reply)
    }

    /// Unsubscribes a digest. Its sockets must leave as well.
    pub(super) async fn remove(
        &self,
        digest: &str,
        channels: &[String],
    ) -> Result<Holders, RegistryError> {
        match &self.store {
            Store::Memory(memory) => Ok(memory.lock().remove(digest, channels)),
            Store::Redis(shared) => {
                let args: Vec<_> = channels.iter().map(String::as_str).collect();
                holders(&shared.run(REMOVE, digest, &args).await?)
            }
        }
    }

    /// A socket of a node has connected. Returns its channels.
    pub(super) async fn open(
        &self,
        digest: &str,
        node: &str,
    ) -> Result<Vec<String>, RegistryError> {
        let shared = match &self.store {
            Store::Memory(memory) => return Ok(memory.lock().open(digest, self.bounds, now())),
            Store::Redis(shared) => shared,
        };
        let (lifetime, node) = (millis(self.bounds.lifetime), format!("{NODE}{node}"));
        let reply = shared.run(OPEN, digest, &[&lifetime, &node]).await?;
        let members = reply.list().ok_or(RegistryError::Reply)?.iter();
        let channels = members.filter_map(Reply::text);
        let channels = channels.filter(|channel| !channel.starts_with(NODE));
        Ok(channels.map(str::to_owned).collect())
    }

    /// The last socket of a node has disconnected.
    pub(super) async fn close(&self, digest: &str, node: &str) -> Result<(), RegistryError> {
        match &self.store {
            Store::Memory(memory) => memory.lock().close(digest, self.bounds, now()),
            Store::Redis(shared) => {
                let (grace, node) = (millis(self.bounds.grace), format!("{NODE}{node}"));
                shared.run(CLOSE, digest, &[&grace, &node]).await?;
            }
        }
        Ok(())
    }

    /// Keeps a connected digest for another lifetime. Returns `false` if Redis has lost it.
    pub(super) async fn renew(&self, digest: &str) -> Result<bool, RegistryError> {
        let Store::Redis(shared) = &self.store else {
            return Ok(true);
        };
        let (key, lifetime) = (shared.key(digest), millis(self.bounds.lifetime));
        let reply = shared.0.run(&key, &["PEXPIRE", &key, &lifetime]).await?;
        Ok(reply.integer().ok_or(RegistryError::Reply)? == 1)
    }
}

/// Where the sockets of a digest are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holders {
    /// The only node.
    Here(bool),
    /// The nodes of these names.
    Nodes(Vec<String>),
}

impl Holders {
    /// Whether `node` has any, and whether others have.
    pub(super) fn at(&self, node: &str) -> (bool, bool) {
        match self {
            Self::Here(has_any) => (*has_any, false),
            Self::Nodes(nodes) => {
                let is_own = |name: &String| name == node;
                (nodes.iter().any(is_own), !nodes.iter().all(is_own))
            }
        }
    }
}

fn holders(reply: &impl Reply) -> Result<Holders, RegistryError> {
    let members = reply.list().ok_or(RegistryError::Reply)?.iter();
    let nodes = members.filter_map(|member| member.text()?.strip_prefix(NODE));
    Ok(Holders::Nodes(nodes.map(str::to_owned).collect()))
}

fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}

/// The subscriptions in Redis. All scripts may run twice.
struct Shared(RedisCommands);

impl Shared {
    fn key(&self, digest: &str) -> String {
        format!("{}-pk:sub:{digest}", self.0.prefix())
    }

    async fn run(
        &self,
        script: &str,
        digest: &str,
        args: &[&str],
    ) -> Result<impl Reply + use<>, PublishError> {
        let key = self.key(digest);
        let mut command = vec!["EVAL", script, "1", &key];
        command.extend(args);
        self.0.run(&key, &command).await
    }
}

/// The subscriptions of a single node.
#[derive(Default)]
struct Memory {
    entries: HashMap<String, Entry>,
    /// When lapsed entries are removed again.
    sweep: Option<Instant>,
}

struct Entry {
    channels: BTreeSet<String>,
    is_open: bool,
    /// When it lapses unless it is open.
    until: Instant,
}

impl Memory {
    fn add(
        &mut self,
        digest: &str,
        channels: &[String],
        bounds: Bounds,
        now: Instant,
    ) -> Result<Holders, RegistryError> {
        self.forget(bounds, now);
        if self.entries.len() >= MAX_DIGESTS && !self.entries.contains_key(digest) {
            return Err(RegistryError::Full);
        }
        let known = self.entry(digest, now);
        let new = channels
            .iter()
            .filter(|channel| !known.channels.contains(*channel));
        if known.channels.len() + new.count() > bounds.channels {
            return Err(RegistryError::TooManyChannels(bounds.channels));
        }
        known.channels.extend(channels.iter().cloned());
        known.until = now + bounds.lifetime;
        Ok(Holders::Here(known.is_open))
    }

    fn remove(&mut self, digest: &str, channels: &[String]) -> Holders {
        let Some(known) = self.entries.get_mut(digest) else {
            return Holders::Here(false);
        };
        known.channels.retain(|channel| !channels.contains(channel));
        Holders::Here(known.is_open)
    }

    fn open(&mut self, digest: &str, bounds: Bounds, now: Instant) -> Vec<String> {
        self.forget(bounds, now);
        let known = self.entry(digest, now);
        known.is_open = true;
        known.channels.iter().cloned().collect()
    }

    fn close(&mut self, digest: &str, bounds: Bounds, now: Instant) {
        if bounds.grace.is_zero() {
            self.entries.remove(digest);
        } else if let Some(known) = self.entries.get_mut(digest) {
            known.is_open = false;
            known.until = now + bounds.grace;
        }
    }

    /// An entry that has expired counts as a new one.
    fn entry(&mut self, digest: &str, now: Instant) -> &mut Entry {
        let entry = self.entries.entry(digest.to_owned());
        let entry = entry.or_insert_with(|| Entry {
            channels: BTreeSet::new(),
            is_open: false,
            until: now,
        });
        if !entry.is_open && entry.until <= now {
            entry.channels.clear();
        }
        entry
    }

    /// Removes what has lapsed, at most once in a lifetime unless the memory is full.
    fn forget(&mut self, bounds: Bounds, now: Instant) {
        let is_due = self.sweep.is_none_or(|sweep| sweep <= now);
        if is_due || self.entries.len() >= MAX_DIGESTS {
            self.entries
                .retain(|_, entry| entry.is_open || entry.until > now);
            self.sweep = Some(now + bounds.lifetime);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is kept lapses by the clock of the runtime"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        lifetime: Duration::from_secs(600),
        grace: Duration::ZERO,
        channels: 3,
    };

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn subscriptions_are_made_before_the_socket_exists_and_end_with_it() {
        let registry = Registry::new(BOUNDS, None);
        let (here, nobody) = (Holders::Here(true), Holders::Here(false));
        assert_eq!(
            registry.add("d", &names(&["b", "a", "a"])).await.unwrap(),
            nobody
        );
        assert_eq!(registry.add("d", &names(&["a"])).await.unwrap(), nobody);
        assert_eq!(registry.open("d", "n").await.unwrap(), ["a", "b"]);
        assert_eq!(registry.add("d", &names(&["c"])).await.unwrap(), here);
        assert_eq!(
            registry.remove("d", &names(&["a", "x"])).await.unwrap(),
            here
        );
        assert_eq!(registry.open("d", "n").await.unwrap(), ["b", "c"]);
        registry.close("d", "n").await.unwrap();
        assert_eq!(registry.open("d", "n").await.unwrap(), names(&[]));
        assert_eq!(registry.open("other", "n").await.unwrap(), names(&[]));
        assert_eq!(
            registry.remove("unknown", &names(&["a"])).await.unwrap(),
            nobody
        );
    }

    #[test]
    fn a_node_knows_whether_it_or_others_have_sockets_of_a_digest() {
        let nodes = |nodes: &[&str]| Holders::Nodes(names(nodes));
        assert_eq!(nodes(&[]).at("a"), (false, false));
        assert_eq!(nodes(&["a"]).at("a"), (true, false));
        assert_eq!(nodes(&["a", "b"]).at("a"), (true, true));
        assert_eq!(nodes(&["b"]).at("a"), (false, true));
        assert_eq!(Holders::Here(true).at("a"), (true, false));
    }

    #[test]
    fn a_pair_that_never_connects_is_forgotten() {
        let (mut memory, start) = (Memory::default(), now());
        let after = |seconds| start + Duration::from_secs(seconds);
        memory.add("d", &names(&["a"]), BOUNDS, start).unwrap();
        memory.add("open", &names(&["a"]), BOUNDS, start).unwrap();
        memory.open("open", BOUNDS, start);
        memory.add("d", &names(&["b"]), BOUNDS, after(599)).unwrap();
        assert_eq!(memory.open("d", BOUNDS, after(1198)), ["a", "b"]);
        memory
            .add("late", &names(&["a"]), BOUNDS, after(1198))
            .unwrap();
        assert_eq!(memory.open("late", BOUNDS, after(1798)), names(&[]));
        assert_eq!(memory.open("open", BOUNDS, after(9999)), ["a"]);
    }

    #[test]
    fn a_grace_keeps_the_subscriptions_of_a_socket_that_comes_back() {
        let (mut memory, start) = (Memory::default(), now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let grace = Duration::from_secs(5);
        let bounds = Bounds { grace, ..BOUNDS };
        memory.add("d", &names(&["a"]), bounds, start).unwrap();
        memory.open("d", bounds, start);
        memory.close("d", bounds, start);
        assert_eq!(memory.open("d", bounds, after(4)), ["a"]);
        memory.close("d", bounds, after(4));
        assert_eq!(memory.open("d", bounds, after(9)), names(&[]));
    }

    #[tokio::test]
    async fn the_channels_of_a_socket_are_limited() {
        let registry = Registry::new(BOUNDS, None);
        registry.add("d", &names(&["a", "b"])).await.unwrap();
        let error = registry.add("d", &names(&["c", "d"])).await.unwrap_err();
        assert!(error.to_string().contains("3 channels"), "{error}");
        registry.add("d", &names(&["a", "b", "c"])).await.unwrap();
        assert_eq!(registry.open("d", "n").await.unwrap(), ["a", "b", "c"]);
    }

    #[test]
    fn the_digests_in_memory_are_limited_to_those_that_have_not_lapsed() {
        let (mut memory, now) = (Memory::default(), now());
        let one = names(&["a"]);
        for number in 0..MAX_DIGESTS {
            memory.add(&number.to_string(), &one, BOUNDS, now).unwrap();
        }
        let full = memory.add("more", &one, BOUNDS, now);
        assert!(matches!(full, Err(RegistryError::Full)), "{full:?}");
        assert!(memory.add("0", &one, BOUNDS, now).is_ok());
        memory
            .add("more", &one, BOUNDS, now + BOUNDS.lifetime)
            .unwrap();
        assert_eq!(memory.entries.len(), 1);
    }
}
