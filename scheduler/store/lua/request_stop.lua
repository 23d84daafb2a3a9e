#!lua flags=allow-oom
-- KEYS worker_prefix parked
-- CHANNELS channel_worker_prefix
-- ARGV worker_id how why
-- RETURNS: 1 if it was (or had been) asked, 0 if it is gone or, with how = idle or suspend, has something to do
-- INCLUDE holding
-- From here on the worker gets no request any more; after `suspend`, until resume_worker.
local key = worker_prefix .. worker_id
local seen = redis.call('HMGET', key, 'state', 'stop_requested')
if not seen[1] or seen[1] == 'TERMINATED' then return 0 end
if (how == 'idle' or how == 'suspend') and #held_by(worker_id) > 0 then return 0 end
local wanted = how == 'idle' and 'drain' or how
if seen[2] == 'kill' or (seen[2] and how == 'suspend') then wanted = seen[2] end
redis.call('HSET', key, 'stop_requested', wanted, 'reason', why)
redis.call('ZREM', parked, worker_id)
redis.call('PUBLISH', channel_worker_prefix .. worker_id, 'stop ' .. wanted)
return 1
