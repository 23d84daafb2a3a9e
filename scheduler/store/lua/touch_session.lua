#!lua flags=allow-oom
-- KEYS sessions
-- ARGV name ttl_ms
-- RETURNS: nothing
-- INCLUDE clock
redis.call('ZADD', sessions, now + ttl_ms, name)
