//! The subscriptions of each digest, which may be made before its socket exists.
//!
//! ```text
//!  subscribe ─► add ──► nobody is connected: kept for the lifetime
//!                  └──► connected: the caller has the socket join as well
//!  connect ───► open ─► the channels; the node is noted
//!  disconnect ► close ► forgotten, or kept for the grace
//! ```
//!
//! In a cluster, Redis holds a set for each digest: its channels, and the nodes with its
//! sockets. Each step is one script, so a subscription that is made while its socket
//! connects is either among the channels that `open` returns, or `add` reports that the
//! digest is connected. Sets of connected sockets are renewed, so those of a node that
//! dies lapse. On a single node, memory holds the same. With Pakyow's own processes, the
//! subscriptions are in their hash.

mod hash;
mod memory;

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use roomcast::{
    RedisConfig,
    emitter::redis::{PublishError, Reply, Value},
};

pub(super) use self::hash::BATCH;
use self::memory::Memory;
use super::subscriptions::RESERVED;
use crate::gateway::{clock::now, redis_commands::RedisCommands};

/// The beginning of a member that names a node. Channels cannot begin like that.
const NODE: &str = "pw:node:";

/// Adds channels. Returns the nodes with sockets of the digest, or -1 if there are too
/// many channels.
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

/// Keeps a set. Returns 0 if the node is not in it, because it was written since Redis
/// has lost its data.
const RENEW: &str = "
if redis.call('SISMEMBER', KEYS[1], ARGV[2]) == 0 then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
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

/// The reason why the registry has failed.
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

/// How long subscriptions are kept, and how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) lifetime: Duration,
    pub(super) grace: Duration,
    pub(super) channels: usize,
}

/// The subscriptions of all digests.
pub(super) struct Registry {
    /// A reload may replace them.
    bounds: RwLock<Bounds>,
    store: Store,
}

enum Store {
    Memory(Mutex<Memory>),
    /// A set for each digest.
    Sets(Box<RedisCommands>),
    /// The hash of Pakyow's own processes, and its name.
    Hash(Arc<RedisCommands>, String),
}

impl Registry {
    /// In memory, or in Redis if there is a cluster.
    pub(super) fn new(bounds: Bounds, redis: Option<RedisConfig>) -> Self {
        let store = match redis {
            Some(config) => Store::Sets(Box::new(RedisCommands::new(config))),
            None => Store::Memory(Mutex::default()),
        };
        let bounds = RwLock::new(bounds);
        Self { bounds, store }
    }

    /// In the hash of this name, which Pakyow's own processes use, too.
    pub(super) fn of_hash(bounds: Bounds, redis: Arc<RedisCommands>, name: String) -> Self {
        let (bounds, store) = (RwLock::new(bounds), Store::Hash(redis, name));
        Self { bounds, store }
    }

