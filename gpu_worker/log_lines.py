"""What the app prints, on its way to the app's log: lines cut out of pipes, bounded, batched.

Nothing that user code prints may cost the platform memory without limit, so lines are cut, floods are dropped and
counted, and a store that does not answer loses the oldest lines.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from scheduler.store.errors import StoreError
from scheduler.store.records import LogEntry

LINE_LIMIT = 16 * 1024
#: Characters per second that one worker may log for long, and how much it may save up for a burst.
RATE = 1024 * 1024
BURST = 4 * RATE
#: Lines kept while the store does not answer.
BACKLOG = 5_000
BATCH = 500
#: Lines of a pipe that are remembered: a dying interpreter writes the stacks of all its threads.
LAST_LINES = 100
FLUSH_SECONDS = 0.1
SHORTEST_SECRET = 8
_CUT = "… (line cut at 16 KB)"
#: Carriage returns end a line too: progress bars are made of them.
_LINE_END = re.compile(rb"[\r\n]+")


class LogLines:
    """The log of one worker.

    Args:
        append: stores entries; StoreError means "not now".
        worker_id: stamped on every line.
        secrets: values that no line shows, see ``masked``.
    """

    def __init__(
        self,
        append: Callable[[Sequence[LogEntry]], Awaitable[object]],
        worker_id: str,
        secrets: Iterable[str] = (),
    ) -> None:
        self._append = append
        self._secrets = _pattern(secrets)
        self._worker_id = worker_id
        self._waiting: list[LogEntry] = []
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None  # kept, because the loop holds tasks weakly
        self._sending = asyncio.Lock()
        self._allowance = float(BURST)
        self._refilled_at = time.monotonic()
        self._dropped = 0

    def add(self, level: str, message: str, *, at: float | None = None, request_id: str | None = None) -> None:
        """Take a line; it is stored within FLUSH_SECONDS, or dropped and counted when there are too many."""
        message = self.masked(message)
        if not self._allowed(len(message) + 64):
            self._dropped += 1
            return
        if self._dropped:
            self._push("WARN", f"{self._dropped} log lines were dropped: more than 1 MB per second", time.time(), None)
            self._dropped = 0
        if len(message) > LINE_LIMIT:
            message = message[:LINE_LIMIT] + _CUT
        self._push(level, message, time.time() if at is None else at, request_id)

    def masked(self, text: str) -> str:
        """``text`` with stars in place of each secret, or of a line of one.

        Those of fewer than SHORTEST_SECRET characters stay: hiding every "1" would hide the log. So does what the app
        changed before it printed it, by an encoding for instance.
        """
        return text if self._secrets is None else self._secrets.sub("***", text)

    def allowed_now(self) -> bool:
        """Whether a line would be kept; lets readers of a flood skip cutting it into lines."""
        return self._allowed(0)

    def drop(self, lines: int) -> None:
        """Count lines that were not even read."""
        self._dropped += lines

    def pending(self) -> bool:
        """Whether lines wait to be stored."""
        return bool(self._waiting)

    async def flush(self) -> None:
        """Store everything taken so far; on a failing store the lines stay (the oldest may be lost)."""
        async with self._sending:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                try:
                    await self._append(batch)
                except StoreError:
                    self._waiting = (batch + self._waiting)[-BACKLOG:]
                    self._schedule(1.0)
                    return

    def flush_soon(self) -> None:
        """Store what waits without waiting for it: the store has just become reachable."""
        if self._timer is not None:
            self._timer.cancel()
        self._flush_later()

    def _push(self, level: str, message: str, at: float, request_id: str | None) -> None:
        self._waiting.append(LogEntry("", at, level, message, self._worker_id, request_id))
        if len(self._waiting) > BACKLOG:
            del self._waiting[: BACKLOG // 10]
        self._schedule(FLUSH_SECONDS)

    def _schedule(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._flush_later)

    def _flush_later(self) -> None:
        self._timer = None
        self._task = asyncio.get_running_loop().create_task(self.flush())

    def _allowed(self, size: int) -> bool:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._refilled_at) * RATE)
        self._refilled_at = now
        if self._allowance <= size:
            return False
        self._allowance -= size
        return True


def _pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    pieces = {line.strip() for secret in secrets for line in (secret, *secret.splitlines())}
    shown = sorted((piece for piece in pieces if len(piece) >= SHORTEST_SECRET), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, shown))) if shown else None


class PipeLines(asyncio.Protocol):
    """Cuts what a pipe delivers into lines.

    Args:
        lines: where they go.
        level: ``STDOUT`` or ``STDERR``.
    """

    def __init__(self, lines: LogLines, level: str) -> None:
        self._lines = lines
        self._level = level
        self._rest = b""
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if not self._lines.allowed_now():
            self._lines.drop(data.count(b"\n"))
            self._rest = b""
            return
        *whole, rest = _LINE_END.split(self._rest + data)
        for line in whole:
            self._take(line)
        # One byte more than the limit, so that the cut is seen; the rest of an endless line is not kept.
        self._rest = rest[: LINE_LIMIT + 1]

    def connection_lost(self, exc: Exception | None) -> None:
        self._take(self._rest)
        self._rest = b""
        if not self.ended.done():
            self.ended.set_result(None)

    def _take(self, line: bytes) -> None:
        if line:
            text = self._lines.masked(line.decode("utf-8", "replace"))
            self.last.append(text[:LINE_LIMIT])
            self._lines.add(self._level, text)
