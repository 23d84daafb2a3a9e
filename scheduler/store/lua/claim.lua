#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> IN_PROGRESS; IN_QUEUE -> ERROR
-- ARGV worker_id lease_ms overdue retention_ms held...
-- RETURNS: {"claim ...", ...} (see reading); "empty": parked, a later submit hands over directly; "stopped"; "gone"
-- INCLUDE claiming holding
-- Takes the next request for one free slot of a worker; `held` is what it knows to hold, each as "id attempt". Leases
-- that it does not know of come first, and alone: a hand-over or a reply was lost with a connection, or is still on
-- its way to the very slot that asks. A start deadline found passed ends the request here with `overdue`.
local seen = look_at(worker_id)
local why = unfit(seen)
if why then
  redis.call('ZREM', parked, worker_id)
  return why
end

local function unheard()
  local known, found = {}, {}
  for i = first_of_held, #ARGV do known[ARGV[i]] = true end
  for _, id in ipairs(held_by(worker_id)) do
    local r = read_request(id)
    if r.status == 'IN_PROGRESS' and not known[id .. ' ' .. r.attempt] then
      local parts = redis.call('HMGET', request_prefix .. id, 'call', 'body')
      table.insert(found, claim_message(id, r.attempt, r.mode, r.submitted_at, r.gateway, r.solo, parts[1], parts[2]))
    end
  end
  return found
end

if (tonumber(seen[2]) or 0) > #ARGV - first_of_held + 1 then
  local found = unheard()
  if #found > 0 then return found end
end
local message = claim_next()
if message then
  record_load(worker_id, seen, 1, true, 0)
  return { message }
end
park(seen)
return 'empty'
