"""``python -m keepwarm.jobs``: builds, webhook deliveries and chores on arq, in one process.

Wiring and life cycle. Builds and deliveries have queues of their own, so that no number of long builds holds up a
delivery. SIGTERM ends it within the grace (deliveries finish, builds are picked up again later), a second one at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import uvloop
from arq.connections import ArqRedis
from arq.cron import cron
from arq.worker import Retry, func
from redis.exceptions import RedisError

from envbuilder import BuildSettings
from envbuilder.settings import number_setting
from keepwarm import jobs_builds, jobs_webhooks
from keepwarm.jobs_builds import Builds
from keepwarm.jobs_chores import evict_environments, sweep_files, sweep_payloads
from keepwarm.jobs_outage import Outage
from keepwarm.jobs_webhooks import Webhooks
from keepwarm.jobs_worker import LeasedWorker, connect
from scheduler.control.stderr_log import log_to_stderr
from scheduler.control.stopping import stop_on_signals
from scheduler.control.webhooks import TOTAL_TIMEOUT_S, WebhookSender
from scheduler.store import Store, files_variables
from scheduler.store.errors import StoreError
from scheduler.store.records import WebhookDelivery
from scheduler.store.signing import load_or_create

log = structlog.get_logger("jobs")

#: The builder has limits of its own; this only ends a build that those failed to end, in seconds.
BUILD_TIMEOUT_S = 3 * 3600.0


@dataclass(frozen=True)
class Settings:
    """Settings of one jobs process. Times in seconds unless the name says days.

    Args:
        redis_url: ``unix://`` or ``redis://``.
        data_dir: the platform's data folder.
        builds: how this machine builds.
        allow_private_webhooks: webhooks may go to loopback and private addresses, on any port.
        max_builds, max_deliveries: at once.
        keep_files_days: age at which users' files are deleted; None keeps them.
        environments_max_bytes, environments_unused_days: when environments are deleted; None: not by this measure.
        stop_grace: how long deliveries may go on when the service stops.
        files: where users' files are kept; empty: in the data folder.
    """

    redis_url: str
    data_dir: Path
    builds: BuildSettings
    allow_private_webhooks: bool = False
    max_builds: int = 2
    max_deliveries: int = 32
    keep_files_days: float | None = None
    environments_max_bytes: int | None = None
    environments_unused_days: float | None = 30
    stop_grace: float = 8.0
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read KEEPWARM_* variables and those of the builder.

        Raises:
            ValueError: no Redis is named, or a value cannot be read.
        """
        url = environ.get("KEEPWARM_REDIS_URL")
        if not url:
            raise ValueError("KEEPWARM_REDIS_URL is not set; name the platform's Redis, e.g. redis://127.0.0.1:6379/0")
        max_bytes = number_setting(environ, "KEEPWARM_ENVIRONMENTS_MAX_BYTES")
        return cls(
            redis_url=url,
            data_dir=Path(environ.get("KEEPWARM_DATA") or Path.home() / ".keepwarm"),
            builds=BuildSettings.from_env(environ),
            allow_private_webhooks=environ.get("KEEPWARM_ALLOW_PRIVATE_WEBHOOKS") == "1",
            keep_files_days=number_setting(environ, "KEEPWARM_KEEP_FILES_DAYS"),
            environments_max_bytes=None if max_bytes is None else int(max_bytes),
            environments_unused_days=number_setting(environ, "KEEPWARM_ENVIRONMENTS_UNUSED_DAYS", 30.0),
            files=files_variables(environ),
        )


