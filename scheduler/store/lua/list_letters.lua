#!lua flags=no-writes
-- KEYS letters letter_prefix
-- ARGV limit
-- RETURNS: {{name, value, ...}, ...}, the newest first
-- INCLUDE letter_fields
local found = {}
for _, id in ipairs(redis.call('ZREVRANGE', letters, 0, tonumber(limit) - 1)) do
  local fields = letter_fields(id)
  if fields then table.insert(found, fields) end
end
return found
