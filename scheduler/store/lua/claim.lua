#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> IN_PROGRESS; IN_QUEUE -> ERROR
-- ARGV worker_id lease_ms overdue retention_ms held...
-- RETURNS: {"claim ...", ...} (see reading); "empty": parked, a later submit hands over directly; "stopped"; "gone"
-- INCLUDE claiming
-- Takes the next request for one free slot of a worker; `held` is what it knows to hold, each as "id attempt". Leases
-- that it does not know of come first, and alone: a hand-over or a reply was lost with a connection, or is still on
-- its way to the very slot that asks. A start deadline found passed ends the request here with `overdue`.
local fit = fitness()
if fit ~= 'ok' then
  redis.call('ZREM', parked, worker_id)
  return fit
end

local function unheard()
  local known, found = {}, {}
  for i = first_of_held, #ARGV do known[ARGV[i]] = true end
  for _, queue in ipairs({ queue_normal, queue_low }) do
    for _, entry in ipairs(redis.call('XPENDING', queue, group, '-', '+', 1000, worker_id)) do
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
end

if tonumber(redis.call('HGET', worker_prefix .. worker_id, 'in_flight') or '0') > #ARGV - first_of_held + 1 then
  local found = unheard()
  if #found > 0 then return found end
end
local message = claim_next()
if message then return { message } end
park()
return 'empty'