class Jobs:
    """One jobs process. ``run`` returns after ``stop``, which may be called twice.

    Args:
        store: connected; closed by whoever connected it.
        pool: arq's connections; closed by ``run``.
        settings: see Settings.
    """

    def __init__(self, store: Store, pool: ArqRedis, settings: Settings) -> None:
        self._store = store
        self._pool = pool
        self._settings = settings
        self._sender = WebhookSender(load_or_create(settings.data_dir), allow_private=settings.allow_private_webhooks)
        self._outage = Outage()
        self._build_worker = LeasedWorker(
            pool,
            jobs_builds.QUEUE,
            [func(self._build, name="build_environment")],
            max_jobs=settings.max_builds,
            timeout_s=BUILD_TIMEOUT_S,
            outage=self._outage,
        )
        self._delivery_worker = LeasedWorker(
            pool,
            jobs_webhooks.QUEUE,
            [func(self._deliver, name="deliver_webhook", timeout=TOTAL_TIMEOUT_S * 2)],
            max_jobs=settings.max_deliveries,
            timeout_s=BUILD_TIMEOUT_S,
            outage=self._outage,
            cron_jobs=[
                cron(self._sweep, name="cron:sweep", minute=set(range(0, 60, 10)), keep_result=0),
                cron(self._evict, name="cron:evict", hour={3}, minute={17}, keep_result=0),
            ],
        )
        self._builds = Builds(store, pool, settings.builds, self._build_worker.nudge, self._outage)
        self._webhooks = Webhooks(store, pool, self._sender, self._delivery_worker.nudge, self._outage)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End ``run``."""
        self._stopping.set()

    async def run(self) -> None:
        """Relay and work until ``stop``."""
        workers = (self._build_worker, self._delivery_worker)
        relays = [
            asyncio.create_task(duty) for duty in (self._builds.relay(), self._webhooks.relay(), self._announce())
        ]
        working = [asyncio.create_task(worker.work()) for worker in workers]
        stopping = asyncio.create_task(self._stopping.wait())
        log.info("ready", max_builds=self._settings.max_builds, max_deliveries=self._settings.max_deliveries)
        try:
            # None of them ends but by a bug; better to end the process, which is started again, than to look alive.
            await asyncio.wait([*relays, *working, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            for relay in relays:
                relay.cancel()
            results = await asyncio.gather(*relays, return_exceptions=True)
            await asyncio.gather(self._build_worker.drain(0.0), self._delivery_worker.drain(self._settings.stop_grace))
            for task in working:
                task.cancel()
            results += await asyncio.gather(*working, return_exceptions=True)
            await self._sender.close()
            await self._pool.aclose()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _announce(self) -> None:
        """Signs of life for the health check; also what finds out that Redis is back."""
        while True:
            try:
                await self._store.services.announce("jobs", socket.gethostname())
                self._outage.over()
            except StoreError as error:
                self._outage.noticed(error)
            await asyncio.sleep(0.5 if self._outage.lasts else 5.0)

    async def _build(self, ctx: dict[str, Any], key: str) -> None:
        try:
            await self._builds.build(key)
        except StoreError as error:
            log.warning("build interrupted", environment=key, error=str(error))
            raise Retry(defer=1.0) from error

    async def _deliver(
        self, ctx: dict[str, Any], app: str, request_id: str, url: str, tries: int, due_at_ms: int
    ) -> None:
        try:
            await self._webhooks.deliver(WebhookDelivery(app, request_id, url, tries, due_at_ms))
        except StoreError as error:
            log.warning("delivery interrupted", app=app, request=request_id, error=str(error))
            raise Retry(defer=1.0) from error

    async def _sweep(self, ctx: dict[str, Any]) -> None:
        await sweep_payloads(self._store)
        await sweep_files(self._store, self._settings.keep_files_days)

    async def _evict(self, ctx: dict[str, Any]) -> None:
        settings = self._settings
        await evict_environments(settings.builds, settings.environments_max_bytes, settings.environments_unused_days)


async def _serve(settings: Settings) -> None:
    store = await Store.connect(settings.redis_url, settings.data_dir, files=settings.files)
    try:
        jobs = Jobs(store, await connect(settings.redis_url), settings)
        stop_on_signals(jobs.stop)
        await jobs.run()
    finally:
        await store.close()


def main() -> int:
    """Run until a signal; returns the exit status."""
    log_to_stderr(os.environ)
    # arq tells of every job on INFO; what matters of a job is logged by the job itself.
    logging.getLogger("arq").setLevel(logging.WARNING)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(Settings.from_env(os.environ)))
    except (StoreError, RedisError, OSError, ValueError) as error:
        print(f"jobs: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
