#!lua flags=allow-oom
-- KEYS alias api_key
-- ARGV owner name salt digest
-- RETURNS: the salt of the app's key, which is the one given when a key was made; nothing for an app that is gone
-- INCLUDE clock
-- One key per app, whoever asks first; a revoked one is replaced. It has no TTL: it goes with the app's name.
if redis.call('EXISTS', alias) == 0 then return false end
local known = redis.call('HMGET', api_key, 'salt', 'revoked')
if known[1] and known[2] ~= '1' then return known[1] end
redis.call('HSET', api_key, 'owner', owner, 'name', name, 'digest', digest, 'created_at', now_text, 'revoked', '0',
  'scope', 'API', 'salt', salt)
return salt
