#!lua
-- KEYS alias queue_normal queue_low revisions workers request_prefix woken
-- ARGV revision auth scaling ephemeral default_auth default_scaling
-- RETURNS: the alias' fields
-- INCLUDE clock waking
-- Creates an app's name or moves it to another revision; auth and scaling stay as they are unless given.
redis.call('HSETNX', alias, 'created_at', now)
redis.call('HSETNX', alias, 'auth', default_auth)
redis.call('HSETNX', alias, 'scaling', default_scaling)
redis.call('HSET', alias, 'revision', revision, 'ephemeral', ephemeral)
if auth ~= '' then redis.call('HSET', alias, 'auth', auth) end
if scaling ~= '' then redis.call('HSET', alias, 'scaling', scaling) end
for _, queue in ipairs({ queue_normal, queue_low }) do
  redis.call('PERSIST', queue)
end
redis.call('PERSIST', revisions)
redis.call('PERSIST', workers)
redis.call('DEL', woken)
wake_all()
return redis.call('HGETALL', alias)
