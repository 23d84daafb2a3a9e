-- KEYS request_prefix queue_normal queue_low leases delayed deadlines outbox request_logs_prefix
-- CHANNELS channel_gateway_prefix channel_outbox
-- INCLUDE clock reading waking load
-- Every way out of a request goes through end_request, so that nothing of it is left behind. Needs ARGV retention_ms.
local function is_final(status)
  return status ~= 'IN_QUEUE' and status ~= 'IN_PROGRESS'
end

local function leave_queue(id, r)
  if r.sid ~= '' then
    local queue = r.priority == 'low' and queue_low or queue_normal
    redis.call('XACK', queue, group, r.sid)
    redis.call('XDEL', queue, r.sid)
  else
    redis.call('ZREM', delayed, id)
  end
  if r.status == 'IN_PROGRESS' then
    redis.call('ZREM', leases, id)
  elseif r.start_deadline ~= '' then
    redis.call('ZREM', deadlines, id)
  end
end

local function end_request(id, r, status, verb, result, error_type, why, served)
  local key = request_prefix .. id
  leave_queue(id, r)
  if r.status == 'IN_PROGRESS' then release_slot(r.worker, served) end
  redis.call('HSET', key, 'status', status, 'ended_by', verb, 'result', result, 'error_type', error_type,
    'error', why, 'finished_at', now, 'sid', '')
  redis.call('HDEL', key, 'call', 'body')
  local keep = tonumber(retention_ms)
  redis.call('PEXPIRE', request_logs_prefix .. id, keep)
  if r.webhook ~= '' and status ~= 'CANCELLED' then
    keep = keep + 86400000 -- the delivery needs the record; the outbox shortens this when it is done
    redis.call('ZADD', outbox, now, id)
    redis.call('PUBLISH', channel_outbox, app)
  end
  redis.call('PEXPIRE', key, keep)
  if r.gateway ~= '' then
    local head = table.concat({ 'result', app, id, r.mode, status, r.attempt, r.submitted_at, r.started_at,
      string.format('%.0f', now), r.worker, error_type }, ' ')
    redis.call('PUBLISH', channel_gateway_prefix .. r.gateway, head .. '\n' .. result)
  end
end
