#!lua flags=allow-oom
-- MOVES: IN_PROGRESS -> COMPLETED; IN_PROGRESS -> ERROR; IN_QUEUE -> IN_PROGRESS; IN_QUEUE -> ERROR
-- ARGV request_id attempt worker_id status result error_type retention_ms claim_more lease_ms overdue bytes
-- RETURNS: {1 kept or 0 refused, "claim ..." | "empty" | "stopped" | "gone" | ""}
-- INCLUDE claiming
-- Ends an attempt and, with claim_more = 1, takes the worker's next request. Asked twice, it answers the same.
local kept = 0
local r = read_request(request_id)
if r and r.attempt == attempt and r.worker == worker_id then
  if r.status == 'IN_PROGRESS' then
    end_request(request_id, r, status, 'finish', result, error_type, '', tonumber(bytes))
    kept = 1
  elseif r.ended_by == 'finish' then
    return { 1, '' } -- the first answer was lost, and what it claimed with it: claim looks for that
  end
end
local seen = look_at(worker_id)
local why = unfit(seen)
local message
if claim_more == '1' and not why then message = claim_next() end
if why ~= 'gone' and (kept == 1 or message) then
  record_load(worker_id, seen, (message and 1 or 0) - kept, message ~= nil, kept)
end
if claim_more ~= '1' then return { kept, '' } end
if why or message then return { kept, why or message } end
park(seen)
return { kept, 'empty' }
