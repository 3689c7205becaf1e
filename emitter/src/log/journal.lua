-- Stores broadcasts in the journal of the namespace and publishes them, in one step.
--
-- KEYS  counter of the namespace, journal
-- ARGV  channel, PUBLISH or SPUBLISH, lifetime of the counter in s, maximum entries, maximum bytes,
--       maximum age in s, then the head of the payload of each broadcast
-- Returns a text: the time in ms, the id before, the id, and the number of receivers. If there are more broadcasts, a
-- list of this text, that of the first one, and the numbers of receivers of the others, whose ids follow it. If one
-- cannot be published, its error ends the list, or is the reply if it is the first one.
--
-- The entries and the counter are those of publish.lua. What is here runs for each broadcast, so it has no
-- functions, converts no number twice, and returns no list for one, because each of these costs as much as a
-- command. The end of the script, upkeep.lua, runs for every 16th.
local call, pcall, format = redis.call, redis.pcall, string.format
local journal, channel, publish = KEYS[2], ARGV[1], ARGV[2]
local clock, counter = call('TIME'), call('GET', KEYS[1]) or ''
local previous, total, touched = string.match(counter, '^(%d+):(%d+):(%d+)$')
local id
if previous then
  id = math.max(clock[1], previous + 1)
else
  -- The journal begins, or the counter was evicted. Histories of rooms alone count without bytes.
  local last = call('XREVRANGE', journal, '+', '-', 'COUNT', 1)[1]
  previous, total, touched = '0', 0, 0
  if last then
    previous, total = string.match(last[1], '^%d+'), last[2][4]
  end
  id = math.max(clock[1], previous + 1, (string.match(counter, '^%d+') or 0) + 1)
end
local now, first = format('%s%03d', clock[1], clock[2] / 1000), id
local reply, size
-- All heads are of one encoding, which their first byte shows: a list or an object of JSON, or MessagePack.
local kind = string.byte(ARGV[7])
local brackets = kind == 91 and ']]' or kind == 123 and ']}'
for at = 7, #ARGV do
  local head = ARGV[at]
  local name = format('%d', id)
  total = total + #head
  size = format('%d', total)
  -- The first writes. If Redis may not write, nothing has happened.
  if at == #ARGV then
    call('XADD', journal, 'MAXLEN', '~', ARGV[4], name, 't', now, 's', size, 'b', head, 'p', previous)
  else
    call('XADD', journal, name, 't', now, 's', size, 'b', head, 'p', previous)
  end
  local place
  if brackets then
    place = '[' .. name .. ',' .. now .. ',' .. previous .. brackets
  else
    place = struct.pack('>BBI8BI8BI8', 0x93, 0xcf, id, 0xcf, tonumber(now), 0xcf, tonumber(previous))
  end
  local receivers = pcall(publish, channel, head .. place)
  if type(receivers) == 'table' then
    -- Without the second command, the stream would refuse the same id to the next broadcast.
    call('XDEL', journal, name .. '-0')
    call('XSETID', journal, format('%d-0', id - 1))
    if id == first then
      return receivers
    end
    reply[at - 6] = receivers.err
    total = total - #head
    size = format('%d', total)
    break
  end
  if at == 7 then
    reply = now .. ' ' .. previous .. ' ' .. name .. ' ' .. receivers
    if #ARGV > 7 then
      reply = { reply }
    end
  else
    reply[at - 6] = receivers
  end
  previous, id = name, id + 1
end
local is_due = clock[1] - touched > ARGV[6] / 16
-- What follows is published already, so an error of Redis must not become that of the broadcasts.
if not is_due then
  pcall('SET', KEYS[1], previous .. ':' .. size .. ':' .. touched, 'KEEPTTL')
  -- Whether one of the ids is a multiple of 16.
  if (id - 1) % 16 > id - 1 - first then
    return reply
  end
end
