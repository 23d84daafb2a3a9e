-- KEYS request_prefix
-- The app, as its keys name it.
local app = string.match(request_prefix, '^{(.-)}')
