#!lua flags=allow-oom
-- KEYS environment
-- CHANNELS channel_environment_prefix
-- ARGV key fields...
-- RETURNS: nothing
-- INCLUDE clock
local fields = { 'updated_at', now }
for i = first_of_fields, #ARGV do table.insert(fields, ARGV[i]) end
redis.call('HSET', environment, unpack(fields))
redis.call('PUBLISH', channel_environment_prefix .. key, 'state')
