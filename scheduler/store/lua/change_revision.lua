#!lua flags=allow-oom
-- KEYS revision
-- ARGV fields...
-- RETURNS: 1, or 0 when there is no such revision
if redis.call('EXISTS', revision) == 0 then return 0 end
for i = first_of_fields, #ARGV, 2 do redis.call('HSET', revision, ARGV[i], ARGV[i + 1]) end
return 1
