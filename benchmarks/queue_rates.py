"""How many requests a second the store takes in and gives out, alone: no HTTP, no runner. Prints one table.

    python benchmarks/queue_rates.py [--rounds 5] [--seconds 0.7]

One Python process and the embedded server, once for each ``appendfsync``, taking turns round after round; each figure
is the median of the rounds. A gateway has one connection for all its callers and sends what they submit in one turn of
its event loop as one write: that is the row "64 callers". A cycle is a claim and its finish, which is one round trip,
for the finish takes the next request along.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Literal

import store_app
import uvloop
from servers import embedded_redis

from scheduler.store import Inbox, Store

Fsync = Literal["always", "everysec"]
_FSYNCS: tuple[Fsync, ...] = ("always", "everysec")
_MANY = 64
_BODY = b'{"prompt":"a rhino in the rain"}'

_ONE, _CONNECTIONS, _CALLERS = (
    "submits/s, 1 connection",
    f"submits/s, {_MANY} connections",
    f"submits/s, 1 connection, {_MANY} callers",
)
_CYCLES = {slots: f"claim+finish cycles/s, {slots} slot{'s' if slots > 1 else ''}" for slots in (1, _MANY)}
_DISK = "the disk alone: 200 bytes written and synced, per second"
ROWS = (_ONE, _CONNECTIONS, _CALLERS, *_CYCLES.values(), _DISK)

Samples = dict[tuple[str, Fsync], list[float]]
_ids = itertools.count()


async def submits(stores: list[Store], callers: int, seconds: float) -> float:
    """Requests a second; each caller submits its next one when the last is stored."""
    started = time.perf_counter()
    until = started + seconds
    count = 0

    async def caller(store: Store) -> None:
        nonlocal count
        while time.perf_counter() < until:
            await store.requests.submit(store_app.submission(f"r{next(_ids)}", _BODY))
            count += 1

    await asyncio.gather(*(caller(stores[i % len(stores)]) for i in range(callers)))
    return count / (time.perf_counter() - started)


async def fill(store: Store, count: int) -> None:
    """Requests that wait for a worker."""
    for start in range(0, count, _MANY):
        batch = (store_app.submission(f"r{next(_ids)}", _BODY) for _ in range(start, min(start + _MANY, count)))
        await asyncio.gather(*(store.requests.submit(one) for one in batch))


async def cycles(inbox: Inbox, slots: int, seconds: float, waiting: int) -> float:
    """Requests a second through one worker, until the time is over or none of the ``waiting`` ones is left."""
    started = time.perf_counter()
    until = started + seconds
    count = begun = 0

    async def slot() -> None:
        nonlocal count, begun
        while time.perf_counter() < until and begun < waiting:
            begun += 1
            claim = await inbox.next()
            await inbox.finish(claim, store_app.echo(claim))
            count += 1

    await asyncio.gather(*(slot() for _ in range(slots)))
    return count / (time.perf_counter() - started)


def disk_syncs(folder: Path, seconds: float) -> float:
    """What the disk gives: appends of 200 bytes, each synced before the next."""
    with (folder / "syncs").open("wb", buffering=0) as file:
        started = time.perf_counter()
        count = 0
        while time.perf_counter() < started + seconds:
            file.write(b"x" * 200)
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.perf_counter() - started)


async def _measure(url: str, folder: Path, fsync: Fsync, seconds: float, queued: int, samples: Samples) -> None:
    stores = [await store_app.connect(url, folder) for _ in range(_MANY)]
    try:
        first = stores[0]
        await store_app.deploy(first)
        await submits(stores, _MANY, seconds / 4)  # warm-up
        samples[_ONE, fsync].append(await submits([first], 1, seconds))
        samples[_CONNECTIONS, fsync].append(await submits(stores, _MANY, seconds))
        samples[_CALLERS, fsync].append(await submits([first], _MANY, seconds))
        for slots, row in _CYCLES.items():
            await first.requests.flush_queue(store_app.APP)
            await fill(first, queued)
            async with store_app.worker(first, f"worker-{slots}") as inbox:
                samples[row, fsync].append(await cycles(inbox, slots, seconds, queued))
    finally:
        for store in stores:
            await store.close()


def run(rounds: int, seconds: float, queued: int = 6000) -> str:
    """Measure on a fresh server at each turn."""
    samples: Samples = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="kwb-") as scratch:
        for number, fsync in itertools.product(range(rounds), _FSYNCS):
            folder = Path(scratch) / f"{number}-{fsync}"
            with embedded_redis(folder, fsync) as url:
                uvloop.run(_measure(url, folder, fsync, seconds, queued, samples))
            samples[_DISK, fsync].append(disk_syncs(folder, seconds / 2))
    return f"{rounds} rounds of {seconds:g} s\n\n{table(samples)}"


def table(samples: Samples) -> str:
    """The medians as Markdown; ratios are those of the same round."""
    lines = ["| the store alone | appendfsync always | everysec | x always |", "|---|---|---|---|"]
    for row in ROWS:
        always, everysec = (samples[row, fsync] for fsync in _FSYNCS)
        ratio = statistics.median(late / early for early, late in zip(always, everysec, strict=True))
        lines.append(f"| {row} | {statistics.median(always):.0f} | {statistics.median(everysec):.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of one measurement")
    options = parser.parse_args()
    print(run(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
