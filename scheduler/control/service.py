"""The scheduler as a service: leads or waits to lead, hears wake-ups, makes a pass every second, stops cleanly.

Wires ``dispatch``, ``reconcile`` and ``reaper`` to one store. A sleeping app costs nothing between its events: the
pass of every second reads only apps that are awake (workers, waiting requests or a minimum), plus a thirtieth of the
sleeping ones, so that even a lost wake-up is made good within half a minute.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from scheduler.control.dispatch import Dispatcher
from scheduler.control.reaper import WORKER_SILENT_MS, Reaper
from scheduler.control.reconcile import Reconciler
from scheduler.store import Store, keys
from scheduler.store.errors import StaleLeader, StoreError
from scheduler.store.records import AppSeen

log = structlog.get_logger("scheduler")


@dataclass(frozen=True)
class Settings:
    """Settings of one scheduler process. Times in seconds.

    Args:
        redis_url: ``unix://`` or ``redis://``.
        data_dir: the platform's data folder.
        scheduler_id: name of this process among the schedulers.
        leader_ttl: after so long without a sign of life another scheduler leads.
        pass_interval: between two passes over the apps that are awake.
        sleeping_passes: a sleeping app is looked at once in so many passes.
        worker_silent_ms: silence after which a worker counts as gone.
        stop_grace: how long looks under way may take when the service stops.
        linger: how long a worker with a GPU stays past its keep_alive where nobody waits for one.
    """

    redis_url: str
    data_dir: Path
    scheduler_id: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    leader_ttl: float = 3.0
    pass_interval: float = 1.0
    sleeping_passes: int = 30
    worker_silent_ms: int = WORKER_SILENT_MS
    stop_grace: float = 5.0
    linger: float = 0.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read KEEPWARM_REDIS_URL, KEEPWARM_DATA and KEEPWARM_LINGER_SECONDS.

        Raises:
            ValueError: no Redis is named, or a time that is none.
        """
        url = environ.get("KEEPWARM_REDIS_URL")
        if not url:
            raise ValueError("KEEPWARM_REDIS_URL is not set; name the platform's Redis, e.g. redis://127.0.0.1:6379/0")
        data = environ.get("KEEPWARM_DATA") or Path.home() / ".keepwarm"
        text = environ.get("KEEPWARM_LINGER_SECONDS") or "0"
        linger = float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else None
        if linger is None:
            raise ValueError(f"KEEPWARM_LINGER_SECONDS is {text!r}; write a number of seconds, e.g. 3600")
        return cls(redis_url=url, data_dir=Path(data), linger=linger)


