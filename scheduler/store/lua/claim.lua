#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> IN_PROGRESS; IN_QUEUE -> ERROR
-- ARGV worker_id lease_ms overdue retention_ms
-- RETURNS: "claim ..." (see claiming); "empty": parked, a later submit hands over directly; "stopped"; "gone"
-- INCLUDE claiming
-- Takes the next request for a worker; a start deadline found passed ends the request here with `overdue`.
local fit = fitness()
if fit ~= 'ok' then
  redis.call('ZREM', parked, worker_id)
  return fit
end
local message = claim_next()
if message then return message end
park()
return 'empty'
