#!lua flags=allow-oom
-- KEYS worker_prefix workers parked leases woken request_prefix queue_normal queue_low
-- ARGV worker_id why crashed
-- RETURNS: the worker's host, or nil when there is no such record
-- INCLUDE clock holding waking crashing
-- The worker has ended; `crashed` = 1: without anybody's wish, after it was ready. What it still held counts as lost at once instead of when the lease runs out.
local key = worker_prefix .. worker_id
local host = redis.call('HGET', key, 'host')
redis.call('SREM', workers, worker_id)
redis.call('ZREM', parked, worker_id)
for _, queue in ipairs({ queue_normal, queue_low }) do redis.pcall('XGROUP', 'DELCONSUMER', queue, 'workers', worker_id) end
if not host then return nil end
if crashed == '1' then count_crash(worker_id, worker_id, why) end
redis.call('HSET', key, 'state', 'TERMINATED', 'reason', why, 'in_flight', 0, 'idle_since', '', 'ended_at', now)
redis.call('PEXPIRE', key, 3600000)
for _, id in ipairs(held_by(worker_id)) do redis.call('ZADD', leases, 'XX', now, id) end
redis.call('DEL', woken)
wake_scheduler()
return host
