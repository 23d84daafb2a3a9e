#!lua flags=no-writes
-- KEYS outbox_dead request_prefix
-- ARGV limit
-- RETURNS: {id, url, tries, given up at, why, status of the request, ...}, the newest first
local found = {}
local dead = redis.call('ZREVRANGE', outbox_dead, 0, tonumber(limit) - 1, 'WITHSCORES')
for i = 1, #dead, 2 do
  local r = redis.call('HMGET', request_prefix .. dead[i], 'webhook', 'webhook_tries', 'webhook_error', 'status')
  if r[1] then
    for _, value in ipairs({ dead[i], r[1], r[2] or '0', dead[i + 1], r[3] or '', r[4] }) do
      table.insert(found, value)
    end
  end
end
return found
