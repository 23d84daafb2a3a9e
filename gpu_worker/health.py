"""Asks a runner whether it still works, as its app wishes, and says when it does not.

A check is a request of the supervisor's own: it is in no queue and no count, and takes no slot. Leaves what follows
from a runner that fails to ``worker_life``, and runners whose process hangs to its pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from fal._runner.protocol import Cancel, Message, Request, Response
from fal._spec import HealthCheckSpec

#: Begins the id of each check; ids of callers' requests are UUIDs.
CHECK_ID = "health-check-"
#: Answers after which a check is due though none is planned: those that say nothing about whose fault it was.
DOUBTFUL = frozenset({500, 502, 504})
#: Checks on demand are no closer than this part of the pause between regular ones.
DEMAND_SHARE = 5
#: Most characters of a failing answer that are told.
MOST_TOLD = 200
_HEADERS = [(b"content-type", b"application/json"), (b"x-fal-runner-health-check", b"1")]

Result = Literal["passed", "failed", "silent", "unclear"]


class Load(Protocol):
    """What the requests of a runner tell about a check that was not answered. Times of the running loop."""

    def busy_since(self, at: float) -> bool:
        """Whether a request has been at the runner at any moment since then."""

    def overtaken(self, at: float) -> bool:
        """Whether a request that was sent after that moment has been answered."""


class HealthChecks:
    """The checks of one ready runner.

    Args:
        check: as the app wants it.
        pause: seconds between the beginnings of two regular checks.
        counts_from: ``time.monotonic()`` from which on failures count though no check has passed.
        load: the runner's requests.
        send: tells the runner.
        passed: awaited after each check that passed, with the loop's time at which it was sent.
        excused: called once, with the words for it, when a check fails that does not count yet.
        failed: awaited at most once, when the app's number of failures in a row is reached, with the words for it and
            whether the runner has left every one of them without an answer.
    """

    def __init__(
        self,
        check: HealthCheckSpec,
        pause: float,
        counts_from: float,
        load: Load,
        send: Callable[[Message], None],
        *,
        passed: Callable[[float], Awaitable[None]],
        excused: Callable[[str], None],
        failed: Callable[[str, bool], Awaitable[None]],
    ) -> None:
        self._check = check
        self._pause = pause
        self._counts_from = counts_from
        self._load = load
        self._send = send
        self._passed = passed
        self._excused = excused
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._began = float("-inf")
        self._id = ""
        self._sent_at = 0.0
        self._answer: asyncio.Future[Response] | None = None
        self._last = ""
        self._failures = self._silences = 0
        self._unclear = self._ever_passed = self._ever_excused = False

    @property
    def name(self) -> str:
        """The check in words, such as ``health check POST /check``."""
        return f"health check {self._check.method} {self._check.path}"

    def ask_soon(self) -> None:
        """Something went wrong that a check can explain. Many such wishes are one check."""
        self._wanted.set()

    def receive(self, answer: Response) -> None:
        """Take an answer that belongs to no request."""
        if answer.id == self._id and self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    async def run(self) -> None:
        """Check until the runner has failed for good."""
        try:
            while not await self._once():
                pass
        finally:
            self._withdraw()

    async def _once(self) -> bool:
        """Wait for the next check and make it; whether the runner has failed for good."""
        await self._until_due()
        self._began = self._loop.time()
        result = await self._ask()
        self._unclear = result == "unclear"
        if result == "passed":
            self._ever_passed = True
            self._failures = self._silences = 0
            await self._passed(self._sent_at)
        elif not self._unclear:
            return await self._count(silent=result == "silent")
        return False

    async def _until_due(self) -> None:
        while True:
            due = float("inf")
            if self._check.call_regularly or self._failures or self._unclear:  # what demand brought up is looked into
                due = self._began + self._pause
            if self._wanted.is_set():
                due = min(due, self._began + self._pause / DEMAND_SHARE)
            left = due - self._loop.time()
            if left <= 0:
                self._wanted.clear()
                return
            if self._wanted.is_set():
                await asyncio.sleep(left)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), left if due < float("inf") else None)

    async def _ask(self) -> Result:
        """One check. While the last one still runs at the runner, it is waited for instead of adding another one."""
        began = self._loop.time()
        if self._answer is not None and not await self._answered(self._answer):
            return self._unanswered(began)
        self._id = f"{CHECK_ID}{uuid.uuid4()}"
        self._sent_at = began = self._loop.time()
        self._answer = self._loop.create_future()
        headers = [*_HEADERS, (b"x-fal-request-id", self._id.encode())]
        method, body = self._check.method, b"" if self._check.method == "GET" else b"{}"
        self._send(Request(self._id, 0, method, self._check.path, b"", headers, body, "", stream=False))
        if not await self._answered(self._answer):
            self._withdraw()
            return self._unanswered(began)
        answer, self._answer = self._answer.result(), None
        if answer.status < 400:
            return "passed"
        text = " ".join(answer.body[: 4 * MOST_TOLD].decode("utf-8", "replace").split())
        self._last = f"{answer.status} {text[:MOST_TOLD]}".rstrip()
        return "failed"

    async def _answered(self, answer: asyncio.Future[Response]) -> bool:
        await asyncio.wait({answer}, timeout=self._check.timeout_seconds)
        return answer.done()

    def _withdraw(self) -> None:
        """The answer is not waited for any more; its handler is told so."""
        if self._answer is not None and not self._answer.done():
            self._send(Cancel(self._id))

    def _unanswered(self, began: float) -> Result:
        """A handler that holds the loop or the GIL for a long computation is no fault: only a check that others have
        overtaken, or that had the runner to itself, was left without an answer."""
        if self._load.busy_since(began) and not self._load.overtaken(self._sent_at):
            return "unclear"
        self._last = f"no answer within {self._check.timeout_seconds:g} s"
        return "silent"

    async def _count(self, *, silent: bool) -> bool:
        if not self._ever_passed and time.monotonic() < self._counts_from:
            if not self._ever_excused:
                self._ever_excused = True
                counts = "failures count once one has passed or the start period is over"
                self._excused(f"The {self.name} fails ({self._last}); {counts}.")
            return False
        self._failures += 1
        self._silences = self._silences + 1 if silent else 0
        threshold = self._check.failure_threshold
        if self._failures < threshold:
            return False
        times = "once" if threshold == 1 else f"{threshold} times in a row"
        await self._failed(f"{self.name} failed {times}, last: {self._last}", self._silences >= threshold)
        return True
