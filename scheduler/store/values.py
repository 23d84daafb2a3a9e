"""Small values that an owner's apps share by key: what ``fal.toolkit.KVStore`` keeps.

They lie in Redis' memory, so each has an end and a size limit. Leaves files and large results to the file store.
"""

from __future__ import annotations

from . import keys
from .connection import Redis

MIN_TTL_S = 60
MAX_TTL_S = 30 * 86_400
MAX_VALUE_BYTES = 1024 * 1024
MAX_KEY_BYTES = 512
MAX_DATABASE_CHARACTERS = 255


class Values:
    """Verbs on shared values. Those of one owner are no other's."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, owner: str, database: str, key: str) -> bytes | None:
        """The value, or None.

        Raises:
            ValueError: no such name can be. StoreUnavailable.
        """
        found: bytes | None = await self._redis.command("GET", _name(owner, database, key))
        return found

    async def set(self, owner: str, database: str, key: str, value: bytes, ttl_s: int) -> None:
        """Keeps ``value`` for ``ttl_s`` seconds.

        Raises:
            ValueError: a name, the size or the time is out of bounds. StoreUnavailable. StoreFull.
        """
        if len(value) > MAX_VALUE_BYTES:
            raise ValueError(
                f"the value has {len(value)} bytes; the limit is {MAX_VALUE_BYTES}. Store a file and keep its URL"
            )
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise ValueError(f"the ttl is {ttl_s} seconds; it must be {MIN_TTL_S} to {MAX_TTL_S}")
        await self._redis.command("SET", _name(owner, database, key), value, "EX", ttl_s)

    async def delete(self, owner: str, database: str, key: str) -> None:
        """Forgets the value, if there is one.

        Raises:
            ValueError: no such name can be. StoreUnavailable.
        """
        await self._redis.command("DEL", _name(owner, database, key))


def _name(owner: str, database: str, key: str) -> str:
    if not 1 <= len(database) <= MAX_DATABASE_CHARACTERS:
        raise ValueError(f"the name of a database has 1 to {MAX_DATABASE_CHARACTERS} characters, not {len(database)}")
    size = len(key.encode())
    if not 1 <= size <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {size}")
    return keys.value(owner, database, key)
