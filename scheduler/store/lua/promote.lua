#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> IN_QUEUE
-- ARGV by_epoch
-- RETURNS: how many requests came back to the queue; error STALE
-- INCLUDE clock waking queueing leading
-- KEYS delayed
-- Requests whose back-off is over go to the tail of their queue, at most 400 a call.
if stale_leader(by_epoch) then return redis.error_reply(STALE) end
local count = 0
local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 200)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, far_off, '+inf', 'LIMIT', 0, 200)) do table.insert(due, id) end
for _, id in ipairs(due) do
  redis.call('ZREM', delayed, id)
  local r = redis.call('HMGET', request_prefix .. id, 'status', 'sid', 'priority')
  if r[1] == 'IN_QUEUE' and r[2] == '' then
    enqueue(id, r[3], '')
    count = count + 1
  end
end
if count > 0 then wake_all() end
return count
