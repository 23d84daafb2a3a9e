-- KEYS request_prefix
-- A request's fields as a table; '' stands for what is not set.
local function read_request(id)
  local v = redis.call('HMGET', request_prefix .. id, 'status', 'sid', 'priority', 'attempt', 'worker', 'gateway',
    'webhook', 'mode', 'submitted_at', 'started_at', 'ended_by', 'crashes', 'max_attempts', 'start_deadline', 'solo',
    'logged', 'keep')
  if not v[1] then return nil end
  return {
    status = v[1], sid = v[2] or '', priority = v[3], attempt = v[4], worker = v[5] or '', gateway = v[6] or '',
    webhook = v[7] or '', mode = v[8], submitted_at = v[9], started_at = v[10] or '', ended_by = v[11],
    crashes = v[12], max_attempts = v[13], start_deadline = v[14] or '', solo = v[15] or '', logged = v[16],
    keep = v[17] or '',
  }
end

-- What a worker gets to know of an attempt: one line, then the call, then the body.
local function claim_message(id, attempt, mode, submitted_at, gateway, solo, call, body)
  return 'claim ' .. id .. ' ' .. attempt .. ' ' .. mode .. ' ' .. submitted_at .. ' ' .. gateway .. ' ' .. solo
    .. ' ' .. #call .. '\n' .. call .. body
end
