#!lua
-- KEYS revision revisions
-- ARGV name fields...
-- RETURNS: nothing
-- INCLUDE clock
-- Stores a version; its creation time is now.
local fields = {}
for i = first_of_fields, #ARGV do table.insert(fields, ARGV[i]) end
redis.call('HSETNX', revision, 'created_at', now)
redis.call('HSET', revision, unpack(fields))
redis.call('ZADD', revisions, 'NX', now, name)
