#!lua flags=allow-oom
-- KEYS leases request_prefix
-- ARGV worker_id lease_ms held...
-- RETURNS: {id, attempt, id, attempt, ...} of those that must stop
-- INCLUDE clock
-- Renews the leases of a worker: `held` is id, attempt, id, attempt, ...
local lost = {}
for i = first_of_held, #ARGV, 2 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  local r = redis.call('HMGET', request_prefix .. id, 'status', 'attempt', 'worker')
  if r[1] == 'IN_PROGRESS' and r[2] == attempt and r[3] == worker_id then
    redis.call('ZADD', leases, 'XX', now + lease_ms, id)
  else
    table.insert(lost, id)
    table.insert(lost, attempt)
  end
end
return lost
