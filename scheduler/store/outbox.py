"""Webhook deliveries that are owed, and those given up. An entry is written by the script that ends its request.

When to try again and what to send is the sender's.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from . import keys
from .connection import Arg, Redis
from .records import DeadWebhook, RequestState, WebhookDelivery
from .scripts import SCRIPTS


class Offer(NamedTuple):
    """Deliveries to make now, the hosts that are owed more but have their share, and whether to look again at once."""

    due: list[WebhookDelivery]
    full: frozenset[str]
    more: bool


class Outbox:
    """Verbs on webhook deliveries."""

    def __init__(self, redis: Redis, retention_ms: int) -> None:
        self._redis = redis
        self._retention_ms = retention_ms

    async def due(self, app: str | None = None, *, hold_s: float = 60, limit: int = 100) -> list[WebhookDelivery]:
        """Deliveries to try now, of one app or of all (deleted ones included).

        Each is put off by ``hold_s`` seconds, in which the caller says how it went; a caller that dies loses nothing.
        """
        names = [app] if app is not None else await self.apps()
        offers = await asyncio.gather(*(self.offer(name, hold_s=hold_s, limit=limit) for name in names))
        return [delivery for offer in offers for delivery in offer.due]

    async def offer(
        self,
        app: str,
        *,
        hold_s: float = 60,
        limit: int = 100,
        share: int | None = None,
        busy: Mapping[str, int] | None = None,
        token: str | None = None,
    ) -> Offer:
        """The same of one app.

        Args:
            share: at most so many for one host. busy: what hosts are getting already.
            token: names this look; asking again with it, within ``hold_s``, gives the same deliveries.

        Raises:
            StoreUnavailable: something may have been given; ask again with the same token.
        """
        rest: list[Arg] = [value for item in (busy or {}).items() for value in item]
        due, full, more = await SCRIPTS["webhooks_due"](
            self._redis,
            app,
            token=token or uuid.uuid4().hex,
            hold_ms=int(hold_s * 1000),
            limit=limit,
            share="" if share is None else share,
            rest=rest,
        )
        deliveries = [
            WebhookDelivery(app, due[i].decode(), due[i + 1].decode(), int(due[i + 2]), int(due[i + 3]))
            for i in range(0, len(due), 4)
        ]
        return Offer(deliveries, frozenset(host.decode() for host in full), more == 1)

    async def apps(self) -> list[str]:
        """Apps that may owe a delivery: those that exist, and those deleted in the last two days."""
        alive, retired = await asyncio.gather(
            self._redis.command("SMEMBERS", keys.apps()), self._redis.command("ZRANGE", keys.apps_retired(), 0, -1)
        )
        return sorted({name.decode() for name in (*alive, *retired)})

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

    async def give_up(self, delivery: WebhookDelivery, why: str) -> None:
        """No try is left, or none would help: listed, with its record, for a week."""
        await self._over(delivery, "dead", why)

    async def dead(self, app: str, limit: int = 100) -> list[DeadWebhook]:
        """Deliveries that were given up, the newest first."""
        reply = await SCRIPTS["list_dead_webhooks"](self._redis, app, limit=limit)
        return [
            DeadWebhook(
                app=app,
                request_id=reply[i].decode(),
                url=reply[i + 1].decode(),
                tries=int(reply[i + 2]),
                given_up_at_ms=int(reply[i + 3]),
                why=reply[i + 4].decode("utf-8", "replace"),
                state=RequestState(reply[i + 5].decode()),
            )
            for i in range(0, len(reply), 6)
        ]

    async def replay(self, app: str, request_id: str) -> bool:
        """Delivers a finished request's webhook afresh, given up or not; False when it has none or is forgotten."""
        return bool(await SCRIPTS["replay_webhook"](self._redis, app, request_id=request_id))

    async def drop(self, app: str, request_id: str) -> bool:
        """Forgets a delivery that was given up or is owed; False when it was neither."""
        done = await SCRIPTS["drop_webhook"](self._redis, app, request_id=request_id, retention_ms=self._retention_ms)
        return bool(done)

    async def _over(self, delivery: WebhookDelivery, how: str, why: str = "") -> None:
        await SCRIPTS["webhook_over"](
            self._redis,
            delivery.app,
            request_id=delivery.request_id,
            how=how,
            tries=delivery.tries + 1,
            why=why[:1000],
            retention_ms=self._retention_ms,
        )
