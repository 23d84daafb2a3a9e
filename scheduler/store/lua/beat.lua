#!lua flags=allow-oom
-- KEYS worker_prefix
-- ARGV worker_id
-- RETURNS: "gone", what stop was asked for, or ""
-- INCLUDE clock holding
-- A worker's sign of life. Its load is counted afresh from what is leased to it, so that no error adds up.
local key = worker_prefix .. worker_id
local seen = redis.call('HMGET', key, 'state', 'stop_requested')
if not seen[1] or seen[1] == 'TERMINATED' then return 'gone' end
local held = #held_by(worker_id)
redis.call('HSET', key, 'beat_at', now, 'in_flight', held)
if held == 0 and seen[1] == 'RUNNING' then
  redis.call('HSET', key, 'state', 'IDLE', 'idle_since', now)
elseif held > 0 and seen[1] == 'IDLE' then
  redis.call('HSET', key, 'state', 'RUNNING', 'idle_since', '')
end
redis.call('PEXPIRE', key, 86400000)
return seen[2] or ''
