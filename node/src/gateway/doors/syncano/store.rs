//! The tables of an instance: channels that were made over the API, and objects.
//!
//! Tables of texts by field. With Redis the whole cluster shares them, as hashes whose
//! names have the instance as hash tag; without it, they are in the node's memory.
//!
//! Checks and changes that belong together are one script, because requests for the
//! same object may arrive at several nodes at once. It contains only the door's own state:
//! notifications are in the log of the namespace.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use roomcast::{RedisConfig, emitter::redis::Reply};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::failure::Failure;
use crate::gateway::redis_commands::RedisCommands;

/// Inserts a field that does not exist, if the table is not full. The reply is 1, 0 if
/// the field exists, or -1 if the table is full.
/// The limit is checked in the same step, so that two nodes cannot exceed it together.
const INSERT: &str = "\
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1";

/// Replaces the value of a field if it is still the old one.
/// Values are compared as texts, so no version is needed in addition.
const REPLACE: &str = "\
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1";

/// How often a change is applied to a value that others change, too.
/// Each attempt that fails means that another one succeeded, so this many are exceeded
/// only by a flood.
const MAX_ATTEMPTS: usize = 16;

/// The result of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    Yes,
    Exists,
    /// The table has as many fields as it may have.
    Full,
}

/// The tables of all instances.
pub(super) enum Store {
    Memory(Mutex<Memory>),
    Redis(Box<RedisCommands>),
}

#[derive(Default)]
pub(super) struct Memory {
    tables: HashMap<String, BTreeMap<String, String>>,
    counters: HashMap<String, u64>,
}

impl Store {
    pub(super) fn new(redis: Option<&RedisConfig>) -> Self {
        match redis {
            None => Self::Memory(Mutex::default()),
            Some(config) => Self::Redis(Box::new(RedisCommands::new(config.clone()))),
        }
    }

    /// Names a table of an instance.
    pub(super) fn table(&self, instance: &str, name: &str) -> String {
        match self {
            Self::Memory(_) => format!("{instance}:{name}"),
            Self::Redis(commands) => {
                let prefix = commands.prefix();
                format!("{prefix}-syncano#{{{instance}}}:{name}")
            }
        }
    }

    async fn get(&self, table: &str, field: &str) -> Result<Option<String>, Failure> {
        match self {
            Self::Memory(memory) => {
                let memory = memory.lock();
                let value = memory.tables.get(table).and_then(|table| table.get(field));
                Ok(value.cloned())
            }
            Self::Redis(commands) => {
                let reply = run(commands, table, &["HGET", table, field]).await?;
                Ok(reply.text().map(str::to_owned))
            }
        }
    }

