-- Stores a broadcast in the log of a room, and in the journal of the namespace if it has one, and publishes
-- it, in one step.
--
-- KEYS  counter of the namespace, the journal if there is one, the stream of the room
-- ARGV  channel, head of the payload, PUBLISH or SPUBLISH, lifetime of the counter in s,
--       1 if the first stream is a journal, then for each stream: maximum entries, maximum bytes,
--       maximum age in s
-- Returns id, time in ms, number of receivers, and with a journal the id before.
--
-- An entry has three fields: its time, the bytes of all entries of the stream so far (so that two
-- entries tell the size of what is between them), and the head. In a journal a fourth is the id before.
--
-- Numbers are written without a format, because Lua writes them exactly up to 10^14. A journal is trimmed
-- in whole nodes of its stream, a hundred entries or so, because an exact trim costs more than all else.
--
-- The counter is the last id. With a journal, `id:bytes:touched`: the bytes so far spare a look at the
-- last entry, and the time of the last trim spares a trim for every broadcast.
local channel, head = ARGV[1], ARGV[2]
local has_journal = ARGV[5] == '1'
local counter = redis.call('GET', KEYS[1]) or ''
local id = math.max((tonumber(string.match(counter, '^%d+')) or 0) + 1, seconds)

local previous, total, touched
if has_journal then
  previous, total, touched = string.match(counter, '^(%d+):(%d+):(%d+)$')
  previous, total, touched = tonumber(previous), tonumber(total), tonumber(touched)
  if not previous then
    previous, total = last_of(KEYS[2])
    touched = 0
  end
  id = math.max(id, previous + 1)
end
local bytes = {}
for at = 2, #KEYS do
  if at == 2 and has_journal then
    bytes[at] = total + #head
  else
    local last, so_far = last_of(KEYS[at])
    id = math.max(id, last + 1)
    bytes[at] = so_far + #head
  end
end

-- The first writes. If Redis may not write, nothing has happened.
local name = id .. '-0'
for at = 2, #KEYS do
  local max = ARGV[3 * at]
  if at == 2 and has_journal then
    redis.call('XADD', KEYS[at], 'MAXLEN', '~', max, name,
      't', now, 's', bytes[at], 'b', head, 'p', previous)
  else
    redis.call('XADD', KEYS[at], 'MAXLEN', max, name, 't', now, 's', bytes[at], 'b', head)
  end
end

local place
local kind = string.byte(head)
if kind == 91 or kind == 123 then
  local numbers = id .. ',' .. now
  if has_journal then
    numbers = numbers .. ',' .. previous
  end
  place = '[' .. numbers .. (kind == 91 and ']]' or ']}')
elseif has_journal then
  place = struct.pack('>BBI8BI8BI8', 0x93, 0xcf, id, 0xcf, tonumber(now), 0xcf, previous)
else
  place = struct.pack('>BBI8BI8', 0x92, 0xcf, id, 0xcf, tonumber(now))
end
local receivers = redis.pcall(ARGV[3], channel, head .. place)
if type(receivers) == 'table' then
  -- Without the second command, the stream would refuse the same id to the next broadcast.
  for at = 2, #KEYS do
    redis.call('XDEL', KEYS[at], name)
    redis.call('XSETID', KEYS[at], (id - 1) .. '-0')
  end
  return receivers
end

-- What follows is published already, so an error of Redis must not become that of the broadcast.
for at = 2, #KEYS do
  local max_bytes, age = tonumber(ARGV[3 * at + 1]), tonumber(ARGV[3 * at + 2])
  if at == 2 and has_journal then
    local is_due = seconds - touched > age / 16
    if is_due or id % 16 == 0 then
      trim(KEYS[at], id, bytes[at], max_bytes, now, age)
    end
    if is_due then
      redis.pcall('EXPIRE', KEYS[at], age + math.ceil(age / 16))
      touched = seconds
    end
  else
    trim(KEYS[at], id, bytes[at], max_bytes, now, age)
    redis.pcall('EXPIRE', KEYS[at], age)
  end
end
counter = id
if has_journal then
  counter = counter .. ':' .. bytes[2] .. ':' .. touched
end
redis.pcall('SET', KEYS[1], counter, 'EX', ARGV[4])
return { id, tonumber(now), receivers, previous }
