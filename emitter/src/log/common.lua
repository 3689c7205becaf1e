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
