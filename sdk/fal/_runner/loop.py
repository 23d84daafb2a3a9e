"""The event loop of a runner: asyncio's own, which asks the kernel for news less often while it has work."""

from __future__ import annotations

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
    """Passes over every second look that would not wait: the first turn after a request came in has its task to run.

    Each look is a system call, a good part of what a short request costs.
    """

    _passed = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0 and not self._passed:
            self._passed = True
            return []
        self._passed = False
        return super().select(timeout)


def new_loop() -> asyncio.AbstractEventLoop:
    """The loop that user code asked for (uvloop, say, by a policy), else asyncio's with the selector above."""
    loop = asyncio.new_event_loop()
    if type(loop) is not asyncio.SelectorEventLoop:
        return loop
    loop.close()
    return asyncio.SelectorEventLoop(_Selector())
