"""Many callers waiting on direct calls at once, and what each costs the gateway. Prints one table.

    python benchmarks/queue_waiters.py [--callers 10000] [--rounds 3] [--seconds 10]

Each round starts a platform, opens a keep-alive connection for each caller on loopback and sends one POST on each, to
an app with 32 slots that answers only when a file appears. All wait at once then: 32 in the worker, the others in the
queue. The gateway's memory is its resident set then, less that before the first caller; after some seconds of waiting
the file appears and every caller must get its 200. Median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import psutil
import uvloop
from load import Caller
from servers import Platform, platform

_SLOTS = 32
_WARM_UP = 200
_AT_ONCE = 256  # connections being opened; the listening socket's backlog is bounded
_PATIENCE_SECONDS = 120.0
_MORE_FILES = 1000  # beside the callers' connections


@dataclass
class Round:
    """What one round saw; times in seconds, memory in bytes."""

    answered: int
    before: int
    waiting: int
    after: int
    took_to_wait: float
    cpu: float  # of the gateway while all wait, in cores
    redis_cpu: float
    took_to_answer: float


async def measure(running: Platform, url: str, callers: int, seconds: float, gate: Path) -> Round:
    """One round on a platform that has served nobody yet."""
    loop = asyncio.get_running_loop()
    gateway, redis = running.process("-m gateway"), running.process("-server")
    gate.touch()
    await _all_answered([await _call(url, gate) for _ in range(_WARM_UP)])
    gate.unlink()
    before = gateway.memory_info().rss
    started = time.perf_counter()
    waiting = []
    for start in range(0, callers, _AT_ONCE):
        waiting += await asyncio.gather(*(_call(url, gate) for _ in range(start, min(start + _AT_ONCE, callers))))
    while await loop.run_in_executor(None, running.queue_size, url) < callers - _SLOTS:
        if time.perf_counter() > started + _PATIENCE_SECONDS:
            raise SystemExit(f"{callers} callers did not come to wait within {_PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(0.1)
    took_to_wait = time.perf_counter() - started
    cpu, redis_cpu, began = _cpu(gateway), _cpu(redis), time.perf_counter()
    await asyncio.sleep(seconds)
    lasted = time.perf_counter() - began
    cpu, redis_cpu = (_cpu(gateway) - cpu) / lasted, (_cpu(redis) - redis_cpu) / lasted
    full = gateway.memory_info().rss
    early = sum(bool(caller.latencies) for caller in waiting)
    if early:
        raise SystemExit(f"{early} callers were answered before they should have been")
    opened = time.perf_counter()
    gate.touch()
    answered = await _all_answered(waiting)
    took_to_answer = time.perf_counter() - opened
    return Round(answered, before, full, gateway.memory_info().rss, took_to_wait, cpu, redis_cpu, took_to_answer)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return cast(float, times.user + times.system)


async def _call(url: str, gate: Path) -> Caller:
    """One connection that has sent its request."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    body = json.dumps({"until": str(gate)}).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    # `until` is in the past: it sends one request and hangs up when it is answered
    _, caller = await loop.create_connection(
        lambda: Caller(head.encode() + body, time.perf_counter()), parts.hostname, parts.port or 80
    )
    return caller


async def _all_answered(callers: list[Caller]) -> int:
    """How many got a 200.

    Raises:
        BadAnswer: one got something else. TimeoutError.
    """
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await asyncio.gather(*(caller.finished for caller in callers))
    return sum(len(caller.latencies) == 1 for caller in callers)


def run(callers: int, rounds: int, seconds: float) -> str:
    """A platform for each round, so that no memory of an earlier one is used again."""
    _allow_files(callers + _MORE_FILES)
    seen = []
    with tempfile.TemporaryDirectory(prefix="kwb-") as scratch:
        folder = Path(scratch)
        settings = {"KEEPWARM_MAX_WAITING": str(callers + _MORE_FILES)}
        for number in range(rounds):
            data = folder / f"r{number}"
            with platform(data, folder / "builds", "everysec", settings=settings) as running:
                url = running.deploy("benchmarks/peers/gate.py::Gate")
                seen.append(uvloop.run(measure(running, url, callers, seconds, data / "gate")))
    return table(callers, seen)


def _allow_files(count: int) -> None:
    """Each connection is a file, here and in the gateway, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
        except (ValueError, OSError):
            raise SystemExit(f"{count} open files are needed and {hard} are allowed; raise `ulimit -Hn`") from None


def table(callers: int, seen: list[Round]) -> str:
    """The medians as Markdown."""
    each = Round(*(statistics.median(getattr(one, field.name) for one in seen) for field in fields(Round)))
    per_waiter = statistics.median((one.waiting - one.before) / callers for one in seen)
    lines = [
        f"| {callers} callers wait at once | |",
        "|---|---|",
        f"| answered with a 200, in the worst round | {min(one.answered for one in seen)} |",
        f"| gateway's memory before, with all waiting, after: MB | {_mb(each.before)}, {_mb(each.waiting)},"
        f" {_mb(each.after)} |",
        f"| growth for each waiter, its connection included: KB | {per_waiter / 1000:.1f} |",
        f"| until all wait: s, callers/s | {each.took_to_wait:.1f}, {callers / each.took_to_wait:.0f} |",
        f"| CPU while all wait, gateway and Redis: % of a core | {100 * each.cpu:.0f}, {100 * each.redis_cpu:.0f} |",
        f"| from the first answer's cause to the last answer: s, answers/s | {each.took_to_answer:.1f},"
        f" {callers / each.took_to_answer:.0f} |",
    ]
    return "\n".join(lines)


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="for how long all wait")
    options = parser.parse_args()
    print(run(options.callers, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
