#!lua flags=allow-oom
-- KEYS alias queue_normal queue_low parked revisions revision_prefix workers logs woken request_prefix api_key
-- RETURNS: 1 if the name existed
-- INCLUDE waking
-- Takes the name away, and the app's own API key; what belonged to it expires. Requests in progress may still end:
-- their keys stay.
local existed = redis.call('DEL', alias)
redis.call('DEL', api_key)
for _, key in ipairs({ queue_normal, queue_low, parked, revisions, workers }) do redis.call('PEXPIRE', key, 86400000) end
for _, name in ipairs(redis.call('ZRANGE', revisions, 0, -1)) do
  redis.call('PEXPIRE', revision_prefix .. name, 86400000)
end
redis.call('PEXPIRE', logs, 86400000)
wake_all()
return existed
