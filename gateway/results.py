"""Hands finished requests to the callers who wait for them: one subscription for the whole process.

A push can be lost, so that every waiter's state is read again every two seconds: the record is the truth. Also ends
direct requests whose start deadline has passed, should no scheduler do it, and waiting for a store that stays away.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

import structlog

from scheduler.store import Store, keys, outcomes
from scheduler.store.errors import StoreError, StoreUnavailable
from scheduler.store.records import RequestRecord, RequestState
from scheduler.store.subscriptions import Subscription

from .asgi import Receive, until_hang_up

log = structlog.get_logger("gateway.results")

#: Seconds after which a waiter's state is read without its record having been pushed.
REREAD_SECONDS = 2.0
_TICK_SECONDS = 0.2
_READ_AT_ONCE = 64
#: Seconds past its start deadline that a request is left to the scheduler.
_SCHEDULER_GRACE = 2.0
#: Seconds, taken together, that the store may be away while a caller waits; an answer could not be stored then.
AWAY_SECONDS = 15.0
#: Seconds for a sign of life of the store, and between looks while it is away.
_PING_SECONDS = 3.0
_AWAY_TICK_SECONDS = 0.5
#: Of the time that the store is there, the part that makes up for absences: a call of hours survives short ones.
_FORGIVEN = 0.1


def _next_read(waiter: Waiter, now: float) -> float:
    due = now + REREAD_SECONDS
    if waiter.start_deadline is not None and waiter.start_deadline + _SCHEDULER_GRACE > now:
        due = min(due, waiter.start_deadline + _SCHEDULER_GRACE)
    return due


class Waiter:
    """One caller who waits. ``wait`` returns when one of the marks below has been set.

    ``record``: the request has ended. ``output``: pieces of a streamed answer may be there. ``gone``: the caller hung
    up. ``expired``: it has waited as long as it may. ``lost``: the store no longer knows the request. ``cut_off``: why
    the store cannot say how it ends.
    """

    __slots__ = (
        "_future", "_loop", "_receive", "_watching", "app", "away", "cut_off", "deadline", "expired", "gone", "lost",
        "next_read", "output", "record", "request_id", "start_deadline",
    )  # fmt: skip

    def __init__(
        self,
        app: str,
        request_id: str,
        deadline: float,
        start_deadline: float | None,
        now: float,
        loop: asyncio.AbstractEventLoop,
        receive: Receive | None,
    ) -> None:
        self._loop = loop
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        self.app = app
        self.request_id = request_id
        self.deadline = deadline
        self.start_deadline = start_deadline
        self.next_read = _next_read(self, now)
        self.record: RequestRecord | None = None
        self.output = False
        self.gone = False
        self.expired = False
        self.lost = False
        self.away = 0.0
        self.cut_off: str | None = None
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Until something has happened; at once when it has already."""
        if self.record is None and not (self.output or self.gone or self.expired or self.lost or self.cut_off):
            self._future = self._loop.create_future()
            await self._future

    async def until(self, done: Callable[[], bool]) -> None:
        """Until ``done()``, looked at whenever something has happened."""
        while not done():
            self._future = self._loop.create_future()
            await self._future

    def wake(self) -> None:
        """Call after setting a mark."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def watch(self) -> None:
        """Begin to notice when the caller hangs up. Answers that come at once need nobody to watch."""
        if self._watching is None and self._receive is not None:
            self._watching = self._loop.create_task(self._watch(self._receive))

    async def _watch(self, receive: Receive) -> None:
        await until_hang_up(receive)
        self.gone = True
        self.wake()

    def close(self) -> None:
        """Nobody waits any more."""
        if self._watching is not None:
            self._watching.cancel()


class Results:
    """The waiters of one gateway process; ``gateway_id`` is what their submissions name."""

    def __init__(self, store: Store, max_wait: float) -> None:
        self.gateway_id = uuid.uuid4().hex[:12]
        self._store = store
        self._max_wait = max_wait
        self._waiters: dict[str, Waiter] = {}
        self._loop: asyncio.AbstractEventLoop
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._reads: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Subscribe, before anything is submitted in this gateway's name."""
        self._subscription = await self._store.subscribe(
            {keys.channel_gateway(self.gateway_id): self._on_push}, on_reconnect=self._read_all_soon
        )
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.create_task(self._sweep_for_ever(), name="results-sweeper")

    async def close(self) -> None:
        """Stop listening; waiters that are left are not woken."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, *self._reads, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()

    def expect(self, app: str, request_id: str, start_timeout: float | None, receive: Receive | None) -> Waiter:
        """Begin to wait; call it before the submit, so that no push can come too early.

        ``receive`` is where the caller's hanging up is heard, once the body has been read; None: somebody else listens.
        """
        now = time.monotonic()
        start_deadline = None if start_timeout is None else now + start_timeout
        waiter = Waiter(app, request_id, now + self._max_wait, start_deadline, now, self._loop, receive)
        self._waiters[request_id] = waiter
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """Nobody waits for it any more."""
        self._waiters.pop(waiter.request_id, None)
        waiter.close()

    def _on_push(self, payload: bytes) -> None:
        if payload[:7] == b"output ":
            waiter = self._waiters.get(payload[7:].decode("ascii", "replace"))
            if waiter is not None:
                waiter.output = True
                waiter.wake()
            return
        request_id, record = self._store.requests.decode_push(payload)
        waiter = self._waiters.get(request_id)
        if waiter is None:
            return
        if record is not None:
            waiter.record = record
            waiter.wake()
        else:  # too large to be pushed
            task = self._loop.create_task(self._read(waiter))
            self._reads.add(task)
            task.add_done_callback(self._reads.discard)

    def _read_all_soon(self) -> None:
        for waiter in self._waiters.values():
            waiter.next_read = 0.0

    async def _sweep_for_ever(self) -> None:
        pause = _TICK_SECONDS
        while True:
            began = time.monotonic()
            await asyncio.sleep(pause)
            try:
                await self.sweep()
                pause = _TICK_SECONDS
            except StoreError as error:
                log.warning("waiting requests could not be read again", error=str(error), waiting=len(self._waiters))
                self._away_for(time.monotonic() - began, str(error))
                pause = _AWAY_TICK_SECONDS

    def _away_for(self, seconds: float, why: str) -> None:
        for waiter in self._waiters.values():
            waiter.away += seconds
            if waiter.away >= AWAY_SECONDS and waiter.cut_off is None:
                waiter.cut_off = why
                waiter.wake()

    async def sweep(self) -> int:
        """Watch over callers that wait for longer; read again what waits for its push. Returns how many were read.

        Raises:
            StoreError: the store does not answer; the next sweep tries again.
        """
        now = time.monotonic()
        for waiter in self._waiters.values():
            waiter.watch()
        due = [waiter for waiter in self._waiters.values() if waiter.next_read <= now]
        if due:
            await self._ping()
        for waiter in due:
            waiter.away = max(0.0, waiter.away - _FORGIVEN * REREAD_SECONDS)
        for start in range(0, len(due), _READ_AT_ONCE):
            await asyncio.gather(*(self._read(waiter, strict=True) for waiter in due[start : start + _READ_AT_ONCE]))
        return len(due)

    async def _ping(self) -> None:
        """A sign of life; a Redis that can be read but takes no results, for its disk is full, gives none."""
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await self._store.ping()
        except TimeoutError:
            raise StoreUnavailable("Redis does not answer.") from None

    async def _read(self, waiter: Waiter, strict: bool = False) -> None:
        now = time.monotonic()
        waiter.next_read = _next_read(waiter, now)
        try:
            state = await self._state(waiter, now)
            if state is not None and state.terminal:
                record = await self._store.requests.get(waiter.app, waiter.request_id)
                waiter.record = record or waiter.record
        except StoreError:
            waiter.next_read = 0.0
            if strict:
                raise
            return
        if state is None or (state.terminal and waiter.record is None):
            waiter.lost = True
        # Pieces may be there whose push was lost; a look costs little, and an answer that was streamed is only there.
        waiter.output = state not in (None, RequestState.IN_QUEUE)
        if now > waiter.deadline:
            waiter.expired = True
        if state is not RequestState.IN_QUEUE or waiter.expired:  # else there is nothing new to be looked at
            waiter.wake()

    async def _state(self, waiter: Waiter, now: float) -> RequestState | None:
        """Of most waiters only the state is read: the whole record counts the requests ahead, and with thousands that
        wait Redis would do nothing else."""
        requests = self._store.requests
        state = await requests.state(waiter.app, waiter.request_id)
        if state is RequestState.IN_QUEUE and self._overdue(waiter, now):
            await requests.fail_queued(waiter.app, waiter.request_id, outcomes.overdue())
            state = await requests.state(waiter.app, waiter.request_id)
        return state

    @staticmethod
    def _overdue(waiter: Waiter, now: float) -> bool:
        return waiter.start_deadline is not None and now >= waiter.start_deadline + _SCHEDULER_GRACE
