-- The end of the script that publishes under an idempotency key. `append` before it has common.lua and
-- publish.lua, with their keys and arguments.
--
-- KEYS  the result, then those of publish.lua, or none if there is no journal
-- ARGV  fingerprint of the broadcast, lifetime of the result in ms, then those of publish.lua, or PUBLISH or
--       SPUBLISH, channel and payload
-- Returns 1 if the key was used before and 0 otherwise, then what is kept under it: the fingerprint, id and time of
-- the position (0 if there is none), the number of receivers, and what was added to it later.
local result, fingerprint, lifetime = table.remove(KEYS, 1), table.remove(ARGV, 1), table.remove(ARGV, 1)
local kept = redis.call('GET', result)
if kept then
  return { 1, kept }
end
-- The first write. If Redis may not write, nothing has happened.
redis.call('SET', result, fingerprint, 'PX', lifetime)
local published
if #KEYS > 0 then
  published = append()
else
  local receivers = redis.pcall(ARGV[1], ARGV[2], ARGV[3])
  published = type(receivers) == 'table' and receivers or { 0, 0, receivers }
end
if published.err then
  redis.call('DEL', result)
  return published
end
kept = string.format('%s %.0f %.0f %.0f', fingerprint, published[1], published[2], published[3])
redis.call('SET', result, kept, 'PX', lifetime)
return { 0, kept }
