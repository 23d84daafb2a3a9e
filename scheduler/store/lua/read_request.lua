#!lua flags=no-writes
-- KEYS request_prefix queue_normal queue_low
-- ARGV request_id
-- RETURNS: nil, or {status, mode, attempt, submitted_at, started_at, finished_at, result, error, error_type, worker, webhook, requests ahead or -1}
-- The ahead count is exact up to 1000 requests; beyond that it is an upper bound.
local r = redis.call('HMGET', request_prefix .. request_id, 'status', 'mode', 'attempt', 'submitted_at', 'started_at',
  'finished_at', 'result', 'error', 'error_type', 'worker', 'webhook', 'sid', 'priority')
if not r[1] then return nil end

local function waiting_up_to(queue, last)
  return #redis.call('XRANGE', queue, '-', last, 'COUNT', 1001)
end

local ahead = -1
if r[1] == 'IN_QUEUE' then
  local waiting = redis.call('XLEN', queue_normal) + redis.call('XLEN', queue_low)
  ahead = waiting
  if r[12] and r[12] ~= '' then
    local low = r[13] == 'low'
    local own = waiting_up_to(low and queue_low or queue_normal, '(' .. r[12])
    if own <= 1000 then
      ahead = own
      if low then ahead = ahead + waiting_up_to(queue_normal, '+') end
    end
    ahead = math.max(0, math.min(ahead, waiting - 1))
  end
end
local answer = {}
for i = 1, 11 do answer[i] = r[i] or '' end
answer[12] = ahead
return answer