class Scheduler:
    """One scheduler. ``run`` returns after ``stop`` was called; ``stop`` may be called twice.

    Args:
        store: connected; closed by whoever connected it.
        settings: see Settings.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._reconciler = Reconciler(store, settings.linger)
        self._reaper = Reaper(store, settings.worker_silent_ms)
        self._dispatcher = Dispatcher(self._look)
        self._epoch: int | None = None
        self._awake: set[str] = set()
        self._blocked: set[str] = set()
        self._due: set[str] = set()
        self._sleeping: list[str] = []
        self._per_pass = 0
        self._scanning: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether this scheduler acts at the moment."""
        return self._epoch is not None

    def stop(self) -> None:
        """End ``run`` after the looks under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Lead whenever no other scheduler does, until ``stop``."""
        subscription = await self._store.subscribe(
            {keys.channel_wake(): self._on_wake}, on_reconnect=self._on_reconnect
        )
        duties = [asyncio.create_task(self._keep_leading()), asyncio.create_task(self._make_passes())]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            # A duty only ends by a bug; better to end the process, which is started again, than to look alive.
            await asyncio.wait([*duties, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            for duty in duties:
                duty.cancel()
            results = await asyncio.gather(*duties, return_exceptions=True)
            await self._dispatcher.close(self._settings.stop_grace)
            await subscription.close()
            await self._resign()
        for result in results:
            if isinstance(result, Exception):
                raise result

    # --- leading ------------------------------------------------------------------------------------------------------

    async def lead_once(self) -> bool:
        """Take or renew the lease; returns whether this scheduler leads."""
        try:
            epoch = await self._store.leader.lead(self._settings.scheduler_id, round(self._settings.leader_ttl * 1000))
        except StoreError as error:
            log.warning("cannot reach the store", error=str(error))
            return self.leads
        await self._announce()
        if epoch != self._epoch:
            log.info("leads" if epoch is not None else "another scheduler leads", epoch=epoch)
            self._epoch = epoch
            # Memories of an earlier reign may be about another world.
            self._reconciler = Reconciler(self._store, self._settings.linger)
            if epoch is not None:
                await self._begin()
        return self.leads

    async def _begin(self) -> None:
        try:
            await self._reconciler.begin()
        except StoreError as error:
            log.warning("cannot read the workers yet; the first start does", error=str(error))
        await self.scan()

    async def _announce(self) -> None:
        """A sign of life for the health check; a scheduler that waits for its turn is as healthy as the leader."""
        try:
            await self._store.services.announce("scheduler", socket.gethostname())
        except StoreError as error:
            log.warning("cannot reach the store", error=str(error))

    async def _keep_leading(self) -> None:
        while True:
            await self.lead_once()
            await asyncio.sleep(self._settings.leader_ttl / 3)

    async def _resign(self) -> None:
        if self._epoch is None:
            return
        self._epoch = None
        try:
            await self._store.leader.resign(self._settings.scheduler_id)
        except StoreError as error:
            log.warning("could not hand the lead over; it runs out by itself", error=str(error))

    # --- looking ------------------------------------------------------------------------------------------------------

    async def scan(self) -> None:
        """Look at every app that exists: at the start of a reign, and when wake-ups may have been lost."""
        try:
            apps = await self._store.apps.names()
        except StoreError as error:
            log.warning("cannot list the apps; the next pass tries again", error=str(error))
            return
        for app in apps:
            self._wake_thoroughly(app)

    async def pass_once(self) -> None:
        """One pass: awake apps thoroughly, some of the sleeping ones, and sessions that ended."""
        if self._epoch is None:
            return
        try:
            for app in await self._store.apps.expired_sessions():
                log.info("session ended", app=app)
                await self._store.apps.delete(app)
                self._awake.add(app)
            if not self._sleeping:
                self._sleeping = [app for app in await self._store.apps.names() if app not in self._awake]
                self._per_pass = -(-len(self._sleeping) // self._settings.sleeping_passes)
        except StoreError as error:
            log.warning("a pass failed", error=str(error))
            return
        some, self._sleeping = self._sleeping[: self._per_pass], self._sleeping[self._per_pass :]
        for app in (*self._awake, *some):
            self._wake_thoroughly(app)

    async def _make_passes(self) -> None:
        while True:
            await asyncio.sleep(self._settings.pass_interval)
            await self.pass_once()

    def _on_wake(self, payload: bytes) -> None:
        if self._epoch is not None:
            self._dispatcher.wake(payload.decode())

    def _on_reconnect(self) -> None:
        if self._epoch is not None:
            self._scanning = asyncio.get_running_loop().create_task(self.scan())

    def _wake_thoroughly(self, app: str) -> None:
        self._due.add(app)
        self._dispatcher.wake(app)

    async def _look(self, app: str) -> None:
        if self._epoch is None:
            return
        try:
            await self._look_at(app, self._epoch)
        except StaleLeader:
            log.warning("another scheduler leads")
            self._epoch = None
        except StoreError as error:
            log.warning("look failed", app=app, error=str(error))
            self._awake.add(app)  # the next pass tries again
        except Exception:
            # One app's odd data must not stop the scheduling of all others; the next pass tries again.
            log.exception("look failed", app=app)
            self._awake.add(app)

    async def _look_at(self, app: str, epoch: int) -> None:
        look = await self._reconciler.once(app, epoch)
        self._dispatcher.forget_timer(app)
        if look.asleep:
            self._awake.discard(app)
            self._blocked.discard(app)
        else:
            self._awake.add(app)
        if look.again_at_ms is not None:
            self._dispatcher.wake_in(app, (look.again_at_ms - look.seen.now_ms) / 1000)
        if look.blocked:
            self._blocked.add(app)
        else:
            self._blocked.discard(app)
        if look.freed:
            for waiting in self._blocked - {app}:
                self._dispatcher.wake(waiting)
        if app in self._due or _urgent(look.seen):
            self._due.discard(app)
            if await self._reaper.once(look.seen, look.revision, epoch):
                self._dispatcher.wake(app)


def _urgent(seen: AppSeen) -> bool:
    """A back-off has ended, or something is in progress that no living worker holds: clear up without waiting."""
    due = seen.next_delayed_at_ms is not None and seen.next_delayed_at_ms <= seen.now_ms
    return due or seen.in_progress > sum(worker.in_flight for worker in seen.workers)
