#!lua flags=allow-oom
-- KEYS request_prefix output_prefix
-- CHANNELS channel_gateway_prefix
-- ARGV request_id attempt worker_id sequence kind data
-- RETURNS: pieces not read yet; -1: superseded or cancelled, stop
-- One piece of a streamed answer. Its stream id is its number: a piece sent twice is stored once.
local r = redis.call('HMGET', request_prefix .. request_id, 'status', 'attempt', 'worker', 'gateway')
if r[1] ~= 'IN_PROGRESS' or r[2] ~= attempt or r[3] ~= worker_id then return -1 end
local key = output_prefix .. request_id
redis.pcall('XADD', key, sequence .. '-0', kind, data)
redis.call('PEXPIRE', key, 600000)
if r[4] and r[4] ~= '' then redis.call('PUBLISH', channel_gateway_prefix .. r[4], 'output ' .. request_id) end
return redis.call('XLEN', key)
