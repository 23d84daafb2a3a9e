#!lua flags=allow-oom
-- KEYS worker_prefix workers epoch
-- ARGV worker_id by_epoch fields...
-- RETURNS: nothing; error STALE
-- INCLUDE clock leading
-- Records a worker that a host shall start.
if stale_leader(by_epoch) then return redis.error_reply(STALE) end
local fields = {}
for i = first_of_fields, #ARGV do table.insert(fields, ARGV[i]) end
local key = worker_prefix .. worker_id
redis.call('HSETNX', key, 'created_at', now)
redis.call('HSET', key, unpack(fields))
redis.call('PEXPIRE', key, 86400000)
redis.call('SADD', workers, worker_id)
