-- KEYS woken
-- CHANNELS channel_wake channel_work_prefix
-- INCLUDE naming
-- Whom to tell that there is work. Losing a message only costs the time until somebody polls.
local function wake_scheduler()
  if redis.call('SET', woken, '1', 'NX', 'PX', 1000) then
    redis.call('PUBLISH', channel_wake, app)
  end
end

local function wake_all()
  redis.call('PUBLISH', channel_work_prefix .. app, '')
  wake_scheduler()
end
