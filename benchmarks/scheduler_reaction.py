"""What a thousand sleeping apps cost the scheduler, and how fast one of them is woken up. Prints one table.

    python benchmarks/scheduler_reaction.py [--apps 1000] [--seconds 20] [--wakes 100]

A real scheduler process over the embedded server and a host that takes orders and starts nothing. A wake-up is the time
from the submit's answer to the order to start a worker, as the host hears it; what follows is the start (see
cold_start.py). The processor time is that of the scheduler's process and of Redis, per second of rest; "none" is the
same without any app.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import store_app
import uvloop
from fal._spec import AppSpec, EnvironmentSpec
from servers import ROOT, embedded_redis

from scheduler.store import Store, keys
from scheduler.store.records import (
    EnvironmentRecord,
    EnvironmentState,
    HostRecord,
    RevisionRecord,
    RevisionState,
    Submission,
)

_HOST = HostRecord("box", ("S",), (), False, 2, 8000)


async def deploy(store: Store, count: int) -> list[str]:
    """Sleeping apps, each with a revision to run."""
    await store.environments.put(EnvironmentRecord("e", EnvironmentState.READY, "/nowhere"))
    names = [f"bench/app-{number}" for number in range(count)]
    for start in range(0, count, 50):
        await asyncio.gather(*(_deploy(store, name) for name in names[start : start + 50]))
    return names


async def _deploy(store: Store, app: str) -> None:
    spec = AppSpec(app.partition("/")[2], "A", "a.py", EnvironmentSpec("3.11"))
    record = RevisionRecord(app, "r1", spec, "b" * 64, (), "e", RevisionState.READY, 0)
    await store.apps.put_revision(record)
    await store.apps.point(app, "r1", auth=None, scaling=None, ephemeral=False)


async def rest(scheduler: psutil.Process, redis: psutil.Process, seconds: float) -> tuple[float, float]:
    """Share of a core that each uses while nothing happens."""
    before = [_cpu(process) for process in (scheduler, redis)]
    began = time.monotonic()
    await asyncio.sleep(seconds)
    spent = time.monotonic() - began
    after = [_cpu(process) for process in (scheduler, redis)]
    return (after[0] - before[0]) / spent, (after[1] - before[1]) / spent


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def wakes(store: Store, apps: list[str]) -> list[float]:
    """Milliseconds from each submit to the order for its worker, one app after the other."""
    heard: asyncio.Queue[float] = asyncio.Queue()
    subscription = await store.subscribe({keys.channel_host("box"): lambda _: heard.put_nowait(time.perf_counter())})
    taken = []
    for number, app in enumerate(apps):
        submission = Submission(app, f"q{number}", "queued", "POST", "/", "", (), b"{}", "http://x")
        await store.requests.submit(submission)
        sent = time.perf_counter()
        taken.append((await asyncio.wait_for(heard.get(), 30) - sent) * 1000)
    await subscription.close()
    return taken


async def _measure(
    url: str, folder: Path, process: subprocess.Popen[bytes], apps: int, seconds: float, count: int
) -> str:
    store = await store_app.connect(url, folder)
    try:
        scheduler = psutil.Process(process.pid)
        redis = next(p for p in psutil.Process().children() if "server" in p.name())
        await store.hosts.report(_HOST)
        await asyncio.sleep(3)
        none = await rest(scheduler, redis, seconds)
        names = await deploy(store, apps)
        await asyncio.sleep(3)
        many = await rest(scheduler, redis, seconds)
        await store.hosts.report(_HOST)
        taken = sorted(await wakes(store, names[:count]))
    finally:
        await store.close()
    p99 = taken[int(len(taken) * 0.99)]
    share = f"{many[0] * 1000:.1f} (none: {none[0] * 1000:.1f}) | {many[1] * 1000:.1f} (none: {none[1] * 1000:.1f})"
    return (
        "| sleeping apps | scheduler ms CPU/s | Redis ms CPU/s | wake-up p50 / p99 / max ms |\n|---|---|---|---|\n"
        f"| {apps} | {share} | {statistics.median(taken):.1f} / {p99:.1f} / {taken[-1]:.1f} |\n\n"
        f"wake-up: p99 under 50 ms: {'met' if p99 < 50 else 'missed'}"
    )


@contextmanager
def _scheduler(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    environ = {**os.environ, "KEEPWARM_REDIS_URL": url, "KEEPWARM_DATA": str(folder), "PYTHONPATH": str(ROOT)}
    with (folder / "scheduler.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "scheduler"], env=environ, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apps", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20, help="length of each rest")
    parser.add_argument("--wakes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kwb-") as scratch, embedded_redis(Path(scratch), "everysec") as url:
        folder = Path(scratch)
        with _scheduler(url, folder) as process:
            print(uvloop.run(_measure(url, folder, process, options.apps, options.seconds, options.wakes)))


if __name__ == "__main__":
    main()
