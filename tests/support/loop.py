"""Running a coroutine from a plain test on a fresh event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(coro: Coroutine[Any, Any, T]) -> T:
    """Run ``coro`` to its end on a loop of its own, with asyncio's debug checks off."""
    return asyncio.run(coro)
