-- KEYS leases request_prefix
-- Ids of what is leased to it. Walks the leases of the whole app: for what is rare.
local function held_by(worker_id)
  local held = {}
  for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    if redis.call('HGET', request_prefix .. id, 'worker') == worker_id then table.insert(held, id) end
  end
  return held
end
