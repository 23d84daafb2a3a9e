"""Webhook deliveries that are owed. An entry is written by the same script that ends its request.

When to try again and what to send is the sender's.
"""

from __future__ import annotations

import asyncio

from . import keys
from .connection import Redis
from .records import WebhookDelivery
from .scripts import SCRIPTS


class Outbox:
    """Verbs on webhook deliveries."""

    def __init__(self, redis: Redis, retention_ms: int) -> None:
        self._redis = redis
        self._retention_ms = retention_ms

    async def due(self, app: str | None = None, *, hold_s: float = 60, limit: int = 100) -> list[WebhookDelivery]:
        """Deliveries to try now, of one app or of all (deleted ones included).

        Each is put off by ``hold_s`` seconds, in which the caller says how it went; a caller that dies loses nothing.
        """
        if app is None:
            return [delivery for each in await self._due_of_all(hold_s, limit) for delivery in each]
        reply = await SCRIPTS["webhooks_due"](self._redis, app, hold_ms=int(hold_s * 1000), limit=limit)
        return [
            WebhookDelivery(app, reply[i].decode(), reply[i + 1].decode(), int(reply[i + 2]), int(reply[i + 3]))
            for i in range(0, len(reply), 4)
        ]

    async def _due_of_all(self, hold_s: float, limit: int) -> list[list[WebhookDelivery]]:
        alive, retired = await asyncio.gather(
            self._redis.command("SMEMBERS", keys.apps()), self._redis.command("ZRANGE", keys.apps_retired(), 0, -1)
        )
        names = {name.decode() for name in (*alive, *retired)}
        return await asyncio.gather(*(self.due(name, hold_s=hold_s, limit=limit) for name in sorted(names)))

    async def delivered(self, delivery: WebhookDelivery) -> None:
        """The receiver took it."""
        await self._over(delivery, "delivered")

    async def reschedule(self, delivery: WebhookDelivery, delay_s: float) -> None:
        """A try failed; the next one is due in ``delay_s`` seconds. Saying so twice counts once."""
        await SCRIPTS["webhook_later"](
            self._redis,
            delivery.app,
            request_id=delivery.request_id,
            tries=delivery.tries + 1,
            delay_ms=int(delay_s * 1000),
        )

    async def dead_letter(self, delivery: WebhookDelivery) -> None:
        """Given up: listed, with its record, for a week."""
        await self._over(delivery, "dead")

    async def dead_letters(self, app: str) -> list[str]:
        """Ids of requests whose webhook was given up, oldest first."""
        reply = await self._redis.command("ZRANGE", keys.outbox_dead(app), 0, -1)
        return [request_id.decode() for request_id in reply]

    async def _over(self, delivery: WebhookDelivery, how: str) -> None:
        await SCRIPTS["webhook_over"](
            self._redis, delivery.app, request_id=delivery.request_id, how=how, retention_ms=self._retention_ms
        )
