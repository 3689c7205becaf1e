-- The end of the script that publishes under an idempotency key. `append` before it is the script of the journal,
-- with its keys and arguments.
--
-- KEYS  the result; then those of journal.lua if there is a journal, or the stream of the streams dialect
-- ARGV  fingerprint of the broadcast, lifetime of the result in ms; then those of journal.lua; or the number of
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
local published, members
if #KEYS > 1 then
  local is_done
  is_done, published = pcall(append)
  if not is_done and type(published) ~= 'table' then
    published = redis.error_reply(published)
  end
elseif #KEYS == 1 then
  members = table.remove(ARGV, 1)
  published = redis.pcall(unpack(ARGV))
else
  published = redis.pcall(ARGV[1], ARGV[2], ARGV[3])
end
if type(published) == 'table' then
  redis.call('DEL', result)
  return published
end
if #KEYS > 1 then
  local now, id, receivers = string.match(published, '^(%d+) %d+ (%d+) (%d+)$')
  kept = id .. ' ' .. now .. ' ' .. receivers
elseif members then
  kept = published .. ' 0 ' .. members
else
  kept = '0 0 ' .. published
end
kept = fingerprint .. ' ' .. kept
redis.call('SET', result, kept, 'PX', lifetime)
return { 0, kept }
