#!lua flags=allow-oom
-- KEYS outbox outbox_dead request_prefix
-- CHANNELS channel_outbox
-- ARGV request_id
-- RETURNS: 1 when it is (or was already) to be delivered, 0 when there is nothing to deliver
-- INCLUDE clock naming
-- Delivers a webhook afresh, with all its tries: one that was given up, or one whose receiver has lost it.
local key = request_prefix .. request_id
local r = redis.call('HMGET', key, 'status', 'webhook')
if (r[1] ~= 'COMPLETED' and r[1] ~= 'ERROR') or (r[2] or '') == '' then return 0 end
redis.call('ZREM', outbox_dead, request_id)
if not redis.call('ZSCORE', outbox, request_id) then
  redis.call('ZADD', outbox, now, request_id)
  redis.call('HSET', key, 'webhook_tries', 0, 'webhook_state', '', 'webhook_error', '')
  if redis.call('PTTL', key) < 129600000 then redis.call('PEXPIRE', key, 129600000) end
  redis.call('PUBLISH', channel_outbox, app)
end
return 1
