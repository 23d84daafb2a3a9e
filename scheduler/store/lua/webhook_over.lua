#!lua flags=allow-oom
-- KEYS outbox outbox_dead request_prefix
-- ARGV request_id how retention_ms
-- RETURNS: 1, or 0 when it was not in the outbox
-- INCLUDE clock
-- Delivered: the record now lives only as long as any other. Given up (how = dead): it stays a week for a replay.
if redis.call('ZREM', outbox, request_id) == 0 then return 0 end
local key = request_prefix .. request_id
local finished = tonumber(redis.call('HGET', key, 'finished_at') or '0')
local keep = math.max(60000, finished + retention_ms - now)
if how == 'dead' then
  keep = 604800000
  redis.call('ZADD', outbox_dead, now, request_id)
  redis.call('ZREMRANGEBYSCORE', outbox_dead, '-inf', now - keep)
  redis.call('PEXPIRE', outbox_dead, keep)
end
if redis.call('EXISTS', key) == 1 then
  redis.call('HSET', key, 'webhook_state', how)
  redis.call('PEXPIRE', key, keep)
end
return 1
