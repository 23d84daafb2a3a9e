#!lua flags=allow-oom
-- KEYS apps_retired
-- ARGV name
-- RETURNS: nothing
-- INCLUDE clock
redis.call('ZADD', apps_retired, now, name)
redis.call('ZREMRANGEBYSCORE', apps_retired, '-inf', now - 172800000)
redis.call('PEXPIRE', apps_retired, 172800000)
