#!lua flags=allow-oom
-- KEYS leader leader_epoch
-- ARGV scheduler_id ttl_ms
-- RETURNS: the epoch, or 0 when another one leads
local holder = redis.call('GET', leader)
if holder == scheduler_id then
  redis.call('PEXPIRE', leader, ttl_ms)
  return tonumber(redis.call('GET', leader_epoch))
end
if holder then return 0 end
redis.call('SET', leader, scheduler_id, 'PX', ttl_ms)
return redis.call('INCR', leader_epoch)
