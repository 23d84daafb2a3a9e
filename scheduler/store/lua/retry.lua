#!lua flags=allow-oom
-- MOVES: IN_PROGRESS -> IN_QUEUE; IN_PROGRESS -> ERROR
-- ARGV request_id attempt worker_id by_epoch why crashed suspects delay_ms fallback fallback_type poison retention_ms words exit_code condition budget faulted_on unstarted
-- RETURNS: "requeued"; "failed"; "superseded"; "alive"; error STALE
-- INCLUDE ending releasing queueing leading waking lettering crashing
-- An attempt ended without an answer. The supervisor of the worker says so itself (by_epoch = ''); the leader says so
-- when the lease has run out. A crash with several requests in flight accuses each of them: they run again alone, and
-- only a crash alone counts. Where a GPU failed, the first time accuses the GPU, and a second one elsewhere the
-- request. Retries are counted by their condition, each against a budget of its own. What no runner was told of
-- (unstarted = 1) costs no attempt, and of a direct call nothing has happened yet.
if stale_leader(by_epoch) then return redis.error_reply(STALE) end
local r = read_request(request_id)
if not r or r.attempt ~= attempt or r.worker ~= worker_id then return 'superseded' end
if r.status == 'IN_QUEUE' then return 'requeued' end -- asked twice
if r.status ~= 'IN_PROGRESS' then return r.ended_by == 'retry' and 'failed' or 'superseded' end
if by_epoch ~= '' then
  local lease = redis.call('ZSCORE', leases, request_id)
  if lease and tonumber(lease) > now and tonumber(lease) < far_off then return 'alive' end
end

release_slot(worker_id)
local key = request_prefix .. request_id
local crashes = tonumber(r.crashes) or 0
local accused = crashed == '1'
if accused and faulted_on ~= '' then
  local first = redis.call('HGET', key, 'faulted_on')
  if not first then redis.call('HSET', key, 'faulted_on', faulted_on) end
  accused = first and first ~= faulted_on
end
if accused then
  count_crash(worker_id, request_id, why)
  if tonumber(suspects) > 1 and r.solo ~= '1' then
    redis.call('HSET', key, 'solo', '1')
  else
    crashes = redis.call('HINCRBY', key, 'crashes', 1)
  end
end
local used_up = r.mode == 'direct' or tonumber(r.attempt) >= tonumber(r.max_attempts)
if unstarted == '1' then
  used_up = false
  redis.call('HINCRBY', key, 'max_attempts', 1)
end
if budget ~= '' and redis.call('HINCRBY', key, 'retried_' .. condition, 1) > tonumber(budget) then used_up = true end
if used_up or crashes >= 3 then
  keep_letter(request_id, r, crashes >= 3 and 'poison_request' or fallback_type, why, crashes)
  if crashes >= 3 and r.mode ~= 'direct' then
    end_request(request_id, r, 'ERROR', 'retry', poison, 'poison_request', why)
  else
    end_request(request_id, r, 'ERROR', 'retry', fallback, fallback_type, why)
  end
  return 'failed'
end
leave_queue(request_id, r)
redis.call('HSET', key, 'error', why)
if tonumber(delay_ms) > 0 then
  redis.call('HSET', key, 'status', 'IN_QUEUE', 'sid', '')
  redis.call('ZADD', delayed, now + delay_ms, request_id)
  if r.start_deadline ~= '' then redis.call('ZADD', deadlines, r.start_deadline, request_id) end
  wake_scheduler()
else
  enqueue(request_id, r.priority, r.start_deadline)
  wake_all()
end
return 'requeued'
