-- Reads entries of the log of a room.
--
-- KEYS  counter of the namespace, stream of the room
-- ARGV  XRANGE or XREVRANGE, from, to, maximum entries, the id that the reader has seen or nothing
-- Returns the time in ms, and the entries.
local from = ARGV[2]
if ARGV[5] ~= '' then
  local given = tonumber(redis.call('GET', KEYS[1])) or 0
  -- The id is from a log that was lost, so everything came after it.
  if tonumber(ARGV[5]) > given then
    from = '-'
  end
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
return { now, redis.call(ARGV[1], KEYS[2], from, ARGV[3], 'COUNT', ARGV[4]) }
