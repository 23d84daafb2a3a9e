#!lua flags=allow-oom
-- KEYS outbox request_prefix
-- ARGV request_id tries delay_ms
-- RETURNS: 1, or 0 when it is no longer in the outbox
-- INCLUDE clock
-- A try failed: `tries` have been made by now, the next one is due after delay_ms.
if not redis.call('ZSCORE', outbox, request_id) then return 0 end
redis.call('ZADD', outbox, now + delay_ms, request_id)
local key = request_prefix .. request_id
if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'webhook_tries', tries) end
return 1
