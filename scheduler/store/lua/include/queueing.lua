-- KEYS request_prefix queue_normal queue_low deadlines alias
-- Puts a request at the tail of its queue; its hash remembers the entry, which makes every other entry stale.
local function enqueue(id, priority, start_deadline)
  local queue = priority == 'low' and queue_low or queue_normal
  local sid = redis.call('XADD', queue, '*', 'id', id)
  if redis.call('EXISTS', alias) == 0 then redis.call('PEXPIRE', queue, 86400000) end -- the app was deleted
  redis.call('HSET', request_prefix .. id, 'status', 'IN_QUEUE', 'sid', sid)
  if start_deadline ~= '' then redis.call('ZADD', deadlines, start_deadline, id) end
  return sid
end
