//! The hash in which Pakyow's own processes keep subscriptions.
//!
//! ```text
//!  pw:channels                  digest ─► ["news","pw:socket:<digest>"]      theirs, and ours
//!  pw:channels:nodes:<digest>   the nodes of ours with its sockets           lapses by itself
//!  pw:channels:lapse            digest ─► the time from which nobody needs it
//! ```
//!
//! The fields of a hash do not expire, and Pakyow's processes never read the other two.
//! So each digest that a node has written gets a time, which the node with the socket
//! renews, and `sweep` removes it afterwards. A digest whose private channel has a
//! subscriber is connected, perhaps to a process of Pakyow, and stays. Fields that only
//! processes have written are left to them.
//!
//! Processes may write anything into a field. Anything but a list of names counts as an empty list.

use roomcast::emitter::redis::{PublishError, Reply, Value};
use serde_json::Value as Json;

use super::{RESERVED, RegistryError, eval};
use crate::gateway::redis_commands::RedisCommands;

/// The most digests of one command.
/// Redis serves no other client meanwhile.
pub(in super::super) const BATCH: usize = 200;

/// The beginning of all scripts. Their first argument is the digest.
const COMMON: &str = "
local digest = ARGV[1]
local private = 'pw:socket:' .. digest
local function names()
  local list, seen = {}, {}
  local ok, known = pcall(cjson.decode, redis.call('HGET', KEYS[1], digest) or '[]')
  if not ok or type(known) ~= 'table' then return list, seen end
  for _, name in ipairs(known) do
    if type(name) == 'string' and not seen[name] then
      list[#list + 1], seen[name] = name, true
    end
  end
  return list, seen
end
local function write(list)
  if #list == 0 then redis.call('HDEL', KEYS[1], digest)
  else redis.call('HSET', KEYS[1], digest, cjson.encode(list)) end
end
local function keep(millis)
  local now = redis.call('TIME')
  redis.call('ZADD', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000) + millis, digest)
end
";

/// Adds channels. Returns the nodes with sockets of the digest, or -1 if there are too
/// many channels.
pub(super) const ADD: &str = "
local list, seen = names()
if not seen[private] then list[#list + 1], seen[private] = private, true end
for i = 4, #ARGV do
  if not seen[ARGV[i]] then list[#list + 1], seen[ARGV[i]] = ARGV[i], true end
end
local count = 0
for _, name in ipairs(list) do
  if string.sub(name, 1, 3) ~= 'pw:' then count = count + 1 end
end
if count > tonumber(ARGV[3]) then return -1 end
write(list)
keep(ARGV[2])
return redis.call('SMEMBERS', KEYS[2])
";

/// Removes channels. Returns the nodes with sockets of the digest.
pub(super) const REMOVE: &str = "
local list, rest, gone = names(), {}, {}
for i = 2, #ARGV do gone[ARGV[i]] = true end
for _, name in ipairs(list) do
  if not gone[name] then rest[#rest + 1] = name end
end
write(rest)
return redis.call('SMEMBERS', KEYS[2])
";

/// Notes a node and returns the channels.
/// The private channel is added, because processes push to a digest by it.
pub(super) const OPEN: &str = "
redis.call('SADD', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local list, seen = names()
if not seen[private] then
  list[#list + 1] = private
  write(list)
end
keep(ARGV[2])
return list
";

/// Takes a node out, and the channels if it was the last one.
pub(super) const CLOSE: &str = "
redis.call('SREM', KEYS[2], ARGV[3])
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if ARGV[2] == '0' then
  write({})
  redis.call('ZREM', KEYS[3], digest)
else keep(ARGV[2]) end
return 1
";

/// Keeps a digest. Returns 0 if its node is no longer stored.
pub(super) const RENEW: &str = "
if redis.call('SISMEMBER', KEYS[2], ARGV[3]) == 0 then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
keep(ARGV[2])
return 1
";

/// Removes digests whose time has passed. Returns the number of examined entries.
/// A process with the socket is subscribed to the private channel of the digest, which
/// is the only sign of it.
const SWEEP: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 200)
for _, digest in ipairs(over) do
  if redis.call('PUBSUB', 'NUMSUB', 'pw:socket:' .. digest)[2] > 0 then
    redis.call('ZADD', KEYS[2], now + ARGV[1], digest)
  else
    redis.call('HDEL', KEYS[1], digest)
    redis.call('ZREM', KEYS[2], digest)
  end
end
return #over
";

/// Runs a script on a digest.
pub(super) async fn run(
    redis: &RedisCommands,
    name: &str,
    script: &str,
    digest: &str,
    args: &[&str],
) -> Result<Value, PublishError> {
    let nodes = format!("{name}:nodes:{digest}");
    let lapse = lapse(name);
    let script = format!("{COMMON}{script}");
    let mut all = vec![digest];
    all.extend(args);
    eval(redis, &script, &[name, &nodes, &lapse], &all).await
}

/// Removes the digests whose time has passed.
pub(super) async fn sweep(
    redis: &RedisCommands,
    name: &str,
    lifetime: &str,
) -> Result<(), RegistryError> {
    let lapse = lapse(name);
    loop {
        let reply = eval(redis, SWEEP, &[name, &lapse], &[lifetime]).await?;
        let looked_at = reply.integer().ok_or(RegistryError::Reply)?;
        // A batch that is not full was the last one.
        if usize::try_from(looked_at).unwrap_or_default() < BATCH {
            return Ok(());
        }
    }
}

/// Returns the channels of each digest.
pub(super) async fn read(
    redis: &RedisCommands,
    name: &str,
    digests: &[String],
) -> Result<Vec<Vec<String>>, RegistryError> {
    let mut command = vec!["HMGET", name];
    command.extend(digests.iter().map(String::as_str));
    let reply = redis.run(name, &command).await?;
    let fields = reply.list();
    let fields = fields.filter(|fields| fields.len() == digests.len());
    let fields = fields.ok_or(RegistryError::Reply)?.iter();
    Ok(fields.map(|field| channels(field.text())).collect())
}

/// The channels in a field, which any process may have written.
fn channels(field: Option<&str>) -> Vec<String> {
    let list = serde_json::from_str::<Vec<Json>>(field.unwrap_or_default());
    let names = list
        .unwrap_or_default()
        .into_iter()
        .filter_map(|name| match name {
            Json::String(name) => Some(name),
            _ => None,
        });
    names.filter(|name| !name.starts_with(RESERVED)).collect()
}

fn lapse(name: &str) -> String {
    format!("{name}:lapse")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_any_process_has_written_has_the_channels_that_can_be_read() {
        let read = |field: &str| channels(Some(field));
        assert_eq!(
            read(r#"["news","pw:socket:7a1c","chat"]"#),
            ["news", "chat"]
        );
        assert_eq!(read(r#"["a",7,null,["b"],{"c":1}]"#), ["a"]);
        for field in ["", "{}", "7", "null", "[", "\"a\""] {
            assert_eq!(read(field), [""; 0], "{field}");
        }
        assert_eq!(channels(None), [""; 0]);
    }
}
