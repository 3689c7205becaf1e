local seconds_and_micros = redis.call('TIME')
local seconds = tonumber(seconds_and_micros[1])
-- The time in ms, as text, because Lua writes numbers three times as slowly.
local now = string.format('%s%03d', seconds_and_micros[1], seconds_and_micros[2] / 1000)

-- The last entry of a stream: its id and the bytes so far. The counter may have been evicted.
local function last_of(stream)
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not last then
    return 0, 0
  end
  return tonumber(string.match(last[1], '^%d+')), tonumber(last[2][4])
end

-- Removes the oldest entries while they are too old or the stream is too large, but not the last one.
local function trim(stream, id, bytes, max_bytes, age)
  local name, oldest = id .. '-0', tonumber(now) - age * 1000
  while true do
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    if not first or first[1] == name then
      return
    end
    local time, so_far, size = tonumber(first[2][2]), tonumber(first[2][4]), #first[2][6]
    if time >= oldest and bytes - so_far + size <= max_bytes then
      return
    end
    redis.call('XDEL', stream, first[1])
  end
end
