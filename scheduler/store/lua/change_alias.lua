#!lua flags=allow-oom
-- KEYS alias woken request_prefix
-- ARGV field value
-- RETURNS: 1, or 0 when there is no such app
-- INCLUDE waking
if redis.call('EXISTS', alias) == 0 then return 0 end
redis.call('HSET', alias, field, value)
wake_scheduler()
return 1
