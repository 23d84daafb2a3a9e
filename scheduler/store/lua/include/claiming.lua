-- KEYS queue_normal queue_low leases deadlines turns request_prefix worker_prefix alias parked
-- INCLUDE clock load ending
-- Gives the next waiting request to worker_id. Needs ARGV worker_id, lease_ms, overdue and retention_ms.

-- The consumer group is the cursor: it goes on after the last entry given out, where reading from the front would pass
-- every deleted entry again. NOACK, because the lease and the record say who holds what; a second list of it could
-- only disagree. A group lost with its stream is made anew.
local function next_entry(queue)
  local read = redis.pcall('XREADGROUP', 'GROUP', 'workers', worker_id, 'COUNT', 1, 'NOACK', 'STREAMS', queue, '>')
  if read and read.err then
    redis.call('XGROUP', 'CREATE', queue, 'workers', '0', 'MKSTREAM')
    read = redis.call('XREADGROUP', 'GROUP', 'workers', worker_id, 'COUNT', 1, 'NOACK', 'STREAMS', queue, '>')
  end
  if not read then return nil end
  local entry = read[1][2][1]
  return entry[1], entry[2][2]
end

-- The entry leaves the queue and the attempt gets its lease in one script: there is no moment in which it is in
-- neither, or in both. The worker's record is the caller's business.
local function take_from(queue)
  for _ = 1, 100 do
    local sid, id = next_entry(queue)
    if not sid then return nil end
    local key = request_prefix .. id
    local r = redis.call('HMGET', key, 'status', 'sid', 'start_deadline', 'attempt', 'mode', 'submitted_at',
      'gateway', 'solo', 'call', 'body')
    local deadline = r[3] or ''
    if r[1] ~= 'IN_QUEUE' or r[2] ~= sid then
      redis.call('XDEL', queue, sid)
    elseif deadline ~= '' and tonumber(deadline) <= now then
      end_request(id, read_request(id), 'ERROR', 'claim', overdue, 'request_timeout', 'start deadline passed')
    else
      local attempt = string.format('%d', r[4] + 1)
      redis.call('XDEL', queue, sid)
      if deadline ~= '' then redis.call('ZREM', deadlines, id) end
      redis.call('HSET', key, 'status', 'IN_PROGRESS', 'attempt', attempt, 'worker', worker_id,
        'started_at', now_text, 'sid', '')
      redis.call('ZADD', leases, now + lease_ms, id)
      redis.call('ZREM', parked, worker_id) -- it asks or finishes again if it has more slots
      return claim_message(id, attempt, r[5], r[6], r[7], r[8] or '', r[9], r[10])
    end
  end
end

-- Nothing for an app that was deleted.
local function claim_next()
  local low = redis.call('XLEN', queue_low)
  if low == 0 and redis.call('XLEN', queue_normal) == 0 then return nil end
  if redis.call('EXISTS', alias) == 0 then return nil end
  if low == 0 then return take_from(queue_normal) end
  local turn = redis.call('INCR', turns)
  if turn % 8 == 1 then redis.call('EXPIRE', turns, 86400) end
  if turn % 8 == 0 then return take_from(queue_low) or take_from(queue_normal) end
  return take_from(queue_normal) or take_from(queue_low)
end

-- Why this worker gets nothing: it is gone or was told to stop; nil if it may. A worker of an earlier revision serves
-- on until the scheduler, which knows when a newer one is ready, tells it to stop.
local function unfit(seen)
  if not seen[1] or seen[1] == 'TERMINATED' then return 'gone' end
  if seen[5] and seen[5] ~= '' then return 'stopped' end
end

local function park(seen)
  redis.call('ZADD', parked, now + 3000, worker_id)
  if seen[6] ~= lease_ms then redis.call('HSET', worker_prefix .. worker_id, 'lease_ms', lease_ms) end
end
