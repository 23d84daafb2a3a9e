#!lua flags=allow-oom
-- KEYS leader
-- ARGV scheduler_id
-- RETURNS: 1 if it led
if redis.call('GET', leader) == scheduler_id then return redis.call('DEL', leader) end
return 0
