#!lua flags=allow-oom
-- KEYS outbox outbox_offer_prefix request_prefix
-- ARGV token hold_ms limit share busy...
-- RETURNS: {{id, url, tries, due, ...}, {host, ...} that are owed more than their share, 1 if there may be more now}
-- INCLUDE clock
-- Deliveries to make now. Each is put off by hold_ms, so that no other sender takes it meanwhile and a sender that
-- dies loses nothing. A host gets at most `share` at once ('' = no limit); `busy` is host, count, host, count, ... of
-- what it is getting already. What is over a share stays due, unless it hides what is behind it.
-- Asked again with one token it answers the same: whoever did not hear what it was given would wait out the hold.
local heard = redis.call('GET', outbox_offer_prefix .. token)
if heard then return cmsgpack.unpack(heard) end
local used, found, full, hidden = {}, {}, {}, {}
for i = first_of_busy, #ARGV, 2 do used[ARGV[i]] = tonumber(ARGV[i + 1]) end
local most = tonumber(share) or math.huge
local due = redis.call('ZRANGEBYSCORE', outbox, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 500)
for i = 1, #due, 2 do
  if #found >= 4 * tonumber(limit) then break end
  local r = redis.call('HMGET', request_prefix .. due[i], 'webhook', 'webhook_tries')
  if not r[1] then
    redis.call('ZREM', outbox, due[i]) -- its record has expired
  else
    local host = string.match(r[1], '^%a+://([^/?#]*)') or ''
    if (used[host] or 0) < most then
      used[host] = (used[host] or 0) + 1
      redis.call('ZADD', outbox, now + hold_ms, due[i])
      for _, value in ipairs({ due[i], r[1], r[2] or '0', due[i + 1] }) do table.insert(found, value) end
    else
      full[host] = true
      table.insert(hidden, due[i])
    end
  end
end
local more = #due == 1000 or #found >= 4 * tonumber(limit)
if #hidden == 500 then
  for _, id in ipairs(hidden) do redis.call('ZADD', outbox, now + 10000, id) end
end
local hosts = {}
for host in pairs(full) do table.insert(hosts, host) end
local offer = { found, hosts, more and 1 or 0 }
if #found > 0 and tonumber(hold_ms) > 0 then
  redis.call('SET', outbox_offer_prefix .. token, cmsgpack.pack(offer), 'PX', hold_ms)
end
return offer