    /// A value of JSON.
    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        table: &str,
        field: &str,
    ) -> Result<T, Failure> {
        let text = self.get(table, field).await?;
        let value = text.and_then(|text| serde_json::from_str(&text).ok());
        value.ok_or_else(Failure::not_found)
    }

    /// Changes a value of JSON. Another change in between is a reason to apply this one again.
    /// Returns the value and the result of `change`. `kind` is the word for the value in an error.
    pub(super) async fn change<T: DeserializeOwned + Serialize, R>(
        &self,
        table: &str,
        field: &str,
        kind: &str,
        change: impl Fn(&mut T) -> Result<R, Failure>,
    ) -> Result<(T, R), Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let old = self.get(table, field).await?;
            let old = old.ok_or_else(Failure::not_found)?;
            let mut value = serde_json::from_str(&old).map_err(|_| Failure::not_found())?;
            let result = change(&mut value)?;
            let new = json!(value).to_string();
            if self.replace(table, field, &old, &new).await? {
                return Ok((value, result));
            }
        }
        let text = format!("The {kind} is being changed by others.");
        Err(Failure::unavailable(text))
    }

    /// All values of a table, in the order of their fields.
    pub(super) async fn all(&self, table: &str) -> Result<Vec<String>, Failure> {
        match self {
            Self::Memory(memory) => {
                let memory = memory.lock();
                let table = memory.tables.get(table);
                Ok(table
                    .map(|table| table.values().cloned().collect())
                    .unwrap_or_default())
            }
            Self::Redis(commands) => {
                let reply = run(commands, table, &["HGETALL", table]).await?;
                let pairs = reply.pairs().unwrap_or_default().into_iter();
                let pairs = pairs.filter_map(|(field, value)| Some((field.text()?, value.text()?)));
                // A hash in Redis has no order.
                let sorted: BTreeMap<_, _> = pairs.collect();
                Ok(sorted.into_values().map(str::to_owned).collect())
            }
        }
    }

    pub(super) async fn insert(
        &self,
        table: &str,
        field: &str,
        value: &str,
        most: usize,
    ) -> Result<Inserted, Failure> {
        match self {
            Self::Memory(memory) => {
                let mut memory = memory.lock();
                let table = memory.tables.entry(table.to_owned()).or_default();
                Ok(if table.contains_key(field) {
                    Inserted::Exists
                } else if table.len() >= most {
                    Inserted::Full
                } else {
                    table.insert(field.to_owned(), value.to_owned());
                    Inserted::Yes
                })
            }
            Self::Redis(commands) => {
                let most = most.to_string();
                let command = ["EVAL", INSERT, "1", table, field, value, &most];
                let reply = run(commands, table, &command).await?;
                Ok(match reply.integer() {
                    Some(1) => Inserted::Yes,
                    Some(0) => Inserted::Exists,
                    _ => Inserted::Full,
                })
            }
        }
    }

    /// Replaces a value. Returns `false` if it is no longer the old one.
    async fn replace(
        &self,
        table: &str,
        field: &str,
        old: &str,
        new: &str,
    ) -> Result<bool, Failure> {
        match self {
            Self::Memory(memory) => {
                let mut memory = memory.lock();
                let value = memory.tables.get_mut(table);
                let value = value.and_then(|table| table.get_mut(field));
                let value = value.filter(|value| *value == old);
                Ok(value.map(|value| new.clone_into(value)).is_some())
            }
            Self::Redis(commands) => {
                let command = ["EVAL", REPLACE, "1", table, field, old, new];
                Ok(run(commands, table, &command).await?.integer() == Some(1))
            }
        }
    }

    /// Removes a field. Returns `false` if it does not exist.
    pub(super) async fn remove(&self, table: &str, field: &str) -> Result<bool, Failure> {
        match self {
            Self::Memory(memory) => {
                let mut memory = memory.lock();
                let table = memory.tables.get_mut(table);
                Ok(table.and_then(|table| table.remove(field)).is_some())
            }
            Self::Redis(commands) => {
                let reply = run(commands, table, &["HDEL", table, field]).await?;
                Ok(reply.integer() == Some(1))
            }
        }
    }

    /// The next id of a counter, which is named as a table is.
    /// Ids are never given twice while the store lives, even if their objects are
    /// deleted.
    pub(super) async fn next(&self, counter: &str) -> Result<u64, Failure> {
        match self {
            Self::Memory(memory) => {
                let mut memory = memory.lock();
                let count = memory.counters.entry(counter.to_owned()).or_default();
                *count += 1;
                Ok(*count)
            }
            Self::Redis(commands) => {
                let reply = run(commands, counter, &["INCR", counter]).await?;
                let id = reply.integer().and_then(|id| u64::try_from(id).ok());
                id.ok_or_else(|| Failure::unavailable("Redis returned no id."))
            }
        }
    }
}

/// Runs a command about a table or a counter.
async fn run(
    commands: &RedisCommands,
    key: &str,
    command: &[&str],
) -> Result<impl Reply + use<>, Failure> {
    let reply = commands.run(key, command).await;
    reply.map_err(|error| Failure::unavailable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_table_in_memory_keeps_texts_by_field_up_to_its_limit() {
        let store = Store::new(None);
        let table = store.table("shop", "channels");
        let insert = async |field, value| store.insert(&table, field, value, 2).await.unwrap();
        assert_eq!(insert("b", "1").await, Inserted::Yes);
        assert_eq!(insert("b", "2").await, Inserted::Exists);
        assert_eq!(insert("a", "2").await, Inserted::Yes);
        assert_eq!(insert("c", "3").await, Inserted::Full);
        assert_eq!(store.get(&table, "b").await.unwrap().as_deref(), Some("1"));
        assert_eq!(store.all(&table).await.unwrap(), ["2", "1"]);
        assert!(!store.replace(&table, "b", "x", "y").await.unwrap());
        assert!(store.replace(&table, "b", "1", "y").await.unwrap());
        assert_eq!(store.get(&table, "b").await.unwrap().as_deref(), Some("y"));
        assert!(store.remove(&table, "b").await.unwrap());
        assert!(!store.remove(&table, "b").await.unwrap());
        let other = store.table("other", "channels");
        assert!(store.all(&other).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn each_counter_counts_by_itself() {
        let store = Store::new(None);
        let ids = async |counter| store.next(counter).await.unwrap();
        assert_eq!([ids("a").await, ids("a").await, ids("b").await], [1, 2, 1]);
    }
}
