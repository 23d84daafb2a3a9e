#!lua flags=no-writes
-- KEYS letters letter_prefix
-- ARGV limit
-- RETURNS: {{name, value, ...}, ...}, the newest first, without what was last heard of them
-- INCLUDE letter_fields
local found = {}
for _, id in ipairs(redis.call('ZREVRANGE', letters, 0, tonumber(limit) - 1)) do
  local fields = letter_fields(id, false)
  if fields then table.insert(found, fields) end
end
return found
