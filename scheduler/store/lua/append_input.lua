#!lua
-- KEYS request_prefix input_prefix
-- CHANNELS channel_worker_prefix
-- ARGV request_id sequence kind data
-- RETURNS: pieces not read yet; -1: the connection is over, stop
-- One piece from the caller of a connection, for the worker that serves it. Its stream id is its number: a piece sent
-- twice is stored once. No allow-oom: like new requests, it is refused when memory runs out.
local r = redis.call('HMGET', request_prefix .. request_id, 'status', 'worker')
if r[1] ~= 'IN_PROGRESS' then return -1 end
local key = input_prefix .. request_id
redis.pcall('XADD', key, sequence .. '-0', kind, data)
redis.call('PEXPIRE', key, 600000)
redis.call('PUBLISH', channel_worker_prefix .. r[2], 'input ' .. request_id)
return redis.call('XLEN', key)
