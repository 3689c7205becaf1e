
-- Removes the oldest entries of a stream while they are too old or the stream is too large, but not the last one.
local function trim(stream, id, bytes, max_bytes, now, age)
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
