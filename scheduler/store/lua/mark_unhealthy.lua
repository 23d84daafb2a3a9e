#!lua flags=allow-oom
-- KEYS worker_prefix parked woken request_prefix
-- ARGV worker_id why
-- RETURNS: 1, or 0 when it is gone or was told to stop
-- INCLUDE clock waking crashing
-- A worker fails its health check: nothing is handed to it any more, another one takes its place before it goes, and
-- its revision is held back if that is no better. A worker is no single request that may be poison: one is enough.
local key = worker_prefix .. worker_id
local seen = redis.call('HMGET', key, 'state', 'stop_requested')
if not seen[1] or seen[1] == 'TERMINATED' or seen[2] then return 0 end
redis.call('HSET', key, 'retiring', why, 'unhealthy', '1')
redis.call('ZREM', parked, worker_id)
count_crash(worker_id, worker_id, why, true)
redis.call('DEL', woken)
wake_scheduler()
return 1
