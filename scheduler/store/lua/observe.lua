#!lua flags=allow-oom
-- KEYS queue_normal queue_low leases delayed workers worker_prefix woken
-- ARGV by_epoch
-- RETURNS: {now, queued, delayed, in progress, oldest entry's ms or -1, next delayed due or -1, {worker fields}, ...}; error STALE
-- INCLUDE clock leading
-- One look at demand and supply; the next change wakes the scheduler again. A leader's look already refuses what an
-- earlier leader still says: it could place a worker that this look has not seen.
if stale_leader(by_epoch) then return redis.error_reply(STALE) end
redis.call('DEL', woken)
local function oldest(queue)
  local entry = redis.call('XRANGE', queue, '-', '+', 'COUNT', 1)[1]
  return entry and tonumber(string.match(entry[1], '^%d+'))
end
local in_progress = redis.call('ZCARD', leases)
local queued = redis.call('XLEN', queue_normal) + redis.call('XLEN', queue_low)
local first = -1
if queued > 0 then
  local normal, low = oldest(queue_normal), oldest(queue_low)
  first = math.min(normal or low or -1, low or normal or -1)
end
local due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2] or -1
local answer = { now, queued, redis.call('ZCARD', delayed), in_progress, first, tonumber(due) }
for _, id in ipairs(redis.call('SMEMBERS', workers)) do
  local fields = redis.call('HGETALL', worker_prefix .. id)
  if #fields == 0 then
    redis.call('SREM', workers, id)
  else
    table.insert(answer, fields)
  end
end
return answer
