"""Named environments: ``staging`` beside ``main``, so that apps and secrets of one are not those of the other.

They are names and nothing else; what is installed for an app is an environment of ``environments``. ``main`` is always
there and is not stored.
"""

from __future__ import annotations

import orjson

from . import keys
from .connection import Redis
from .records import NamedEnvironmentRecord

MAIN = "main"


class NamedEnvironments:
    """Verbs on an owner's named environments."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, owner: str, name: str, description: str) -> bool:
        """A new one; False when there is one of that name, which stays as it is."""
        clock = await self._redis.command("TIME")
        record = orjson.dumps({"description": description, "created_at": int(clock[0]) * 1000})
        return bool(await self._redis.command("HSETNX", keys.named_environments(owner), name, record))

    async def list(self, owner: str) -> list[NamedEnvironmentRecord]:
        """All of an owner's, ``main`` first."""
        reply = await self._redis.command("HGETALL", keys.named_environments(owner))
        found = [NamedEnvironmentRecord(MAIN)]
        for i in range(0, len(reply), 2):
            record = orjson.loads(reply[i + 1])
            found.append(NamedEnvironmentRecord(reply[i].decode(), record["description"], record["created_at"]))
        return found[:1] + sorted(found[1:], key=lambda env: env.name)

    async def exists(self, owner: str, name: str) -> bool:
        """Whether the owner has it."""
        return name == MAIN or bool(await self._redis.command("HEXISTS", keys.named_environments(owner), name))

    async def delete(self, owner: str, name: str) -> bool:
        """Forgets the name; False when there is none. What belongs to it is its owner's to take away before."""
        return bool(await self._redis.command("HDEL", keys.named_environments(owner), name))
