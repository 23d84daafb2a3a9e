#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> ERROR; IN_QUEUE -> CANCELLED
-- ARGV status result error_type mode limit retention_ms
-- RETURNS: how many requests ended; as many as `limit` means: call again
-- INCLUDE ending
-- Ends every waiting request (of one `mode`, or '' for all), delayed ones included.
local count = 0
local function finish_off(id)
  local r = read_request(id)
  if r and r.status == 'IN_QUEUE' and (mode == '' or r.mode == mode) then
    end_request(id, r, status, 'fail_queued', result, error_type, '')
    count = count + 1
  end
end
for _, id in ipairs(redis.call('ZRANGE', delayed, 0, tonumber(limit) - 1)) do finish_off(id) end
for _, queue in ipairs({ queue_normal, queue_low }) do
  -- in steps over the whole stream: those of the other mode stay where they are
  local after = '-'
  while count < tonumber(limit) do
    local entries = redis.call('XRANGE', queue, after, '+', 'COUNT', 500)
    for _, entry in ipairs(entries) do
      after = '(' .. entry[1]
      if count < tonumber(limit) then finish_off(entry[2][2]) end
    end
    if #entries < 500 then break end
  end
end
return count
