#!lua flags=allow-oom
-- KEYS outbox outbox_dead request_prefix
-- ARGV request_id how tries why retention_ms
-- RETURNS: 1, or 0 when it was not in the outbox
-- INCLUDE clock keeping
-- Delivered: the record now lives only as long as any other. Given up (how = dead): it stays a week for a replay,
-- or an hour for a caller who wants nothing stored.
if redis.call('ZREM', outbox, request_id) == 0 then return 0 end
local key = request_prefix .. request_id
if how == 'dead' then
  redis.call('ZADD', outbox_dead, now, request_id)
  redis.call('ZREMRANGEBYSCORE', outbox_dead, '-inf', now - 604800000)
  redis.call('PEXPIRE', outbox_dead, 604800000)
end
if redis.call('EXISTS', key) == 1 then
  redis.call('HSET', key, 'webhook_state', how, 'webhook_tries', tries, 'webhook_error', why)
  local keep = left_of(key)
  if how == 'dead' then keep = redis.call('HGET', key, 'keep') == 'brief' and 3600000 or math.max(keep, 604800000) end
  redis.call('PEXPIRE', key, keep)
end
return 1
