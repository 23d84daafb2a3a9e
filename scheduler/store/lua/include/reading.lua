-- KEYS request_prefix
-- A request's fields as a table; '' stands for what is not set.
local FIELDS = { 'status', 'sid', 'priority', 'attempt', 'worker', 'gateway', 'webhook', 'mode', 'submitted_at',
  'started_at', 'ended_by', 'crashes', 'max_attempts', 'start_deadline', 'solo' }

local function read_request(id)
  local values = redis.call('HMGET', request_prefix .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local r = {}
  for i, name in ipairs(FIELDS) do r[name] = values[i] or '' end
  return r
end

-- What a worker gets to know of an attempt: one line, then the call, then the body.
local function claim_message(id, attempt, mode, submitted_at, gateway, solo, call, body)
  return table.concat({ 'claim', id, attempt, mode, submitted_at, gateway, solo, #call }, ' ') .. '\n' .. call .. body
end
