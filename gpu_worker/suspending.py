"""What a worker does when it is told to suspend its runner or to resume it, and what the store hears of that.

Leaves how to ``suspension``, and when to the scheduler. Orders that come twice count once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

from gpu_worker.assignment import Assignment
from gpu_worker.runner_talk import RunnerTalk
from gpu_worker.suspension import Suspension, SuspensionFailed, memory_is_short
from scheduler.store import Store
from scheduler.store.errors import StoreError, StoreUnavailable
from scheduler.store.records import WorkerState

#: Seconds between tries to tell the store what has happened.
_TELL_SECONDS = 0.5
_CLOSE_SECONDS = 1.0

Order = Literal["suspend", "resume"]


class Suspending:
    """Follows those orders for one ready worker.

    Args:
        busy: whether anything runs in the runner, requests that have ended without it included.
        check: have the runner's health checked (True) or leave it alone.
        stop: end the worker, see ``worker_life``.
    """

    def __init__(
        self,
        store: Store,
        assignment: Assignment,
        talk: RunnerTalk,
        suspension: Suspension,
        *,
        busy: Callable[[], bool],
        check: Callable[[bool], None],
        stop: Callable[[Literal["drain", "kill"], str], None],
    ) -> None:
        self._store = store
        self._a = assignment
        self._talk = talk
        self._suspension = suspension
        self._busy = busy
        self._check = check
        self._stop = stop
        self._proven = assignment.suspension_proven
        self._wanted: Order = "resume"
        self._task: asyncio.Task[None] | None = None

    @property
    def standing(self) -> bool:
        """Whether the runner stands still, or is about to."""
        return self._suspension.standing or self._task is not None

    def follow(self, order: Order) -> None:
        """Do it, after what is being done."""
        self._wanted = order
        if self._task is None and (order == "suspend") != self._suspension.standing:
            self._task = asyncio.ensure_future(self._follow())

    async def close(self) -> None:
        """Nothing more is done; what has just failed is still told."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def give_up_if_memory_is_short(self) -> None:
        """A suspended runner is a convenience: it goes before the host swaps."""
        if self._suspension.standing and self._task is None and memory_is_short():
            self._stop("kill", "the host needs the memory that its suspended runner takes")

    async def _follow(self) -> None:
        try:
            while (self._wanted == "suspend") != self._suspension.standing:
                if self._wanted == "suspend":
                    await self._suspend()
                else:
                    await self._resume()
        except SuspensionFailed as failure:
            await self._refused(str(failure), passing=failure.passing)
        finally:
            self._task = None

    async def _suspend(self) -> None:
        if self._busy():
            raise SuspensionFailed("code of an ended request still runs in it", passing=True)
        self._check(False)
        await self._suspension.suspend(proven=self._proven)
        if not self._proven:
            self._proven = True
            await self._tell_revision("")
        await self._tell(state=WorkerState.SUSPENDED)
        self._talk.logs.add("INFO", "This runner is suspended: its cards are free for others.")

    async def _resume(self) -> None:
        seconds = await self._suspension.resume()
        self._check(True)
        self._talk.logs.add("INFO", f"This runner is back after {seconds:.2f} s.")
        stages = {"resume": seconds, "total": seconds}
        await self._tell(state=WorkerState.IDLE, ready=True, stages=stages, start_kind="resume")

    async def _refused(self, why: str, *, passing: bool) -> None:
        """The worker ends, as it would have without all this; if it is for what the app is, the next ones are not
        tried."""
        self._talk.logs.add("WARN", f"This runner could not be suspended: {why}. It is ended instead.")
        if not passing:
            with contextlib.suppress(StoreError):
                await self._tell_revision(why)
        self._stop("kill" if self._suspension.standing else "drain", f"it could not be suspended: {why}")

    async def _tell_revision(self, refusal: str) -> None:
        await self._store.apps.suspension_tried(self._a.app, self._a.revision, refusal)

    async def _tell(self, **what: object) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                known = await self._store.workers.update(self._a.app, self._a.worker_id, **what)  # type: ignore[arg-type]
                if not known:
                    self._stop("kill", "its record is gone")
                return
            await asyncio.sleep(_TELL_SECONDS)