    /// Replaces the bounds. They count from the next change of each digest.
    pub(super) fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.write() = bounds;
    }

    fn bounds(&self) -> Bounds {
        *self.bounds.read()
    }

    /// Whether connected digests must be [renewed](Self::renew).
    pub(super) fn lapses(&self) -> bool {
        !matches!(self.store, Store::Memory(_))
    }

    /// Subscribes a digest. Its sockets must join as well.
    pub(super) async fn add(
        &self,
        digest: &str,
        channels: &[String],
    ) -> Result<Holders, RegistryError> {
        let bounds = self.bounds();
        let (lifetime, most) = (millis(bounds.lifetime), bounds.channels.to_string());
        let mut args = vec![&*lifetime, &*most];
        args.extend(channels.iter().map(String::as_str));
        let reply = match &self.store {
            Store::Memory(memory) => {
                return memory.lock().add(digest, channels, bounds, now());
            }
            Store::Sets(redis) => of_set(redis, ADD, digest, &args).await?,
            Store::Hash(redis, name) => hash::run(redis, name, hash::ADD, digest, &args).await?,
        };
        if reply.integer() == Some(-1) {
            return Err(RegistryError::TooManyChannels(bounds.channels));
        }
        holders(&reply)
    }

    /// Unsubscribes a digest. Its sockets must leave as well.
    pub(super) async fn remove(
        &self,
        digest: &str,
        channels: &[String],
    ) -> Result<Holders, RegistryError> {
        let names: Vec<_> = channels.iter().map(String::as_str).collect();
        let reply = match &self.store {
            Store::Memory(memory) => return Ok(memory.lock().remove(digest, channels)),
            Store::Sets(redis) => of_set(redis, REMOVE, digest, &names).await?,
            Store::Hash(redis, name) => {
                hash::run(redis, name, hash::REMOVE, digest, &names).await?
            }
        };
        holders(&reply)
    }

    /// A socket of a node has connected. Returns its channels.
    pub(super) async fn open(
        &self,
        digest: &str,
        node: &str,
    ) -> Result<Vec<String>, RegistryError> {
        let bounds = self.bounds();
        let (lifetime, node) = (millis(bounds.lifetime), format!("{NODE}{node}"));
        let args = [&*lifetime, &*node];
        let reply = match &self.store {
            Store::Memory(memory) => return Ok(memory.lock().open(digest, bounds, now())),
            Store::Sets(redis) => of_set(redis, OPEN, digest, &args).await?,
            Store::Hash(redis, name) => hash::run(redis, name, hash::OPEN, digest, &args).await?,
        };
        let members = reply.list().ok_or(RegistryError::Reply)?.iter();
        let channels = members.filter_map(Reply::text);
        let channels = channels.filter(|channel| !channel.starts_with(RESERVED));
        Ok(channels.map(str::to_owned).collect())
    }

    /// The last socket of a node has disconnected.
    pub(super) async fn close(&self, digest: &str, node: &str) -> Result<(), RegistryError> {
        let bounds = self.bounds();
        let (grace, node) = (millis(bounds.grace), format!("{NODE}{node}"));
        let args = [&*grace, &*node];
        match &self.store {
            Store::Memory(memory) => memory.lock().close(digest, bounds, now()),
            Store::Sets(redis) => drop(of_set(redis, CLOSE, digest, &args).await?),
            Store::Hash(redis, name) => {
                drop(hash::run(redis, name, hash::CLOSE, digest, &args).await?);
            }
        }
        Ok(())
    }

    /// Keeps a connected digest for another lifetime. Returns `false` if Redis has lost it.
    pub(super) async fn renew(&self, digest: &str, node: &str) -> Result<bool, RegistryError> {
        let (lifetime, node) = (millis(self.bounds().lifetime), format!("{NODE}{node}"));
        let args = [&*lifetime, &*node];
        let reply = match &self.store {
            Store::Memory(_) => return Ok(true),
            Store::Sets(redis) => of_set(redis, RENEW, digest, &args).await?,
            Store::Hash(redis, name) => hash::run(redis, name, hash::RENEW, digest, &args).await?,
        };
        Ok(reply.integer().ok_or(RegistryError::Reply)? == 1)
    }

    /// Removes digests that were not renewed, if they do not expire by themselves.
    pub(super) async fn sweep(&self) -> Result<(), RegistryError> {
        match &self.store {
            Store::Hash(redis, name) => {
                hash::sweep(redis, name, &millis(self.bounds().lifetime)).await
            }
            _ => Ok(()),
        }
    }

    /// Reads the channels of digests. Returns `None` for a store that only nodes of this
    /// cluster change.
    pub(super) async fn read(
        &self,
        digests: &[String],
    ) -> Result<Option<Vec<Vec<String>>>, RegistryError> {
        match &self.store {
            Store::Hash(redis, name) => Ok(Some(hash::read(redis, name, digests).await?)),
            _ => Ok(None),
        }
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

fn holders(reply: &Value) -> Result<Holders, RegistryError> {
    let members = reply.list().ok_or(RegistryError::Reply)?.iter();
    let nodes = members.filter_map(|member| member.text()?.strip_prefix(NODE));
    Ok(Holders::Nodes(nodes.map(str::to_owned).collect()))
}

fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}

/// The set of a digest.
fn key(redis: &RedisCommands, digest: &str) -> String {
    format!("{}-pk:sub:{digest}", redis.prefix())
}

/// Runs a script on the set of a digest. All scripts may run twice.
async fn of_set(
    redis: &RedisCommands,
    script: &str,
    digest: &str,
    args: &[&str],
) -> Result<Value, PublishError> {
    eval(redis, script, &[&key(redis, digest)], args).await
}

async fn eval(
    redis: &RedisCommands,
    script: &str,
    keys: &[&str],
    args: &[&str],
) -> Result<Value, PublishError> {
    let count = keys.len().to_string();
    let mut command = vec!["EVAL", script, &count];
    command.extend(keys);
    command.extend(args);
    let first = keys.first().copied().unwrap_or_default();
    redis.run(first, &command).await
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const BOUNDS: Bounds = Bounds {
        lifetime: Duration::from_secs(600),
        grace: Duration::ZERO,
        channels: 3,
    };

    pub(super) fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn subscriptions_are_made_before_the_socket_exists_and_end_with_it() {
        let registry = Registry::new(BOUNDS, None);
        let (here, nobody) = (Holders::Here(true), Holders::Here(false));
        let add = async |channels| registry.add("d", &names(channels)).await.unwrap();
        let remove =
            async |digest, channels| registry.remove(digest, &names(channels)).await.unwrap();
        let open = async |digest| registry.open(digest, "n").await.unwrap();
        assert_eq!(add(&["b", "a", "a"]).await, nobody);
        assert_eq!(add(&["a"]).await, nobody);
        assert_eq!(open("d").await, ["a", "b"]);
        assert_eq!(add(&["c"]).await, here);
        assert_eq!(remove("d", &["a", "x"]).await, here);
        assert_eq!(open("d").await, ["b", "c"]);
        registry.close("d", "n").await.unwrap();
        assert_eq!(open("d").await, names(&[]));
        assert_eq!(open("other").await, names(&[]));
        assert_eq!(remove("unknown", &["a"]).await, nobody);
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

    #[tokio::test]
    async fn the_channels_of_a_socket_are_limited() {
        let registry = Registry::new(BOUNDS, None);
        registry.add("d", &names(&["a", "b"])).await.unwrap();
        let error = registry.add("d", &names(&["c", "d"])).await.unwrap_err();
        assert!(error.to_string().contains("3 channels"), "{error}");
        registry.add("d", &names(&["a", "b", "c"])).await.unwrap();
        assert_eq!(registry.open("d", "n").await.unwrap(), ["a", "b", "c"]);
    }
}
