#!lua flags=allow-oom
-- KEYS outbox outbox_dead request_prefix
-- ARGV request_id how tries why retention_ms
-- RETURNS: 1, or 0 when it was not in the outbox
-- INCLUDE clock keeping
-- Delivered: the record now lives only as long as any other. Given up (how = dead): it stays a week for a replay.
if redis.call('ZREM', outbox, request_id) == 0 then return 0 end
local key = request_prefix .. request_id
local week = 604800000
if how == 'dead' then
  redis.call('ZADD', outbox_dead, now, request_id)
  redis.call('ZREMRANGEBYSCORE', outbox_dead, '-inf', now - week)
  redis.call('PEXPIRE', outbox_dead, week)
end
if redis.call('EXISTS', key) == 1 then
  redis.call('HSET', key, 'webhook_state', how, 'webhook_tries', tries, 'webhook_error', why)
  redis.call('PEXPIRE', key, how == 'dead' and week or left_of(key))
end
return 1
