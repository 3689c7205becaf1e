-- Replaces the session of a client, or removes it, if it is still the owner's.
--
-- KEYS  session
-- ARGV  token of the owner, lifetime in ms, text; the last two are missing if it is to be removed
-- Returns 1 if it was the owner's.
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then
  return 0
end
if ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
