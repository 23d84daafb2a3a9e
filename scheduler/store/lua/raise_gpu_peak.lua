#!lua flags=allow-oom
-- KEYS revision
-- ARGV mb
-- RETURNS: 1 if the revision's peak rose
-- A worker of the revision was seen to use so much of one GPU.
if redis.call('EXISTS', revision) == 0 then return 0 end
if tonumber(mb) <= (tonumber(redis.call('HGET', revision, 'gpu_peak')) or 0) then return 0 end
redis.call('HSET', revision, 'gpu_peak', mb)
return 1
