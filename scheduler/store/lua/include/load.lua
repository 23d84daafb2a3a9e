-- KEYS worker_prefix queue_normal queue_low
-- INCLUDE clock
-- A worker's record follows what it holds, so that nobody reports load over the wire.
local function take_slot(worker_id)
  local key = worker_prefix .. worker_id
  redis.call('HINCRBY', key, 'in_flight', 1)
  redis.call('HSET', key, 'state', 'RUNNING', 'idle_since', '')
end

local function pending_of(worker_id)
  local count = 0
  for _, queue in ipairs({ queue_normal, queue_low }) do
    local entries = redis.pcall('XPENDING', queue, group, '-', '+', 1000, worker_id)
    if not entries.err then count = count + #entries end
  end
  return count
end

local function forget_consumer(worker_id)
  if pending_of(worker_id) == 0 then
    redis.pcall('XGROUP', 'DELCONSUMER', queue_normal, group, worker_id)
    redis.pcall('XGROUP', 'DELCONSUMER', queue_low, group, worker_id)
  end
end

-- The caller has acknowledged the entry already.
local function release_slot(worker_id, served)
  if not worker_id or worker_id == '' then return end
  local key = worker_prefix .. worker_id
  local seen = redis.call('HMGET', key, 'state', 'in_flight')
  if not seen[1] or seen[1] == 'TERMINATED' then return forget_consumer(worker_id) end
  local left = math.max(0, (tonumber(seen[2]) or 0) - 1)
  if served > 0 then redis.call('HINCRBY', key, 'served', served) end
  if left > 0 then
    redis.call('HSET', key, 'in_flight', left)
  elseif seen[1] == 'RUNNING' then
    redis.call('HSET', key, 'in_flight', 0, 'state', 'IDLE', 'idle_since', now)
  else
    redis.call('HSET', key, 'in_flight', 0)
  end
end
