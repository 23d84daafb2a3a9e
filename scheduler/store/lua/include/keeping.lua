-- INCLUDE clock
-- Milliseconds for which a finished request is still kept once its webhook needs it no more. Needs ARGV retention_ms.
local function left_of(key)
  local finished = tonumber(redis.call('HGET', key, 'finished_at') or '0')
  return math.max(60000, finished + retention_ms - now)
end
