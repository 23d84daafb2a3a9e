-- The only clock: milliseconds of the Redis server, as a number and as text. `far_off` is later than anything that a
-- lease or a back-off is set to: what lies there was written before the clock was put back.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local far_off = now + 3600000
local now_text = string.format('%.0f', now)
