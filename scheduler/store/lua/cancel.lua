#!lua flags=allow-oom
-- MOVES: IN_QUEUE -> CANCELLED; IN_PROGRESS -> CANCELLED
-- CHANNELS channel_worker_prefix
-- ARGV request_id result error_type token retention_ms
-- RETURNS: "cancelled_queued"; "cancelled_running"; "already_completed"; "not_found"
-- INCLUDE ending releasing
-- Final at once; a worker that is running it is told to stop. `token` names the call: asked twice, it answers the same.
local r = read_request(request_id)
if not r then return 'not_found' end
local key = request_prefix .. request_id
if r.status ~= 'IN_QUEUE' and r.status ~= 'IN_PROGRESS' then
  local by = redis.call('HMGET', key, 'cancel_token', 'cancel_answer')
  return by[1] == token and by[2] or 'already_completed'
end
local answer = r.status == 'IN_QUEUE' and 'cancelled_queued' or 'cancelled_running'
end_request(request_id, r, 'CANCELLED', 'cancel', result, error_type, 'cancelled')
if r.status == 'IN_PROGRESS' then release_slot(r.worker) end
redis.call('HSET', key, 'cancel_token', token, 'cancel_answer', answer)
if answer == 'cancelled_running' then
  redis.call('PUBLISH', channel_worker_prefix .. r.worker, 'cancel ' .. request_id)
end
return answer
