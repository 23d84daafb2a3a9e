-- KEYS letter_prefix letters request_prefix request_logs_prefix worker_prefix
-- INCLUDE clock
-- What a queued request leaves behind that is not tried again: its input, its last attempt and what was last heard of
-- it. Call this before end_request, which empties the payload. Needs ARGV words and exit_code.

-- The oldest letters make room; what they had on disk is swept.
local function bound_letters()
  redis.call('ZREMRANGEBYSCORE', letters, '-inf', now - 604800000)
  local spare = redis.call('ZCARD', letters) - 1000
  if spare <= 0 then return end
  local popped = redis.call('ZPOPMIN', letters, spare)
  for i = 1, #popped, 2 do redis.call('DEL', letter_prefix .. popped[i]) end
end

-- The request's own last lines: what the code printed goes there, only a dying interpreter's words come from the pipes.
local function last_lines(id)
  local lines = {}
  for _, entry in ipairs(redis.call('XREVRANGE', request_logs_prefix .. id, '+', '-', 'COUNT', 20)) do
    local fields = entry[2]
    table.insert(lines, 1, { tonumber(fields[2]) or 0, fields[4], string.sub(fields[6], 1, 2000) })
  end
  return lines
end

local function keep_letter(id, r, error_type, why, crashes)
  if r.mode == 'direct' then return end -- its caller waits, and has been told
  local key, source = letter_prefix .. id, request_prefix .. id
  local input = redis.call('HMGET', source, 'call', 'body')
  redis.call('DEL', key)
  redis.call('HSET', key, 'call', input[1], 'body', input[2], 'error_type', error_type, 'error', why,
    'attempts', r.attempt, 'crashes', crashes, 'worker', r.worker,
    'host', redis.call('HGET', worker_prefix .. r.worker, 'host') or '', 'exit_code', exit_code, 'words', words,
    'log', cmsgpack.pack(last_lines(id)), 'submitted_at', r.submitted_at, 'started_at', r.started_at,
    'died_at', now_text, 'priority', r.priority, 'max_attempts', r.max_attempts, 'webhook', r.webhook,
    'keep', r.keep)
  -- a week, but not for a caller who wants nothing stored
  redis.call('PEXPIRE', key, r.keep == 'brief' and 3600000 or 604800000)
  redis.call('ZADD', letters, now, id)
  redis.call('PEXPIRE', letters, 604800000)
  bound_letters()
end
