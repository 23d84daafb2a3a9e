#!lua flags=allow-oom
-- KEYS alias revision revisions
-- ARGV name
-- RETURNS: 1, 0 when there is no such revision, -1 when the app's name points at it
-- Workers that still serve it may finish: its record stays for a day, and no name can be pointed at it any more.
if redis.call('HGET', alias, 'revision') == name then return -1 end
if redis.call('EXISTS', revision) == 0 then return 0 end
redis.call('ZREM', revisions, name)
redis.call('HSET', revision, 'state', 'FAILED', 'error', 'Its owner deleted it.')
redis.call('PEXPIRE', revision, 86400000)
return 1
