-- Reads entries of the log of a room, or of the journal.
--
-- KEYS  counter of the namespace, stream
-- ARGV  XRANGE or XREVRANGE, from, to, maximum entries, the id that the reader has seen or nothing
-- Returns the time in ms, the entries, and the last id that was given.
local from = ARGV[2]
local given = tonumber(string.match(redis.call('GET', KEYS[1]) or '', '^%d+')) or 0
-- The id is from a log that was lost, so everything came after it.
if ARGV[5] ~= '' and tonumber(ARGV[5]) > given then
  from = '-'
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
return { now, redis.call(ARGV[1], KEYS[2], from, ARGV[3], 'COUNT', ARGV[4]), given }
