#!lua flags=allow-oom
-- KEYS worker_prefix woken request_prefix
-- CHANNELS channel_wake channel_work_prefix
-- ARGV worker_id in_flight
-- RETURNS: "gone", what stop was asked for, or ""
-- INCLUDE clock holding waking
-- A worker's sign of life. Its load is counted afresh from what is leased to it, so that no error adds up. What it runs
-- beyond that is left over from requests that have ended without it, and takes up its slots all the same.
local key = worker_prefix .. worker_id
local seen = redis.call('HMGET', key, 'state', 'stop_requested', 'leftover')
if not seen[1] or seen[1] == 'TERMINATED' then return 'gone' end
local held = #held_by(worker_id)
local leftover = math.max(0, tonumber(in_flight) - held)
redis.call('HSET', key, 'beat_at', now, 'in_flight', held, 'leftover', leftover)
if leftover ~= (tonumber(seen[3]) or 0) then wake_scheduler() end
if held == 0 and seen[1] == 'RUNNING' then
  redis.call('HSET', key, 'state', 'IDLE', 'idle_since', now)
elseif held > 0 and seen[1] == 'IDLE' then
  redis.call('HSET', key, 'state', 'RUNNING', 'idle_since', '')
end
redis.call('PEXPIRE', key, 86400000)
return seen[2] or ''
