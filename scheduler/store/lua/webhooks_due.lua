#!lua flags=allow-oom
-- KEYS outbox request_prefix
-- ARGV hold_ms limit
-- RETURNS: {id, url, tries, due, ...}
-- INCLUDE clock
-- Deliveries to make now. Each is put off by hold_ms, so that no other sender takes it meanwhile and a sender that
-- dies loses nothing.
local found = {}
local due = redis.call('ZRANGEBYSCORE', outbox, '-inf', now, 'WITHSCORES', 'LIMIT', 0, tonumber(limit))
for i = 1, #due, 2 do
  local r = redis.call('HMGET', request_prefix .. due[i], 'webhook', 'webhook_tries')
  if r[1] then
    redis.call('ZADD', outbox, now + hold_ms, due[i])
    for _, value in ipairs({ due[i], r[1], r[2] or '0', due[i + 1] }) do table.insert(found, value) end
  else
    redis.call('ZREM', outbox, due[i]) -- its record has expired
  end
end
return found
