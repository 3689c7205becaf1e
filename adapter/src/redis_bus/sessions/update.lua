-- Replaces the session of a client, or removes it, unless it is another owner's. A session that Redis has
-- lost is stored again.
--
-- KEYS  session
-- ARGV  token of the owner, lifetime in ms, text; the last two are missing if it is to be removed
-- Returns 0 if it is another owner's, else 1.
local owner = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1)
if owner ~= '' and owner ~= ARGV[1] then
  return 0
end
if ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
