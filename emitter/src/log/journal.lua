-- Stores broadcasts in the journal of the namespace and publishes them, in one step.
--
-- KEYS  counter of the namespace, journal
-- ARGV  channel, PUBLISH or SPUBLISH, lifetime of the counter in s, maximum entries, maximum bytes,
--       maximum age in s, then the head of the payload of each broadcast
-- Returns the time in ms, the id before, the first id, and the number of receivers of each broadcast. The
-- ids are consecutive. If one cannot be published, its error ends the list, unless it is the first one.
--
-- The entries and the counter are those of publish.lua. What can be done once for all broadcasts is: a call
-- of a command costs as much as a small script.
local call, format, pack = redis.call, string.format, struct.pack
local heads, journal, channel, publish = ARGV, KEYS[2], ARGV[1], ARGV[2]
local counter = call('GET', KEYS[1]) or ''
local previous, total, touched = string.match(counter, '^(%d+):(%d+):(%d+)$')
local last
local first = seconds
if previous then
  last, total, touched = tonumber(previous), tonumber(total), tonumber(touched)
else
  last, total = last_of(journal)
  previous, touched = format('%d', last), 0
  first = math.max(first, (tonumber(string.match(counter, '^%d+')) or 0) + 1)
end
first = math.max(first, last + 1)
local millis = tonumber(now)
local reply = { millis, last, first }
local id = first
for at = 7, #heads do
  local head = heads[at]
  local name = format('%d', id)
  local size = total + #head
  -- The first writes. If Redis may not write, nothing has happened.
  if at == #heads then
    call('XADD', journal, 'MAXLEN', '~', ARGV[4], name,
      't', now, 's', format('%d', size), 'b', head, 'p', previous)
  else
    call('XADD', journal, name, 't', now, 's', format('%d', size), 'b', head, 'p', previous)
  end
  local place
  local kind = string.byte(head)
  if kind == 91 then
    place = '[' .. name .. ',' .. now .. ',' .. previous .. ']]'
  elseif kind == 123 then
    place = '[' .. name .. ',' .. now .. ',' .. previous .. ']}'
  else
    place = pack('>BBI8BI8BI8', 0x93, 0xcf, id, 0xcf, millis, 0xcf, last)
  end
  local receivers = redis.pcall(publish, channel, head .. place)
  if type(receivers) == 'table' then
    -- Without the second command, the stream would refuse the same id to the next broadcast.
    call('XDEL', journal, name .. '-0')
    call('XSETID', journal, format('%d-0', id - 1))
    if id == first then
      return receivers
    end
    reply[at - 3] = receivers.err
    break
  end
  reply[at - 3] = receivers
  last, previous, total, id = id, name, size, id + 1
end

local age = tonumber(ARGV[6])
local is_due = seconds - touched > age / 16
if is_due or math.floor(last / 16) > math.floor((first - 1) / 16) then
  trim(journal, last, total, tonumber(ARGV[5]), age)
end
if is_due then
  touched = seconds
  call('EXPIRE', journal, age + math.ceil(age / 16))
  call('SET', KEYS[1], format('%s:%d:%d', previous, total, touched), 'EX', ARGV[3])
else
  call('SET', KEYS[1], format('%s:%d:%d', previous, total, touched), 'KEEPTTL')
end
return reply
