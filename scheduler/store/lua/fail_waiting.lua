#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> ERROR; IN_QUEUE -> CANCELLED
-- ARGV status result error_type mode caller limit retention_ms
-- RETURNS: how many requests ended; as many as `limit` means: call again
-- INCLUDE ending
-- Ends every waiting request (of one `mode` and one `caller`, or '' for all), delayed ones included.
local count = 0
local function is_from(id)
  for _, header in ipairs(cmsgpack.unpack(redis.call('HGET', request_prefix .. id, 'call'))[4]) do
    if header[1] == 'x-fal-caller-user-id' then return header[2] == caller end
  end
  return caller == 'anonymous' -- as outcomes.ANONYMOUS
end
local function finish_off(id)
  local r = read_request(id)
  if r and r.status == 'IN_QUEUE' and (mode == '' or r.mode == mode)
    and (caller == '' or is_from(id)) then
    end_request(id, r, status, 'fail_queued', result, error_type, '')
    count = count + 1
  end
end
for _, id in ipairs(redis.call('ZRANGE', delayed, 0, -1)) do
  if count < tonumber(limit) then finish_off(id) end
end
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
