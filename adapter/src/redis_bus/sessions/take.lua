-- Takes the session of a client for another owner. That of a Roomcast node stays with its value and its
-- lifetime, so that it is not lost if the new owner ends before it has written it. That of a Node server, in
-- the streams dialect, is removed, as Node's servers do, because its form has no owner.
--
-- KEYS  session
-- ARGV  beginning of the new owner's sessions, beginning of all sessions of Roomcast nodes
-- Returns the text as it was, which is empty if there is no session, and how long one that was removed had to
-- live, in ms.
local text = redis.call('GETRANGE', KEYS[1], 0, -1)
if text == '' then
  return {text, 0}
end
if string.sub(text, 1, #ARGV[2]) == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[1] .. string.sub(text, #ARGV[1] + 1), 'KEEPTTL')
  return {text, 0}
end
local life = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
return {text, life}
