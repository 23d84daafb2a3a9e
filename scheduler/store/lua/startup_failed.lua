#!lua flags=allow-oom
-- KEYS revision woken request_prefix
-- ARGV why token
-- RETURNS: failures in a row, 0 when there is no such revision
-- INCLUDE clock waking
-- A worker's import or setup() failed. `token` names the call: asked twice, it counts once.
if redis.call('EXISTS', revision) == 0 then return 0 end
if redis.call('HGET', revision, 'startup_token') == token then
  return tonumber(redis.call('HGET', revision, 'startup_failures'))
end
redis.call('HSET', revision, 'last_startup_error', why, 'last_startup_failure_at', now, 'startup_token', token)
local count = redis.call('HINCRBY', revision, 'startup_failures', 1)
redis.call('DEL', woken)
wake_scheduler()
return count
