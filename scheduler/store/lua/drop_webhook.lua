#!lua flags=allow-oom
-- KEYS outbox outbox_dead request_prefix
-- ARGV request_id retention_ms
-- RETURNS: 1, or 0 when no delivery was owed or given up
-- INCLUDE clock keeping
-- Nobody wants it any more: the record lives on like any other.
local key = request_prefix .. request_id
if redis.call('ZREM', outbox, request_id) + redis.call('ZREM', outbox_dead, request_id) == 0 then return 0 end
if redis.call('EXISTS', key) == 1 then
  redis.call('HSET', key, 'webhook_state', 'dropped')
  redis.call('PEXPIRE', key, left_of(key))
end
return 1
