-- KEYS request_prefix queue_normal queue_low leases delayed deadlines outbox request_logs_prefix
-- CHANNELS channel_gateway_prefix channel_outbox
-- INCLUDE clock naming reading keeping
-- Every way out of a request goes through end_request, so that nothing of it is left behind. Needs ARGV retention_ms.
local function leave_queue(id, r)
  if r.status == 'IN_PROGRESS' then
    redis.call('ZREM', leases, id)
    return
  end
  if r.sid ~= '' then
    redis.call('XDEL', r.priority == 'low' and queue_low or queue_normal, r.sid)
  else
    redis.call('ZREM', delayed, id)
  end
  if r.start_deadline ~= '' then redis.call('ZREM', deadlines, id) end
end

-- `bytes` is the size of a result that lies on disk. The worker's slot is the caller's business. The payload is
-- emptied, not deleted: that needs no command of its own.
local function end_request(id, r, status, verb, result, error_type, why, bytes)
  local key = request_prefix .. id
  leave_queue(id, r)
  redis.call('HSET', key, 'status', status, 'ended_by', verb, 'result', result, 'finished_at', now_text,
    'call', '', 'body', '')
  -- an earlier attempt may have left its error behind
  if error_type ~= '' or why ~= '' or r.attempt ~= '1' then
    redis.call('HSET', key, 'error_type', error_type, 'error', why)
  end
  local keep = keep_after(r.mode, r.keep, bytes or #result)
  if r.logged then redis.call('PEXPIRE', request_logs_prefix .. id, keep) end
  if r.webhook ~= '' and status ~= 'CANCELLED' then
    redis.call('HSET', key, 'kept_for', keep)
    keep = keep + 129600000 -- the delivery needs the record; the outbox shortens this when it is done
    redis.call('ZADD', outbox, now, id)
    redis.call('PUBLISH', channel_outbox, app)
  end
  redis.call('PEXPIRE', key, keep)
  if r.gateway ~= '' then
    redis.call('PUBLISH', channel_gateway_prefix .. r.gateway, 'result ' .. app .. ' ' .. id .. ' ' .. r.mode .. ' '
      .. status .. ' ' .. r.attempt .. ' ' .. r.submitted_at .. ' ' .. r.started_at .. ' ' .. now_text .. ' '
      .. r.worker .. ' ' .. error_type .. '\n' .. result)
  end
end
