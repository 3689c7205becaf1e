-- Stores a broadcast in the log of a room and publishes it, in one step.
--
-- KEYS  counter of the namespace, stream of the room
-- ARGV  channel, head of the payload, maximum entries, maximum bytes, maximum age in s,
--       lifetime of the counter in s, PUBLISH or SPUBLISH
-- Returns id, time in ms, number of receivers.
--
-- An entry has three fields: its time, the bytes of all entries of the stream so far (so that two
-- entries tell the size of what is between them), and the head.
local channel, head = ARGV[1], ARGV[2]
local max_bytes, age = tonumber(ARGV[4]), tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local id = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) + 1, tonumber(clock[1]))
local bytes = #head
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  bytes = bytes + last[2][4]
  -- The counter may have been evicted.
  id = math.max(id, string.match(last[1], '^%d+') + 1)
end

-- The first write. If Redis may not write, nothing has happened.
local name = string.format('%.0f-0', id)
redis.call('XADD', KEYS[2], name, 't', now, 's', bytes, 'b', head)
redis.call('SET', KEYS[1], string.format('%.0f', id), 'EX', ARGV[6])

local place
local kind = string.byte(head)
if kind == 91 or kind == 123 then
  place = string.format('[%.0f,%.0f]', id, now) .. (kind == 91 and ']' or '}')
else
  place = struct.pack('>BBI8BI8', 0x92, 0xcf, id, 0xcf, now)
end
local receivers = redis.pcall(ARGV[7], channel, head .. place)
if type(receivers) == 'table' then
  redis.call('XDEL', KEYS[2], name)
  return receivers
end

redis.call('XTRIM', KEYS[2], 'MAXLEN', ARGV[3])
while true do
  local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if first[1] == name then
    break
  end
  local time, so_far, size = tonumber(first[2][2]), tonumber(first[2][4]), #first[2][6]
  if time >= now - age * 1000 and bytes - so_far + size <= max_bytes then
    break
  end
  redis.call('XDEL', KEYS[2], first[1])
end
redis.call('EXPIRE', KEYS[2], age)
return { id, now, receivers }
