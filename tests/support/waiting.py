"""Waiting for conditions instead of for time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], describe: str, timeout: float = 20.0, interval: float = 0.01) -> T:
    """The first truthy value of ``condition``; fails the test, naming what was waited for, after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for: {describe} (last value {value!r})")
        time.sleep(interval)


async def await_until(
    condition: Callable[[], Awaitable[T]], describe: str, timeout: float = 20.0, interval: float = 0.01
) -> T:
    """Like wait_until, for a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for: {describe} (last value {value!r})")
        await asyncio.sleep(interval)
