#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> ERROR
-- ARGV request_id result error_type retention_ms
-- RETURNS: 1 if this verb ended it, else 0
-- INCLUDE ending
-- Ends a waiting request that will never start.
local r = read_request(request_id)
if not r then return 0 end
if r.status ~= 'IN_QUEUE' then return r.ended_by == 'fail_queued' and 1 or 0 end
end_request(request_id, r, 'ERROR', 'fail_queued', result, error_type, '')
return 1
