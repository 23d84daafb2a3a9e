#!lua
-- MOVES: none -> IN_QUEUE
-- KEYS letter_prefix alias request_prefix queue_normal queue_low deadlines woken
-- ARGV letter_id request_id call again cap
-- RETURNS: {request id, 1 if an earlier call made it}; errors NOTFOUND, QUEUEFULL
-- INCLUDE clock waking queueing
-- A letter's input as a new request. Once only, unless `again` = 1; asked twice with one request id, it is one request.
-- A start deadline is not taken over: whoever set it has stopped waiting. No allow-oom: this is new work.
local key = letter_prefix .. letter_id
local l = redis.call('HMGET', key, 'body', 'priority', 'max_attempts', 'webhook', 'replayed_as', 'keep')
if not l[1] then return redis.error_reply('NOTFOUND no such letter') end
if l[5] == request_id or redis.call('EXISTS', request_prefix .. request_id) == 1 then return { request_id, 0 } end
if l[5] and again ~= '1' then return { l[5], 1 } end
if redis.call('EXISTS', alias) == 0 then return redis.error_reply('NOTFOUND no such app') end
local ahead = redis.call('XLEN', queue_normal) + redis.call('XLEN', queue_low)
if ahead >= tonumber(cap) then return redis.error_reply('QUEUEFULL ' .. ahead .. ' requests are waiting') end

redis.call('HSET', request_prefix .. request_id, 'attempt', 0, 'mode', 'queued', 'priority', l[2], 'call', call,
  'body', l[1], 'gateway', '', 'max_attempts', l[3], 'submitted_at', now_text, 'webhook', l[4],
  'keep', l[6])
enqueue(request_id, l[2], '')
redis.call('HSET', key, 'replayed_as', request_id, 'replayed_at', now_text)
wake_all()
return { request_id, 0 }
