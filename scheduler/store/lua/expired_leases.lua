#!lua flags=no-writes
-- KEYS leases request_prefix
-- RETURNS: {id, attempt, worker, ...}, at most 400 requests whose lease has run out
-- INCLUDE clock
local found = {}
local over = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 200)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, far_off, '+inf', 'LIMIT', 0, 200)) do table.insert(over, id) end
for _, id in ipairs(over) do
  local r = redis.call('HMGET', request_prefix .. id, 'attempt', 'worker')
  if r[1] then
    table.insert(found, id)
    table.insert(found, r[1])
    table.insert(found, r[2] or '')
  end
end
return found
