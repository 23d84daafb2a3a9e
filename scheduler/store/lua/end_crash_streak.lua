#!lua flags=allow-oom
-- KEYS revision
-- RETURNS: 1 if the revision's workers had been crashing
-- A worker of the revision has served a request.
if (tonumber(redis.call('HGET', revision, 'crash_streak')) or 0) == 0 then return 0 end
redis.call('HSET', revision, 'crash_streak', 0)
return 1
