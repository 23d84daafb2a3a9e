#!lua
-- MOVES: none -> IN_QUEUE; none -> IN_PROGRESS
-- KEYS alias request_prefix queue_normal queue_low leases deadlines parked worker_prefix idempotency_prefix
-- CHANNELS channel_worker_prefix
-- ARGV request_id mode priority call body gateway webhook max_attempts start_ms max_queue cap idempotency_key fingerprint keep
-- RETURNS: {request id, requests ahead, 1 if it was known already}
-- INCLUDE clock reading waking
-- Stores a request. With a worker parked and nobody waiting, it is claimed for that worker in the same breath: the
-- lease is written here, so a worker that never gets the message loses it like any other. No allow-oom: new requests
-- are what is refused first when memory runs out.
local key = request_prefix .. request_id
local ahead = redis.call('XLEN', queue_normal) + redis.call('XLEN', queue_low)

if redis.call('EXISTS', key) == 1 then return { request_id, ahead, 1 } end
if idempotency_key ~= '' then
  local known = redis.call('GET', idempotency_prefix .. idempotency_key)
  if known then
    local id, print = string.match(known, '^(%S+) (%S+)$')
    if print ~= fingerprint then return redis.error_reply('CONFLICT this key was used with another body') end
    return { id, ahead, 1 }
  end
end
local revision = redis.call('HGET', alias, 'revision')
if not revision then return redis.error_reply('NOTFOUND no such app') end
if ahead >= tonumber(cap) or (max_queue ~= '' and ahead >= tonumber(max_queue)) then
  return redis.error_reply('QUEUEFULL ' .. ahead .. ' requests are waiting')
end

local function hand_to(id, w)
  if (w[2] and w[2] ~= '') or not w[3] or w[4] == 'TERMINATED' then return false end
  local message = claim_message(request_id, 1, mode, now_text, gateway, '', call, body)
  -- nobody hears it: the supervisor is gone, so the next one gets it
  return redis.call('PUBLISH', channel_worker_prefix .. id, message) > 0
end

-- Workers of the current revision first: those of an earlier one serve until one of its own is ready.
local function hand_off()
  if ahead > 0 then return nil end
  local earlier, worker, w = nil, nil, nil
  for _ = 1, 5 do
    local last = redis.call('ZPOPMAX', parked)
    local id = last[1]
    if not id or tonumber(last[2]) < now then break end
    w = redis.call('HMGET', worker_prefix .. id, 'revision', 'stop_requested', 'lease_ms', 'state', 'in_flight')
    if w[1] ~= revision then
      earlier = earlier or {}
      table.insert(earlier, { id, last[2], w })
    elseif hand_to(id, w) then
      worker = id
      break
    end
  end
  for _, one in ipairs(earlier or {}) do
    if worker then
      redis.call('ZADD', parked, one[2], one[1])
    elseif hand_to(one[1], one[3]) then
      worker, w = one[1], one[3]
    end
  end
  return worker, w
end

local deadline = ''
if start_ms ~= '' then deadline = string.format('%.0f', now + start_ms) end
local worker, w = hand_off()
if worker then
  -- what is claimed is in no queue: its lease is what keeps it from being lost
  redis.call('HSET', key, 'status', 'IN_PROGRESS', 'attempt', 1, 'worker', worker, 'started_at', now_text, 'mode', mode,
    'priority', priority, 'call', call, 'body', body, 'gateway', gateway, 'max_attempts', max_attempts,
    'submitted_at', now_text)
  redis.call('ZADD', leases, now + w[3], request_id)
  redis.call('HSET', worker_prefix .. worker, 'in_flight', (tonumber(w[5]) or 0) + 1, 'state', 'RUNNING',
    'idle_since', '')
else
  local sid = redis.call('XADD', priority == 'low' and queue_low or queue_normal, '*', 'id', request_id)
  redis.call('HSET', key, 'status', 'IN_QUEUE', 'attempt', 0, 'mode', mode, 'priority', priority, 'sid', sid,
    'call', call, 'body', body, 'gateway', gateway, 'max_attempts', max_attempts, 'submitted_at', now_text)
  if deadline ~= '' then redis.call('ZADD', deadlines, deadline, request_id) end
  if ahead > 0 and redis.call('ZCARD', parked) > 0 then
    redis.call('PUBLISH', channel_work_prefix .. app, '')
  end
  wake_scheduler()
end
if webhook ~= '' or deadline ~= '' then
  redis.call('HSET', key, 'webhook', webhook, 'start_deadline', deadline)
end
if keep ~= '' then redis.call('HSET', key, 'keep', keep) end
if idempotency_key ~= '' then
  redis.call('SET', idempotency_prefix .. idempotency_key, request_id .. ' ' .. fingerprint, 'PX', 86400000)
end
return { request_id, ahead, 0 }
