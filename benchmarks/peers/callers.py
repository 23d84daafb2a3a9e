"""The callers of a queue: N of them, each submitting its next job when it has seen the result of the last.

One measuring loop for every queue, so that only the queues differ. Imported by the scripts beside it, some of which
run in an environment that has nothing of ours: standard library and uvloop only.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import uvloop

Call = Callable[[int], Awaitable[int]]


class Queue(Protocol):
    """What a script says of its queue; ``url`` is ``unix:///path``. A job is a number, and its result that number."""

    def calling(self, url: str) -> AbstractAsyncContextManager[Call]:
        """Submits a job and returns its result."""

    async def work(self, url: str, slots: int) -> None:
        """Runs jobs, ``slots`` at once, until cancelled or killed."""


async def measure(call: Call, callers: int, seconds: float) -> dict[str, float]:
    """Round trips a second and their times in milliseconds.

    Raises:
        ValueError: a result belongs to another job.
    """
    times: list[float] = []
    started = time.perf_counter()
    until = started + seconds

    async def caller(number: int) -> None:
        job = number
        while (began := time.perf_counter()) < until:
            if (result := await call(job)) != job:
                raise ValueError(f"job {job} got the result {result!r}")
            times.append(time.perf_counter() - began)
            job += callers

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(number))
    took = time.perf_counter() - started
    times.sort()
    return {
        "round_trips": len(times),
        "per_second": len(times) / took,
        "p50_ms": 1000 * times[len(times) // 2],
        "p99_ms": 1000 * times[int(len(times) * 0.99)],
    }


async def _measure_all(queue: Queue, url: str, callers: list[int], seconds: float) -> dict[int, dict[str, float]]:
    async with queue.calling(url) as call:
        await call(0)  # the worker is there
        figures = {}
        for count in callers:
            await measure(call, count, seconds / 4)  # warm-up
            gc.collect()
            gc.disable()
            figures[count] = await measure(call, count, seconds)
            gc.enable()
        return figures


def main(queue: Queue) -> None:
    """``SCRIPT work URL SLOTS``, or ``SCRIPT call URL --callers N [N ...]``, which prints one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    work = parts.add_parser("work")
    work.add_argument("url")
    work.add_argument("slots", type=int)
    call = parts.add_parser("call")
    call.add_argument("url")
    call.add_argument("--callers", type=int, nargs="+", default=[1])
    call.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.part == "work":
        uvloop.run(queue.work(options.url, options.slots))
    else:
        print(json.dumps(uvloop.run(_measure_all(queue, options.url, options.callers, options.seconds))))
