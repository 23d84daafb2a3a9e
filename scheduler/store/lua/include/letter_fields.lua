-- KEYS letter_prefix
-- A letter as {name, value, ...}, its body by size only; nil when there is none.
local function letter_fields(id)
  local names = { 'call', 'error_type', 'error', 'attempts', 'crashes', 'worker', 'host', 'exit_code', 'words', 'log',
    'submitted_at', 'started_at', 'died_at', 'priority', 'max_attempts', 'webhook', 'replayed_as', 'replayed_at' }
  local values = redis.call('HMGET', letter_prefix .. id, unpack(names))
  if not values[1] then return nil end
  local flat = { 'id', id, 'body_bytes', tostring(redis.call('HSTRLEN', letter_prefix .. id, 'body')) }
  for i, name in ipairs(names) do
    table.insert(flat, name)
    table.insert(flat, values[i] or '')
  end
  return flat
end
