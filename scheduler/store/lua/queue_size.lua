#!lua flags=no-writes
-- KEYS queue_normal queue_low delayed
-- RETURNS: waiting requests, delayed ones included
return redis.call('XLEN', queue_normal) + redis.call('XLEN', queue_low) + redis.call('ZCARD', delayed)
