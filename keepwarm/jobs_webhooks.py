"""Webhooks as arq jobs: due entries of the outbox are handed on, each try's end goes back into the outbox.

The outbox is the truth: an entry leaves it only after a try has ended, so a killed process repeats a try at worst.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from urllib.parse import urlsplit

import structlog
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from keepwarm.jobs_outage import Outage
from scheduler.control.webhooks import WebhookSender, delay_before_next
from scheduler.store import Store, StoreError, keys
from scheduler.store.records import WebhookDelivery

QUEUE = "kw:arq:webhooks"
#: Tries at once against one host: one slow receiver must not hold up everybody else's deliveries.
PER_HOST = 8
#: Seconds between looks at every app's outbox; what is due sooner is known from its own timer or message.
LOOK_S = 10.0
#: Seconds for which a handed-on entry is not handed on again.
HOLD_S = 60.0

log = structlog.get_logger("jobs")


class Webhooks:
    """Delivers what the outbox owes.

    Args:
        store: where the outbox and the results are.
        pool: arq's.
        sender: makes the tries.
        enqueued: called after jobs were put into ``QUEUE``.
        outage: is told when Redis does not answer.
    """

    def __init__(
        self,
        store: Store,
        pool: ArqRedis,
        sender: WebhookSender,
        enqueued: Callable[[], None] = lambda: None,
        outage: Outage | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._sender = sender
        self._enqueued = enqueued
        self._outage = outage or Outage()
        self._handed: defaultdict[str, dict[str, float]] = defaultdict(dict)  # host: job id: when
        self._waiting: defaultdict[str, set[str]] = defaultdict(set)  # host: apps that owe it more than its share
        self._unheard: dict[str, str] = {}  # app: token of the look whose answer has not come yet
        self._given: dict[str, deque[WebhookDelivery]] = {}  # app: given by the outbox, not with arq yet
        self._apps: set[str | None] = set()
        self._news = asyncio.Event()

    async def relay(self) -> None:
        """Hand due entries to arq until cancelled."""
        subscription = await self._store.subscribe({keys.channel_outbox(): self._on_due}, self._look_everywhere)
        self._look_everywhere()
        try:
            while True:
                try:
                    await asyncio.wait_for(self._news.wait(), LOOK_S)
                except TimeoutError:
                    self._apps.add(None)
                self._news.clear()
                apps, self._apps = self._apps, set()
                try:
                    for app in {None} if None in apps else apps:
                        await self.hand_on(app)
                except (StoreError, RedisError, OSError) as error:
                    self._outage.noticed(error)
        finally:
            await subscription.close()

    async def hand_on(self, app: str | None) -> int:
        """Hand on what is due, of one app or of all, and leave in the outbox what is over a host's share; returns how
        many."""
        names = [app] if app is not None else await self._store.outbox.apps()
        return sum([await self._hand_on(name) for name in names])

    async def _hand_on(self, app: str) -> int:
        handed = await self._enqueue(app)  # what an earlier look was given and could not pass on
        token = self._unheard.setdefault(app, uuid.uuid4().hex)
        due, full, more = await self._store.outbox.offer(
            app, hold_s=HOLD_S, share=PER_HOST, busy=self._busy(), token=token
        )
        del self._unheard[app]
        for host in full:
            self._waiting[host].add(app)
        if more:
            self._notice(app)
        if due:
            self._given[app] = deque(due)
            handed += await self._enqueue(app)
        return handed

    async def _enqueue(self, app: str) -> int:
        """Passes on what the outbox has given, one by one, so that a failure in the midst loses nothing."""
        given, handed = self._given.get(app), 0
        while given:
            delivery = given[0]
            job_id = _job_id(delivery)
            self._handed[_host(delivery)][job_id] = time.monotonic()
            await self._pool.enqueue_job(
                "deliver_webhook",
                *(delivery.app, delivery.request_id, delivery.url, delivery.tries, delivery.due_at_ms),
                _job_id=job_id,
                _queue_name=QUEUE,
            )
            given.popleft()
            handed += 1
        self._given.pop(app, None)
        if handed:
            self._enqueued()
        return handed

    def _busy(self) -> dict[str, int]:
        """Deliveries handed on and not ended, by host. After HOLD_S the outbox offers them again."""
        since = time.monotonic() - HOLD_S
        for host, jobs in list(self._handed.items()):
            self._handed[host] = {job_id: at for job_id, at in jobs.items() if at > since}
            if not self._handed[host]:
                del self._handed[host]
        return {host: len(jobs) for host, jobs in self._handed.items()}

    async def deliver(self, delivery: WebhookDelivery) -> None:
        """Make one try and write down how it ended; what waited for the host's share comes next."""
        host = _host(delivery)
        try:
            await self._try(delivery, host)
        finally:
            self._handed[host].pop(_job_id(delivery), None)
            for app in self._waiting.pop(host, ()):
                self._notice(app)

    async def _try(self, delivery: WebhookDelivery, host: str) -> None:
        app, request_id, outbox = delivery.app, delivery.request_id, self._store.outbox
        record = await self._store.requests.get(app, request_id)
        if record is None:
            log.warning("webhook given up", app=app, request=request_id, why="the result is gone")
            await outbox.give_up(delivery, "the result is gone")
            return
        ended = await self._sender.deliver(delivery.url, record, int(time.time()))
        if ended.delivered:
            await outbox.delivered(delivery)
            return
        delay = None if ended.final else delay_before_next(delivery.tries + 1, asked_for=ended.retry_after)
        if delay is None:
            log.warning("webhook given up", app=app, request=request_id, host=host, why=ended.detail)
            await outbox.give_up(delivery, ended.detail)
            return
        log.info("webhook failed", app=app, request=request_id, host=host, why=ended.detail, next_in=round(delay, 1))
        await outbox.reschedule(delivery, delay)
        asyncio.get_running_loop().call_later(delay + 0.05, self._notice, app)

    def _on_due(self, payload: bytes) -> None:
        self._notice(payload.decode())

    def _look_everywhere(self) -> None:
        self._notice(None)

    def _notice(self, app: str | None) -> None:
        self._apps.add(app)
        self._news.set()


def _host(delivery: WebhookDelivery) -> str:
    return urlsplit(delivery.url).netloc


def _job_id(delivery: WebhookDelivery) -> str:
    return f"webhook:{delivery.app}:{delivery.request_id}:{delivery.tries}"
