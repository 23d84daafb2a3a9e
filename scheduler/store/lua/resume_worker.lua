#!lua flags=allow-oom
-- KEYS worker_prefix epoch
-- CHANNELS channel_worker_prefix
-- ARGV worker_id by_epoch
-- RETURNS: 1 if it was (or had been) told to come back, 0 if it is not suspended; error STALE
-- INCLUDE leading
-- From here on it holds its cards again; requests come once it says that it is ready.
if stale_leader(by_epoch) then return redis.error_reply(STALE) end
local key = worker_prefix .. worker_id
local seen = redis.call('HMGET', key, 'state', 'stop_requested')
if seen[2] == 'resume' then return 1 end
if seen[1] ~= 'SUSPENDED' or seen[2] ~= 'suspend' then return 0 end
redis.call('HSET', key, 'state', 'SETUP', 'stop_requested', 'resume', 'stages', '{}')
redis.call('PUBLISH', channel_worker_prefix .. worker_id, 'stop resume')
return 1
