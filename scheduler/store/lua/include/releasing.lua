-- INCLUDE load
-- One slot of a worker is free again.
local function release_slot(worker_id)
  local seen = look_at(worker_id)
  if seen[1] and seen[1] ~= 'TERMINATED' then record_load(worker_id, seen, -1, false, 0) end
end
