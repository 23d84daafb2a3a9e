"""One look at one app, and what follows: observe, decide, place, start and stop workers.

Owns what is remembered between looks. Leaves when to look to ``dispatch`` and ``service``, how many workers are right
to ``policy``, where they go to ``placing``, and clearing up after the dead to ``reaper``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from scheduler.control import outcomes
from scheduler.control.placing import Placer
from scheduler.control.policy import Decision, Memory, Policy, decide
from scheduler.store import Store
from scheduler.store.records import (
    AppRecord,
    AppSeen,
    EnvironmentState,
    LogEntry,
    Outcome,
    RevisionRecord,
    WorkerRecord,
    WorkerState,
)

#: Consecutive failed starts after which queued requests end too; direct ones end with the first.
FAILURES_THAT_END_THE_QUEUE = 3
#: How long direct requests wait when no host offers what the app needs; an agent that restarts is back by then.
NO_OFFER_PATIENCE_MS = 30_000
#: An environment whose rebuild failed is tried again for the first request after this time.
REBUILD_PAUSE_MS = 60_000

log = structlog.get_logger("scheduler")


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found and did.

    Args:
        seen: demand and supply as they were.
        asleep: nothing runs, waits or is wanted: only an event can change that.
        again_at_ms: when time alone will change the decision.
        freed: there is room that was taken, which other apps may be waiting for.
        blocked: wants a worker and has no place for it.
        revision: the revision that the app points at, None when there is none.
    """

    seen: AppSeen
    asleep: bool
    again_at_ms: int | None = None
    freed: bool = False
    blocked: bool = False
    revision: RevisionRecord | None = None


