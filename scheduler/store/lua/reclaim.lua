#!lua flags=allow-oom
-- KEYS queue_normal queue_low request_prefix
-- ARGV worker_id held...
-- RETURNS: {"claim ...", ...}: attempts leased to this worker that it does not know of
-- INCLUDE reading
-- A hand-over or a reply can be lost with a connection; the lease is still ours, so it is read again.
local known = {}
for i = first_of_held, #ARGV do known[ARGV[i]] = true end
local found = {}
for _, queue in ipairs({ queue_normal, queue_low }) do
  local entries = redis.pcall('XPENDING', queue, group, '-', '+', 1000, worker_id)
  if entries.err then entries = {} end
  for _, entry in ipairs(entries) do
    local read = redis.call('XRANGE', queue, entry[1], entry[1])
    local id = read[1] and read[1][2][2]
    local r = id and read_request(id)
    if r and r.status == 'IN_PROGRESS' and r.worker == worker_id and not known[id .. ' ' .. r.attempt] then
      local parts = redis.call('HMGET', request_prefix .. id, 'call', 'body')
      table.insert(found, claim_message(id, r.attempt, r.mode, r.submitted_at, r.gateway, r.solo, parts[1], parts[2]))
    end
  end
end
return found
