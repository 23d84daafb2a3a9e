-- KEYS worker_prefix revision_prefix crashes_prefix woken request_prefix
-- INCLUDE clock waking
-- Workers that crash one after the other are not to be restarted without a pause: that would cost every other app on
-- the host its processors. Five crashes of different requests within a minute open a streak of their revision, as does
-- one that no request can be blamed for (`certain`); each further one makes it longer, and a worker that serves ends it
-- (see end_crash_streak). A worker crashes once, whatever was on it.
local function count_crash(worker_id, request, why, certain)
  local worker = worker_prefix .. worker_id
  local name = redis.call('HGET', worker, 'revision')
  if not name or redis.call('HSETNX', worker, 'crashed', '1') == 0 then return end
  local window, revision = crashes_prefix .. name, revision_prefix .. name
  redis.call('ZREMRANGEBYSCORE', window, '-inf', now - 60000)
  redis.call('ZADD', window, now, request)
  redis.call('PEXPIRE', window, 60000)
  if redis.call('EXISTS', revision) == 0 then return end
  local streak = tonumber(redis.call('HGET', revision, 'crash_streak')) or 0
  if streak == 0 and not certain and redis.call('ZCARD', window) < 5 then return end
  redis.call('HSET', revision, 'crash_streak', streak + 1, 'last_crash', why, 'last_crash_at', now)
  redis.call('DEL', woken)
  wake_scheduler()
end
