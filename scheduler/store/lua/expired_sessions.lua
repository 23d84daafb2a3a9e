#!lua flags=no-writes
-- KEYS sessions
-- RETURNS: {app, ...}
-- INCLUDE clock
return redis.call('ZRANGEBYSCORE', sessions, '-inf', now)
