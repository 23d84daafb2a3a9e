#!lua flags=no-writes
-- KEYS leases request_prefix
-- RETURNS: {id, attempt, worker, ...}, at most 200 requests whose lease has run out
-- INCLUDE clock
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 200)) do
  local r = redis.call('HMGET', request_prefix .. id, 'attempt', 'worker')
  if r[1] then
    table.insert(found, id)
    table.insert(found, r[1])
    table.insert(found, r[2] or '')
  end
end
return found
