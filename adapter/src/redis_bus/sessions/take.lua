-- Takes the session of a client for another owner. Its value and its lifetime stay, so that it is not lost
-- if the new owner ends before it has written the session.
--
-- KEYS  session
-- ARGV  token of the new owner
-- Returns the text as it was, which is empty if there is no session.
local text = redis.call('GETRANGE', KEYS[1], 0, -1)
if text ~= '' then
  redis.call('SET', KEYS[1], ARGV[1] .. string.sub(text, #ARGV[1] + 1), 'KEEPTTL')
end
return text
