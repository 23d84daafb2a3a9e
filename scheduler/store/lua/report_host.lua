#!lua flags=allow-oom
-- KEYS host host_orders
-- ARGV fields...
-- RETURNS: nothing
-- INCLUDE clock
local fields = { 'seen_at', now }
for i = first_of_fields, #ARGV do table.insert(fields, ARGV[i]) end
redis.call('HSET', host, unpack(fields))
redis.call('PEXPIRE', host, 86400000)
redis.call('PEXPIRE', host_orders, 86400000)
