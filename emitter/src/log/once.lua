-- The end of the script that publishes under an idempotency key. `append` before it has common.lua and
-- publish.lua, with their keys and arguments.
--
-- KEYS  the result; then those of publish.lua if there is a journal, or the stream of the streams dialect
-- ARGV  fingerprint of the broadcast, lifetime of the result in ms; then those of publish.lua; or the number of
--       members and the words of XADD; or PUBLISH or SPUBLISH, channel and payload
-- Returns 1 if the key was used before and 0 otherwise, then what is kept under it: the fingerprint, id and time of
-- the position (0 if there is none) or the id of the entry in the stream, the number of receivers, and the receipt,
-- which is added when the nodes have been asked.
local result, fingerprint, lifetime = table.remove(KEYS, 1), table.remove(ARGV, 1), table.remove(ARGV, 1)
local kept = redis.call('GET', result)
if kept then
  return { 1, kept }
end
-- The first write. If Redis may not write, nothing has happened.
redis.call('SET', result, fingerprint, 'PX', lifetime)
local published
if #KEYS > 1 then
  published = append()
elseif #KEYS == 1 then
  local members = table.remove(ARGV, 1)
  local id = redis.pcall(unpack(ARGV))
  published = type(id) == 'table' and id or { id, 0, members }
else
  local receivers = redis.pcall(ARGV[1], ARGV[2], ARGV[3])
  published = type(receivers) == 'table' and receivers or { 0, 0, receivers }
end
if published.err then
  redis.call('DEL', result)
  return published
end
-- Ids are written without an exponent.
local function text(number)
  return type(number) == 'string' and number or string.format('%.0f', number)
end
kept = table.concat({ fingerprint, text(published[1]), text(published[2]), text(published[3]) }, ' ')
redis.call('SET', result, kept, 'PX', lifetime)
return { 0, kept }
