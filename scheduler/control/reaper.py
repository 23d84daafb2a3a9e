"""Clears up after the dead: leases that ran out, workers that went silent, deadlines that passed, back-offs that ended.

Owns when something counts as dead. Leaves every transition to the store's verbs, which check attempt and epoch
themselves: a reaper that is late or no longer leads changes nothing.
"""

from __future__ import annotations

import random

import structlog

from scheduler.control import outcomes
from scheduler.store import Store
from scheduler.store.outcomes import overdue
from scheduler.store.records import AppSeen, RevisionRecord, WorkerState
from scheduler.store.retry_rules import RetryRules

#: A worker without a sign of life for so long is gone; also one whose start was ordered and never begun.
WORKER_SILENT_MS = 20_000
#: The supervisor enforces startup_timeout itself; this is for a supervisor that does not.
STARTUP_GRACE_MS = 30_000
#: Pause before the next attempt of a request whose worker was lost: half to one and a half seconds, so that a host
#: full of requests does not come back as one burst.
LOST_ATTEMPT_DELAY_MS = 1000

#: Redis' clock moving on by more than this between two passes means that Redis was away, its clock was set, or this
#: machine slept: nobody could renew anything, so nobody is dead by it. They get SETTLE_MS to show it.
PAUSE_MS = 6000
SETTLE_MS = 12_000

log = structlog.get_logger("scheduler")


class Reaper:
    """Looks after one app at a time.

    Args:
        store: where everything is.
        worker_silent_ms: silence after which a worker counts as gone.
    """

    def __init__(self, store: Store, worker_silent_ms: int = WORKER_SILENT_MS) -> None:
        self._store = store
        self._worker_silent_ms = worker_silent_ms
        self._last_ms: int | None = None
        self._silence_counts_from_ms = 0

    async def once(self, seen: AppSeen, revision: RevisionRecord | None, epoch: int) -> bool:
        """Clear up in the app that was just seen; only what ``seen`` has is looked for.

        Returns:
            Whether anything changed, so that the app deserves another look.

        Raises:
            StaleLeader: another scheduler leads.
            StoreUnavailable: Redis does not answer.
        """
        changed = False
        if seen.delayed:
            changed |= await self._store.requests.promote(seen.app, epoch) > 0
        if seen.queued or seen.delayed:
            changed |= await self._end_overdue(seen.app)
        if seen.workers:
            await self._stop_endless_starts(seen, revision)
        if self._silence_counts(seen.now_ms):
            if seen.workers:
                changed |= await self._remove_silent(seen)
            if seen.in_progress:
                rules = RetryRules.of(revision.spec) if revision is not None else RetryRules()
                changed |= await self._return_lost(seen.app, epoch, rules)
        return changed

    def _silence_counts(self, now_ms: int) -> bool:
        passed = 0 if self._last_ms is None else now_ms - self._last_ms
        if passed > PAUSE_MS or passed < -PAUSE_MS:  # the clock of Redis may be put back
            log.info("time passed without us; silent workers get a moment", ms=passed)
            self._silence_counts_from_ms = now_ms + SETTLE_MS
        self._last_ms = now_ms
        return now_ms >= self._silence_counts_from_ms

    async def _end_overdue(self, app: str) -> bool:
        waiting = await self._store.requests.overdue_starts(app)
        ended = [await self._store.requests.fail_queued(app, request_id, overdue()) for request_id in waiting]
        return any(ended)

    async def _return_lost(self, app: str, epoch: int, rules: RetryRules) -> bool:
        expired = await self._store.requests.expired_leases(app)
        changed = False
        for request_id, attempt, worker_id in expired:
            wishes = await self._store.requests.retry_wishes(app, request_id)
            outcome = await self._store.requests.retry(
                app,
                request_id,
                attempt,
                worker_id=worker_id,
                reason="its worker stopped renewing the lease",
                crashed=True,
                delay_ms=round(LOST_ATTEMPT_DELAY_MS * random.uniform(0.5, 1.5)),
                fallback=outcomes.worker_lost(worker_id),
                epoch=epoch,
                condition="connection_error",
                budget=rules.budget("connection_error", wishes),
            )
            log.warning("lease ran out", app=app, request=request_id, attempt=attempt, worker=worker_id, then=outcome)
            changed |= outcome in ("requeued", "failed")
        return changed

    async def _remove_silent(self, seen: AppSeen) -> bool:
        app = seen.app
        silent = await self._store.workers.silent(app, seen.now_ms, self._worker_silent_ms)
        for worker in silent:
            log.warning("worker is silent", app=app, worker=worker.worker_id, host=worker.host, state=worker.state)
            await self._store.workers.remove(app, worker.worker_id, "no sign of life")
        return bool(silent)

    async def _stop_endless_starts(self, seen: AppSeen, revision: RevisionRecord | None) -> None:
        if revision is None:
            return
        limit = revision.spec.startup_timeout * 1000 + STARTUP_GRACE_MS
        for worker in seen.workers:
            starting = worker.state in (WorkerState.PENDING, WorkerState.SETUP)
            if starting and worker.stop_requested is None and seen.now_ms - worker.created_at_ms > limit:
                reason = f"not ready within startup_timeout ({revision.spec.startup_timeout:g} s)"
                await self._store.workers.request_stop(seen.app, worker.worker_id, "kill", reason)
