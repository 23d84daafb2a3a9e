#!lua flags=allow-oom
-- MOVES: IN_PROGRESS -> COMPLETED; IN_PROGRESS -> ERROR; IN_QUEUE -> IN_PROGRESS; IN_QUEUE -> ERROR
-- ARGV request_id attempt worker_id status result error_type retention_ms claim_more lease_ms overdue
-- RETURNS: {1 kept or 0 refused, "claim ..." | "empty" | "stopped" | "gone" | ""}
-- INCLUDE claiming
-- Ends an attempt and, with claim_more = 1, takes the worker's next request. Asked twice, it answers the same.
local kept = 0
local r = read_request(request_id)
if r and r.attempt == attempt and r.worker == worker_id then
  if r.status == 'IN_PROGRESS' then
    end_request(request_id, r, status, 'finish', result, error_type, '', 1)
    kept = 1
  elseif r.ended_by == 'finish' then
    return { 1, '' } -- the first answer was lost, and what it claimed with it: claim looks for that
  end
end
if claim_more ~= '1' then return { kept, '' } end
local fit = fitness()
if fit ~= 'ok' then return { kept, fit } end
local message = claim_next()
if message then return { kept, message } end
park()
return { kept, 'empty' }