class Reconciler:
    """Carries decisions out, for one leader. Not more than one look per app at a time.

    Args:
        store: where everything is.
        linger_s: how long a worker with a GPU stays past its keep_alive where nobody waits for one.
    """

    def __init__(self, store: Store, linger_s: float = 0) -> None:
        self._store = store
        self._placer = Placer(store)
        self._linger_ms = round(linger_s * 1000)
        self._memories: dict[str, Memory] = {}
        self._revisions: dict[str, str] = {}
        self._held: dict[str, tuple[str, int, int]] = {}

    async def once(self, app: str, epoch: int) -> Look:
        """Look at ``app`` and do what follows.

        Raises:
            StaleLeader: another scheduler leads; nothing was placed.
            StoreUnavailable: Redis does not answer.
        """
        record, seen, revision = await self._read(app, epoch)
        workers = tuple(w for w in seen.workers if w.state is not WorkerState.TERMINATED)
        freed = self._placer.update(app, workers)
        if record is None or revision is None:
            await self._without_revision(seen, workers)
            return Look(seen, not (workers or seen.queued or seen.delayed or seen.in_progress), freed=freed)

        policy = Policy(
            revision.revision,
            record.scaling,
            revision.spec.max_multiplexing,
            revision.startup_failures,
            revision.last_startup_failure_at_ms,
            revision.crash_streak,
            revision.last_crash_at_ms,
            self._linger_ms,
        )
        decision, self._memories[app] = decide(policy, seen, self._memories.get(app, Memory()), seen.now_ms)
        for stop in decision.stops:
            how = stop.how
            if how == "idle" and await self._placer.suspends(next(w for w in workers if w.worker_id == stop.worker_id)):
                how = "suspend"
            log.info("stop", app=app, worker=stop.worker_id, how=how, reason=stop.reason)
            await self._store.workers.request_stop(app, stop.worker_id, how, stop.reason)
        if decision.held is not None:
            await self._say_held(revision, seen, decision.held)
            await self._end_hopeless(revision, workers)
        blocked = decision.start > 0 and not await self._start(record, revision, seen, decision.start, epoch)
        if not blocked:
            await self._placer.wants_no_more(app)
        asleep = not (workers or seen.queued or seen.delayed or seen.in_progress or _wants_more(decision))
        if asleep:
            self.forget(app)
        times = [at for at in (decision.again_at_ms, seen.next_delayed_at_ms) if at is not None]
        return Look(seen, asleep, min(times, default=None), freed, blocked, revision)

    async def begin(self) -> None:
        """At the start of a reign: learn what an earlier leader has placed.

        Raises:
            StoreUnavailable.
        """
        await self._placer.learn_the_fleet()

    def forget(self, app: str) -> None:
        """Drop what is remembered of an app at rest; a sleeping app costs no memory here."""
        self._placer.forget(app)
        for kept in (self._memories, self._revisions, self._held):
            kept.pop(app, None)

    async def _read(self, app: str, epoch: int) -> tuple[AppRecord | None, AppSeen, RevisionRecord | None]:
        """One round trip while the app keeps its revision, two after a deploy."""
        apps = self._store.apps
        known = self._revisions.get(app)
        record, seen, revision = await asyncio.gather(
            apps.get(app), apps.observe(app, epoch), apps.revision(app, known) if known is not None else _nothing()
        )
        if record is None or record.revision is None:
            return record, seen, None
        if revision is None or revision.revision != record.revision:
            revision = await apps.revision(app, record.revision)
            self._revisions[app] = record.revision
        return record, seen, revision

    async def _without_revision(self, seen: AppSeen, workers: tuple[WorkerRecord, ...]) -> None:
        """The app was deleted: whoever still works for it finishes and leaves, and what came back to wait ends."""
        app = seen.app
        self.forget(app)
        if seen.queued or seen.delayed:
            await self._store.requests.fail_deleted(app)
        self._placer.update(app, workers)
        for worker in workers:
            if not worker.leaves:
                await self._store.workers.request_stop(app, worker.worker_id, "drain", "the app was deleted")

    async def _say_held(self, revision: RevisionRecord, seen: AppSeen, held: str) -> None:
        """Once for each crash or failed start."""
        trouble = (revision.revision, revision.startup_failures, revision.crash_streak)
        if self._held.get(revision.app) == trouble:
            return
        self._held[revision.app] = trouble
        log.warning("held back", app=revision.app, why=held)
        if revision.crash_streak:
            line = f"No new worker for now: {held}. The last one: {revision.last_crash}"
            await self._store.logs.append(revision.app, [LogEntry("", seen.now_ms / 1000, "WARN", line)])

    async def _end_hopeless(self, revision: RevisionRecord, workers: tuple[WorkerRecord, ...]) -> None:
        """Requests that wait for a revision which just failed to start, with nobody else to serve them, end now.

        A direct caller holds a connection and wants the cause; a queued request may outlive a passing trouble, so it
        gets three tries.
        """
        error = revision.last_startup_error
        serving = (WorkerState.PENDING, WorkerState.SETUP, WorkerState.IDLE, WorkerState.RUNNING)
        if error is None or any(w.state in serving and w.takes_requests for w in workers):
            return
        mode = None if revision.startup_failures >= FAILURES_THAT_END_THE_QUEUE else "direct"
        await self._fail_waiting(
            revision.app, outcomes.startup_failed(revision.app, error), direct_only=mode is not None
        )

    async def _fail_waiting(self, app: str, outcome: Outcome, *, direct_only: bool) -> None:
        ended = await self._store.requests.fail_waiting(app, outcome, mode="direct" if direct_only else None)
        if ended:
            log.warning("ended waiting requests", app=app, count=ended, error_type=outcome.error_type)

    async def _start(self, record: AppRecord, revision: RevisionRecord, seen: AppSeen, count: int, epoch: int) -> bool:
        """Place up to ``count`` workers; False when there is no place for one of them."""
        if not await self._environment_ready(revision, seen.now_ms):
            return True
        if await self._placer.start(record, revision, seen, count, epoch):
            return True
        waiting = self._placer.waiting(record.app)
        if waiting is not None and not waiting.blocked.busy and seen.now_ms - waiting.since_ms >= NO_OFFER_PATIENCE_MS:
            await self._fail_waiting(record.app, outcomes.no_place(waiting.blocked.reason), direct_only=True)
        return False

    async def _environment_ready(self, revision: RevisionRecord, now_ms: int) -> bool:
        """Whether the environment is there; a lost one is asked for again, and who waits on a broken one ends."""
        environment = await self._store.environments.get(revision.environment_key)
        if environment is not None and environment.state is EnvironmentState.READY:
            return True
        app = revision.app
        if environment is None:
            log.info("environment is missing, building it again", app=app, environment=revision.environment_key)
            await self._store.environments.request_build(app, revision.revision)
        elif environment.state is EnvironmentState.FAILED:
            if now_ms - environment.updated_at_ms >= REBUILD_PAUSE_MS:
                await self._store.environments.request_build(app, revision.revision)
            else:
                outcome = outcomes.environment_failed(app, environment.error)
                await self._fail_waiting(app, outcome, direct_only=False)
        return False


async def _nothing() -> None:
    return None


def _wants_more(decision: Decision) -> bool:
    return decision.desired > 0 or decision.held is not None or decision.again_at_ms is not None
