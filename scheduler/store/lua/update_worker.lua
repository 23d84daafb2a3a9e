#!lua flags=allow-oom
-- KEYS worker_prefix parked woken request_prefix
-- ARGV worker_id state ready fields...
-- RETURNS: 1, or 0 when the record is gone
-- INCLUDE clock waking
-- The supervisor tells how far it is. `ready` = 1: the runner takes requests from now on.
local key = worker_prefix .. worker_id
local before = redis.call('HGET', key, 'state')
if not before or before == 'TERMINATED' then return 0 end
redis.call('HSET', key, 'beat_at', now)
for i = first_of_fields, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
local after = state
if ready == '1' then
  redis.call('HSET', key, 'ready_at', now, 'idle_since', now)
  if redis.call('HGET', key, 'stop_requested') == 'resume' then redis.call('HDEL', key, 'stop_requested', 'reason') end
  if after == '' then after = 'IDLE' end
end
if after ~= '' and after ~= before then
  redis.call('HSET', key, 'state', after)
  if after == 'DRAINING' then redis.call('ZREM', parked, worker_id) end
  redis.call('DEL', woken)
  wake_scheduler()
end
return 1
