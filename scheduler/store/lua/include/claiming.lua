-- KEYS queue_normal queue_low leases deadlines turns request_prefix worker_prefix alias parked
-- INCLUDE clock load ending
-- Gives the next waiting request to worker_id. Needs ARGV worker_id, lease_ms, overdue and retention_ms.

local function start_attempt(id, attempt, worker, lease)
  redis.call('HSET', request_prefix .. id, 'status', 'IN_PROGRESS', 'attempt', attempt, 'worker', worker,
    'started_at', now)
  redis.call('ZADD', leases, now + lease, id)
  take_slot(worker)
end

local function waiting_count()
  return redis.call('XLEN', queue_normal) + redis.call('XLEN', queue_low) - redis.call('ZCARD', leases)
end

-- The entry is delivered and marked in one script: there is no moment in which it is one but not the other.
local function take_from(queue)
  for _ = 1, 100 do
    local read = redis.call('XREADGROUP', 'GROUP', group, worker_id, 'COUNT', 1, 'STREAMS', queue, '>')
    if not read then return nil end
    local sid, id = read[1][2][1][1], read[1][2][1][2][2]
    local r = read_request(id)
    if not r or r.status ~= 'IN_QUEUE' or r.sid ~= sid then
      redis.call('XACK', queue, group, sid)
      redis.call('XDEL', queue, sid)
    elseif r.start_deadline ~= '' and tonumber(r.start_deadline) <= now then
      end_request(id, r, 'ERROR', 'claim', overdue, 'startup_timeout', 'start deadline passed', 0)
    else
      local attempt = (tonumber(r.attempt) or 0) + 1
      if r.start_deadline ~= '' then redis.call('ZREM', deadlines, id) end
      start_attempt(id, attempt, worker_id, lease_ms)
      redis.call('ZREM', parked, worker_id) -- it asks or finishes again if it has more slots
      local parts = redis.call('HMGET', request_prefix .. id, 'call', 'body')
      return claim_message(id, attempt, r.mode, r.submitted_at, r.gateway, r.solo, parts[1], parts[2])
    end
  end
end

local function claim_next()
  if waiting_count() <= 0 then return nil end
  local first, second = queue_normal, queue_low
  if redis.call('XLEN', queue_low) > 0 then
    if redis.call('INCR', turns) % 8 == 0 then first, second = second, first end
    redis.call('EXPIRE', turns, 86400)
  end
  return take_from(first) or take_from(second)
end

-- 'ok', or why this worker gets nothing: it is gone, was told to stop, or the app was deleted. A worker of an earlier
-- revision serves on until the scheduler, which knows when a newer one is ready, tells it to stop.
local function fitness()
  local seen = redis.call('HMGET', worker_prefix .. worker_id, 'state', 'stop_requested')
  if not seen[1] or seen[1] == 'TERMINATED' then return 'gone' end
  if seen[2] and seen[2] ~= '' then return 'stopped' end
  if redis.call('EXISTS', alias) == 0 then return 'stopped' end
  return 'ok'
end

local function park()
  redis.call('ZADD', parked, now + 3000, worker_id)
  redis.call('PEXPIRE', parked, 10000)
  redis.call('HSET', worker_prefix .. worker_id, 'lease_ms', lease_ms)
end
