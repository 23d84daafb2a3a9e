"""Builds as arq jobs: one per environment key, its lines into the store, and the alias moved when it is done.

Owns what happens around a build. Leaves building to ``envbuilder`` and queueing to arq; what is asked for stays in the
store until it is settled, so a lost job is only a delay.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from arq.connections import ArqRedis
from redis.exceptions import RedisError

import envbuilder
from envbuilder import BuildError, BuildSettings, Environment
from keepwarm.jobs_outage import Outage
from scheduler.control import outcomes
from scheduler.store import Store, StoreError
from scheduler.store.records import (
    BuildRequest,
    EnvironmentRecord,
    EnvironmentState,
    RevisionRecord,
    RevisionState,
)

QUEUE = "kw:arq:builds"
#: Seconds for which a fresh ephemeral app lives before its ``fal run`` must have opened the session.
FIRST_SESSION_S = 30
#: Seconds between writes of a build's lines, so that a talkative build costs few round trips.
LOG_FLUSH_S = 0.1
_RETRY_S = 0.5

log = structlog.get_logger("jobs")


class Builds:
    """Turns build requests into builds.

    Args:
        store: where requests, states and logs are.
        pool: arq's.
        settings: how this machine builds.
        enqueued: called after a job was put into ``QUEUE``.
        outage: is told when Redis does not answer.
    """

    def __init__(
        self,
        store: Store,
        pool: ArqRedis,
        settings: BuildSettings,
        enqueued: Callable[[], None] = lambda: None,
        outage: Outage | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._settings = settings
        self._enqueued = enqueued
        self._outage = outage or Outage()

    async def relay(self) -> None:
        """Hand build requests to arq until cancelled."""
        while True:
            try:
                tickets = await self._store.environments.take_build_requests()
                handed_on = [ticket for ticket, key in tickets if await self._enqueue(key)]
                self._enqueued()
                await self._store.environments.ack_build_requests(handed_on)
                if len(handed_on) == len(tickets):
                    continue
            except (StoreError, RedisError, OSError) as error:
                self._outage.noticed(error)
            await asyncio.sleep(_RETRY_S)

    async def _enqueue(self, key: str) -> bool:
        """False while a job for this key exists: it may have looked for waiting revisions before the newest came."""
        job = await self._pool.enqueue_job("build_environment", key, _job_id=f"build:{key}", _queue_name=QUEUE)
        return job is not None or not await self._store.environments.waiting(key)

    async def build(self, key: str) -> None:
        """Build for every revision that waits on ``key``; each may import other modules of the environment."""
        while requests := await self._store.environments.waiting(key):
            for request in requests:
                await self._build_for(request)

    async def _build_for(self, request: BuildRequest) -> None:
        revision = await self._store.apps.revision(request.app, request.revision)
        if revision is None:
            await self._store.environments.settled(request)
            return
        key = request.environment_key
        try:
            environment = await self._build(revision)
        except BuildError as error:
            log.info("build failed", environment=key, app=request.app, error=str(error).partition("\n")[0])
            await self._failed(request, revision, str(error))
        except StoreError:
            raise
        except Exception as error:
            # Whatever goes wrong in here must not leave a caller waiting for ever.
            log.exception("build broke", environment=key, app=request.app)
            await self._failed(request, revision, f"The builder itself failed: {error!r}. See the jobs service's log.")
        else:
            await self._ready(request, revision, environment)

    async def _build(self, revision: RevisionRecord) -> Environment:
        key, environments = revision.environment_key, self._store.environments
        if envbuilder.find(key, self._settings) is None:
            log.info("build", environment=key, app=revision.app)
            await environments.clear_log(key)
            await environments.put(EnvironmentRecord(key, EnvironmentState.BUILDING))
        secrets = await self._secrets(revision)
        async with _lines_to(self._store, key) as on_line:
            return await envbuilder.build(revision.spec.environment, self._settings, on_line, secrets)

    async def _secrets(self, revision: RevisionRecord) -> dict[str, str]:
        """Those that the addresses of its requirements name."""
        names = envbuilder.placeholders(revision.spec.environment)
        owner = revision.app.partition("/")[0]
        return await self._store.secrets.values(owner, revision.spec.env, names) if names else {}

    async def _ready(self, request: BuildRequest, revision: RevisionRecord, environment: Environment) -> None:
        notes: dict[str, Any] = {
            "resolved": environment.resolved,
            "packages": len(environment.packages),
            "size": environment.size,
            "seconds": environment.seconds,
            "cached": environment.cached,
            "cpu_only": environment.cpu_only,
        }
        record = EnvironmentRecord(
            request.environment_key, EnvironmentState.READY, path=str(environment.path), notes=notes
        )
        await self._store.environments.put(record)
        if revision.state is not RevisionState.READY:
            await self._serve_from_now_on(request, revision)
            await self._store.apps.set_revision_state(request.app, request.revision, RevisionState.READY)
        await self._store.environments.settled(request)
        await self._store.environments.put(record)  # those who follow the build look at the revision now

    async def _serve_from_now_on(self, request: BuildRequest, revision: RevisionRecord) -> None:
        """Move the alias, unless a later deploy was built faster."""
        apps = self._store.apps
        alias = await apps.get(request.app)
        serving = await apps.revision(request.app, alias.revision) if alias is not None and alias.revision else None
        if serving is not None and serving.created_at_ms > revision.created_at_ms:
            log.info("a later revision serves already", app=request.app, revision=request.revision)
            return
        await apps.point(
            request.app,
            request.revision,
            auth=revision.spec.auth,
            scaling=revision.spec.scaling if alias is None or request.reset_scale else None,
            ephemeral=request.ephemeral,
            session_ttl_s=FIRST_SESSION_S if request.ephemeral else None,
        )
        if request.recreate:
            await self._store.workers.request_stop_all(
                request.app, "drain", "its revision was replaced", but=request.revision
            )

    async def _failed(self, request: BuildRequest, revision: RevisionRecord, error: str) -> None:
        """The alias stays where it is; who waits on this revision hears why."""
        key, first_line = request.environment_key, error.partition("\n")[0]
        usable = envbuilder.find(key, self._settings) is not None
        if revision.state is not RevisionState.READY:
            await self._store.apps.set_revision_state(request.app, request.revision, RevisionState.FAILED, error)
        await self._store.environments.settled(request)
        if usable:  # only this revision's imports fail in it; others are served from it
            state = await self._store.environments.get(key)
            record = state or EnvironmentRecord(key, EnvironmentState.READY)
        else:
            record = EnvironmentRecord(key, EnvironmentState.FAILED, error=first_line)
        await self._store.environments.put(record)
        alias = await self._store.apps.get(request.app)
        if alias is not None and alias.revision == request.revision and not usable:
            await self._store.requests.fail_waiting(request.app, outcomes.environment_failed(request.app, first_line))


@contextlib.asynccontextmanager
async def _lines_to(store: Store, key: str) -> AsyncIterator[Any]:
    """A function that takes lines; they reach the store in order, a few times a second, and all by the end."""
    waiting: list[str] = []

    async def flush() -> None:
        lines, waiting[:] = waiting[:], []
        if lines:
            await asyncio.gather(*(store.environments.append_log(key, line) for line in lines))

    async def keep_flushing() -> None:
        while True:
            await asyncio.sleep(LOG_FLUSH_S)
            with contextlib.suppress(StoreError):  # the log is for reading along; the build goes on without it
                await flush()

    flushing = asyncio.create_task(keep_flushing())
    try:
        yield waiting.append
    finally:
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await flush()
