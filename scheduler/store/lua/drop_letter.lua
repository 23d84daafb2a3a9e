#!lua flags=allow-oom
-- KEYS letter_prefix letters
-- ARGV letter_id
-- RETURNS: the call of the letter, which names what is on disk, or nil when there was none
local key = letter_prefix .. letter_id
local call = redis.call('HGET', key, 'call')
redis.call('DEL', key)
redis.call('ZREM', letters, letter_id)
return call
