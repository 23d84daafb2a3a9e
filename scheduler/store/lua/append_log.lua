#!lua flags=allow-oom
-- KEYS logs request_logs_prefix request_prefix
-- CHANNELS channel_logs_prefix
-- ARGV at level message worker_id request_id
-- RETURNS: nothing
-- One line into the app's log and, with a request_id, into that request's. Both forget their oldest lines.
local fields = { 'at', at, 'level', level, 'message', message, 'worker_id', worker_id, 'request_id', request_id }
redis.call('XADD', logs, 'MAXLEN', '~', 10000, '*', unpack(fields))
redis.call('PEXPIRE', logs, 2592000000)
if request_id ~= '' then
  local key = request_logs_prefix .. request_id
  redis.call('XADD', key, 'MAXLEN', '~', 1000, '*', unpack(fields))
  local keep = redis.call('PTTL', request_prefix .. request_id)
  if keep == -1 then
    keep = 604800000
    redis.call('HSET', request_prefix .. request_id, 'logged', '1') -- its end shortens this
  end
  if keep == -2 then keep = 60000 end
  redis.call('PEXPIRE', key, keep)
end
redis.call('PUBLISH', channel_logs_prefix .. string.match(logs, '^{(.-)}'), '')
