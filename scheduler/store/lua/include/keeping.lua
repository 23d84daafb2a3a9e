-- INCLUDE clock
-- How long a request is kept after its end, in milliseconds. Needs ARGV retention_ms, what this platform does unless
-- the request says otherwise (`keep`): so many milliseconds, or 'brief', an hour and six minutes for 10 KB or more, for
-- a caller who wants nothing stored. The answer of a direct call is read by its gateway at once or never.
local function keep_after(mode, keep, bytes)
  local usual = tonumber(keep) or tonumber(retention_ms)
  if mode == 'direct' then return math.min(usual, 360000) end
  if keep ~= 'brief' then return usual end
  return math.min(usual, bytes >= 10240 and 360000 or 3600000)
end

-- What is left of that when the webhook needs the record no more.
local function left_of(key)
  local r = redis.call('HMGET', key, 'finished_at', 'kept_for')
  return math.max(60000, tonumber(r[1] or '0') + (r[2] or retention_ms) - now)
end
