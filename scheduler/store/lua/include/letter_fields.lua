-- KEYS letter_prefix
-- A letter as {name, value, ...}, its body by size only; nil when there is none. With `heard`, what was last heard of
-- it too, which may be long.
local function letter_fields(id, heard)
  local names = { 'call', 'error_type', 'error', 'attempts', 'crashes', 'worker', 'host', 'exit_code', 'submitted_at',
    'started_at', 'died_at', 'priority', 'webhook', 'replayed_as', 'replayed_at' }
  if heard then
    table.insert(names, 'words')
    table.insert(names, 'log')
  end
  local values = redis.call('HMGET', letter_prefix .. id, unpack(names))
  if not values[1] then return nil end
  local flat = { 'id', id, 'body_bytes', tostring(redis.call('HSTRLEN', letter_prefix .. id, 'body')) }
  for i, name in ipairs(names) do
    table.insert(flat, name)
    table.insert(flat, values[i] or '')
  end
  return flat
end
