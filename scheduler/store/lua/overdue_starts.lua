#!lua flags=no-writes
-- KEYS deadlines
-- RETURNS: {id, ...}, at most 200 waiting requests whose start deadline has passed
-- INCLUDE clock
return redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, 200)
