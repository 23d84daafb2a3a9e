#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> ERROR; IN_QUEUE -> CANCELLED
-- ARGV status result error_type mode caller place after limit retention_ms
-- RETURNS: {how many requests ended, where the next call goes on; '' at the end of the place}
-- INCLUDE ending
-- Ends waiting requests (of one `mode` and one `caller`, or '' for all) of one `place`: 'delayed', 'normal' or 'low'.
-- Looks at `limit` of them, so that a long queue keeps nobody waiting, and at none twice.
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
if place == 'delayed' then
  -- by rank: those that have ended are no longer there
  local first = tonumber(after)
  local ids = redis.call('ZRANGE', delayed, first, first + limit - 1)
  for _, id in ipairs(ids) do finish_off(id) end
  return { count, #ids < tonumber(limit) and '' or string.format('%.0f', first + #ids - count) }
end
local entries = redis.call('XRANGE', place == 'low' and queue_low or queue_normal, after, '+', 'COUNT', limit)
for _, entry in ipairs(entries) do finish_off(entry[2][2]) end
return { count, #entries < tonumber(limit) and '' or '(' .. entries[#entries][1] }
