#!lua flags=allow-oom
-- KEYS worker_prefix workers parked queue_normal queue_low leases woken request_prefix
-- ARGV worker_id why
-- RETURNS: the worker's host, or nil when there is no such record
-- INCLUDE clock load waking
-- The worker has ended. What it still held counts as lost at once instead of when the lease runs out.
local key = worker_prefix .. worker_id
local host = redis.call('HGET', key, 'host')
redis.call('SREM', workers, worker_id)
redis.call('ZREM', parked, worker_id)
if not host then return nil end
redis.call('HSET', key, 'state', 'TERMINATED', 'reason', why, 'in_flight', 0, 'idle_since', '', 'ended_at', now)
redis.call('PEXPIRE', key, 3600000)
for _, queue in ipairs({ queue_normal, queue_low }) do
  local entries = redis.pcall('XPENDING', queue, group, '-', '+', 1000, worker_id)
  if entries.err then entries = {} end
  for _, entry in ipairs(entries) do
    local read = redis.call('XRANGE', queue, entry[1], entry[1])
    if read[1] then redis.call('ZADD', leases, 'XX', now, read[1][2][2]) end
  end
end
forget_consumer(worker_id)
redis.call('DEL', woken)
wake_scheduler()
return host
