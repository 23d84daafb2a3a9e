"""Which scheduler leads. The epoch goes into every verb that only a leader may call, so that a late one is refused."""

from __future__ import annotations

from .connection import Redis
from .scripts import SCRIPTS

#: Seconds for giving up the lead when Redis is away: it runs out by itself soon after.
RESIGN_PATIENCE_S = 1.0


class Leadership:
    """The leader's lease."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def lead(self, scheduler_id: str, ttl_ms: int) -> int | None:
        """Takes or renews the lead for ``ttl_ms``; the epoch, or None while another one leads.

        Raises:
            StoreUnavailable.
        """
        epoch: int = await SCRIPTS["lead"](self._redis, scheduler_id=scheduler_id, ttl_ms=ttl_ms)
        return epoch or None

    async def resign(self, scheduler_id: str) -> None:
        """Gives the lead up at once, if this one has it.

        Raises:
            StoreUnavailable: Redis does not answer now.
        """
        await SCRIPTS["resign"](self._redis, scheduler_id=scheduler_id, patience=RESIGN_PATIENCE_S)
