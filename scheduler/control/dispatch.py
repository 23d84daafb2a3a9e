"""Turns wake-ups into looks: one at a time per app, again if woken meanwhile, a bounded number of apps at once.

Owns coalescing and timers. Leaves what a look does to whoever gave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

#: Pause between two looks at one app; the first wake-up after a quiet time is never delayed. In seconds.
REST_S = 0.02


class Dispatcher:
    """Runs ``look(app)`` for every wake-up, without ever running it twice at once for one app.

    A burst of a thousand submissions wakes an app a thousand times; it is looked at once, and once more for whatever
    came while that look was under way or within ``REST_S`` after it. A busy app costs 50 looks a second at most.

    Args:
        look: handles its own errors; whatever it raises ends the task loudly.
        limit: looks under way at once.
    """

    def __init__(self, look: Callable[[str], Awaitable[None]], limit: int = 32) -> None:
        self._look = look
        self._slots = asyncio.Semaphore(limit)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._resting: dict[str, asyncio.TimerHandle] = {}
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def wake(self, app: str) -> None:
        """Look at ``app`` as soon as possible."""
        if self._closed:
            return
        if app in self._running or app in self._resting:
            self._again.add(app)
            return
        task = asyncio.get_running_loop().create_task(self._run(app))
        self._running[app] = task
        task.add_done_callback(lambda _: self._ended(app))

    def wake_in(self, app: str, seconds: float) -> None:
        """Look at ``app`` after ``seconds``; replaces the app's earlier timer."""
        self.forget_timer(app)
        if not self._closed:
            loop = asyncio.get_running_loop()
            self._timers[app] = loop.call_later(max(0.0, seconds), self._on_timer, app)

    def forget_timer(self, app: str) -> None:
        """No look by time for ``app``."""
        timer = self._timers.pop(app, None)
        if timer is not None:
            timer.cancel()

    async def close(self, grace: float) -> None:
        """Take no more wake-ups and let looks under way end, for at most ``grace`` seconds."""
        self._closed = True
        for timers in (self._timers, self._resting):
            for timer in timers.values():
                timer.cancel()
            timers.clear()
        tasks = list(self._running.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, app: str) -> None:
        async with self._slots:
            self._again.discard(app)
            await self._look(app)

    def _ended(self, app: str) -> None:
        self._running.pop(app, None)
        if not self._closed:
            self._resting[app] = asyncio.get_running_loop().call_later(REST_S, self._rested, app)

    def _rested(self, app: str) -> None:
        self._resting.pop(app, None)
        if app in self._again:
            self._again.discard(app)
            self.wake(app)

    def _on_timer(self, app: str) -> None:
        self._timers.pop(app, None)
        self.wake(app)
