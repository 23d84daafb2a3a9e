-- KEYS worker_prefix
-- INCLUDE clock
-- A worker's record follows what it holds, so that nobody reports load over the wire.
local function look_at(worker_id)
  return redis.call('HMGET', worker_prefix .. worker_id, 'state', 'in_flight', 'served', 'idle_since',
    'stop_requested', 'lease_ms')
end

-- `change` is how many more it holds than when it was looked at; `took` says that one of them is new.
local function record_load(worker_id, seen, change, took, served)
  local left = math.max(0, (tonumber(seen[2]) or 0) + change)
  local state, idle_since = seen[1], seen[4] or ''
  if took then
    state, idle_since = 'RUNNING', ''
  elseif left == 0 and state == 'RUNNING' then
    state, idle_since = 'IDLE', now_text
  end
  redis.call('HSET', worker_prefix .. worker_id, 'in_flight', left, 'served', (tonumber(seen[3]) or 0) + served,
    'state', state, 'idle_since', idle_since)
end
