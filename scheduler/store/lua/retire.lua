#!lua flags=allow-oom
-- KEYS worker_prefix workers woken request_prefix
-- ARGV worker_id why
-- RETURNS: how many workers are to be replaced because of this call
-- INCLUDE waking
-- One worker, or all for an empty id: each serves on until another one is ready in its place.
local ids = worker_id ~= '' and { worker_id } or redis.call('SMEMBERS', workers)
local count = 0
for _, id in ipairs(ids) do
  local key = worker_prefix .. id
  local seen = redis.call('HMGET', key, 'state', 'stop_requested')
  if seen[1] and seen[1] ~= 'TERMINATED' and (not seen[2] or seen[2] == 'suspend' or seen[2] == 'resume') then
    redis.call('HSET', key, 'retiring', why)
    count = count + 1
  end
end
redis.call('DEL', woken)
wake_scheduler()
return count
