"""A look into Redis, all at one instant: does every request stand where its state says, and nowhere else?"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

from scheduler.store import Store, StoreError, keys

#: The end of a key that names one of many.
_ID = re.compile(r":[0-9a-f-]{12,}.*$")
#: Answers what is wrong, one sentence each. Runs as one script, so that no request moves while it looks.
_LOOK = """
local wrong = {}
local function blame(id, what) table.insert(wrong, id .. ' ' .. what) end
local leases, delayed, deadlines, outbox, normal, low, prefix = unpack(KEYS)
local function entries(queue)
  local ids = {}
  for _, entry in ipairs(redis.call('XRANGE', queue, '-', '+')) do ids[entry[1]] = entry[2][2] end
  return ids
end
local waiting = { normal = entries(normal), low = entries(low) }
for _, key in ipairs(redis.call('KEYS', (string.gsub(prefix, '([%[%]*?])', '\\\\%1')) .. '*')) do
  local id = string.sub(key, #prefix + 1)
  local r = redis.call('HMGET', key, 'status', 'sid', 'priority', 'body')
  local leased, put_off = redis.call('ZSCORE', leases, id), redis.call('ZSCORE', delayed, id)
  local queued = r[2] and r[2] ~= '' and waiting[r[3]][r[2]] == id
  if r[1] == 'IN_QUEUE' then
    if leased then blame(id, 'waits and is leased') end
    if queued and put_off then blame(id, 'waits in the queue and is put off') end
    if not queued and not put_off then blame(id, 'waits and stands nowhere') end
  elseif r[1] == 'IN_PROGRESS' then
    if not leased then blame(id, 'runs without a lease') end
    if queued or put_off then blame(id, 'runs and waits') end
  else
    if leased or queued or put_off then blame(id, 'has ended and still runs or waits') end
    if redis.call('PTTL', key) < 0 then blame(id, 'has ended and is kept for ever') end
    if r[4] ~= '' then blame(id, 'has ended and keeps its payload') end
    if redis.call('ZSCORE', deadlines, id) then blame(id, 'has ended and has a deadline') end
  end
end
for _, queue in pairs(waiting) do
  for sid, id in pairs(queue) do
    local r = redis.call('HMGET', prefix .. id, 'status', 'sid')
    if r[1] ~= 'IN_QUEUE' or r[2] ~= sid then blame(id, 'has a second entry in the queue') end
  end
end
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  if redis.call('EXISTS', prefix .. id) == 0 then blame(id, 'is leased and unknown') end
end
for _, id in ipairs(redis.call('ZRANGE', outbox, 0, -1)) do
  local status = redis.call('HGET', prefix .. id, 'status')
  if status ~= 'COMPLETED' and status ~= 'ERROR' then blame(id, 'is owed a webhook as ' .. tostring(status)) end
end
return wrong
"""


class Watch:
    """Looks again and again while a run goes on.

    Args:
        apps: ``owner/name`` of each.
    """

    def __init__(self, redis_url: str, data: Path, apps: tuple[str, ...]) -> None:
        self._url, self._data, self._apps = redis_url, data, apps
        self.wrong: list[str] = []
        self.looks = 0

    async def run(self) -> None:
        """Until cancelled."""
        store = await Store.connect(self._url, self._data)
        try:
            while True:
                for app in self._apps:
                    await self._look(store, app)
                await asyncio.sleep(0.25)
        finally:
            await store.close()

    async def left(self) -> dict[str, int]:
        """What still waits, runs or is owed: empty when the platform has come to rest."""
        store = await Store.connect(self._url, self._data)
        try:
            counts: dict[str, int] = {}
            for app in self._apps:
                for key, command in (
                    *((keys.queue_normal(app), "XLEN"), (keys.queue_low(app), "XLEN"), (keys.leases(app), "ZCARD")),
                    *((keys.delayed(app), "ZCARD"), (keys.deadlines(app), "ZCARD"), (keys.outbox(app), "ZCARD")),
                ):
                    if count := int(await store._redis.command(command, key)):
                        counts[key] = count
            return counts
        except StoreError as error:
            return {str(error): 1}
        finally:
            await store.close()

    async def kinds(self) -> dict[str, int]:
        """How many keys there are of each kind, ids left out: ``{tester/alone}:request``."""
        store = await Store.connect(self._url, self._data)
        try:
            names: list[bytes] = await store._redis.command("KEYS", "*")
            return dict(Counter(_ID.sub("", name.decode()) for name in names))
        finally:
            await store.close()

    async def _look(self, store: Store, app: str) -> None:
        names = [
            *(keys.leases(app), keys.delayed(app), keys.deadlines(app), keys.outbox(app)),
            *(keys.queue_normal(app), keys.queue_low(app), keys.request(app, "")),
        ]
        try:
            found: Any = await store._redis.command("EVAL", _LOOK, len(names), *names)
        except StoreError:
            return  # Redis has just been shot
        self.looks += 1
        self.wrong += [text.decode() for text in found]
