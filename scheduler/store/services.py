"""Signs of life of services that nobody can call: what a container's health check asks for."""

from __future__ import annotations

from . import keys
from .connection import Redis

#: Seconds for which a sign of life counts; services give one every few seconds.
PRESENCE_S = 20


class Services:
    """Who is there."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def announce(self, service: str, host: str) -> None:
        """Says that ``service`` works on ``host``.

        Raises:
            StoreUnavailable.
        """
        await self._redis.command("SET", keys.service(service, host), "1", "EX", PRESENCE_S)

    async def alive(self, service: str, host: str) -> bool:
        """Whether it said so within the last ``PRESENCE_S`` seconds."""
        return bool(await self._redis.command("EXISTS", keys.service(service, host)))
