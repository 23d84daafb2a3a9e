-- KEYS epoch
-- Refuses a leader older than the last one that acted on this app; '' stands for callers that need not lead.
local function stale_leader(by_epoch)
  if by_epoch == '' then return false end
  if tonumber(by_epoch) < tonumber(redis.call('GET', epoch) or '0') then return true end
  redis.call('SET', epoch, by_epoch, 'PX', 604800000)
  return false
end

local STALE = 'STALE another scheduler leads'
