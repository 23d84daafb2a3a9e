"""From submitting a job to seeing its result: our queue beside arq, streaq (streams) and SAQ (lists). Prints one table.

    python benchmarks/queue_round_trip.py [--rounds 5] [--seconds 1] [--fsync everysec]

One Redis server for all: the embedded one. Each queue's turn is one worker process with 32 slots and one process with
the callers, both started for it, so that nobody's idle worker disturbs the others; the queues take turns, round after
round, and each figure is the median of the rounds. Ours is the store's client and a worker's inbox, without HTTP and
without a runner, which the others do not have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import store_app
from servers import PEERS, embedded_redis, peer_python

CALLERS = (1, 64)
_SLOTS = 32
_PATIENCE_SECONDS = 60.0
_OURS = "Keepwarm"


@dataclass
class Row:
    """One queue's samples: by number of callers, one dict a round."""

    name: str
    script: str
    settings: dict[str, str] = field(default_factory=dict)
    samples: dict[int, list[dict[str, float]]] = field(default_factory=lambda: {count: [] for count in CALLERS})

    def median(self, callers: int, figure: str) -> float:
        return statistics.median(sample[figure] for sample in self.samples[callers])


def contenders() -> list[Row]:
    """Every queue as its documentation has it, and as fast as its settings or a little code make it."""
    return [
        Row(_OURS, "keepwarm_queue.py", {"PYTHONPATH": str(PEERS.parent)}),
        Row("arq, as it comes (poll_delay 0.5 s)", "arq_queue.py"),
        Row("arq, poll_delay 2 ms", "arq_queue.py", {"ARQ_POLL_DELAY": "0.002"}),
        Row("arq, poll_delay 0: both sides spin", "arq_queue.py", {"ARQ_POLL_DELAY": "0"}),
        Row("streaq, Task.result()", "streaq_queue.py"),
        Row("streaq, one subscription", "streaq_queue.py", {"STREAQ_RESULTS": "one"}),
        Row("SAQ", "saq_queue.py"),
    ]


def turn(row: Row, python: str, url: str, seconds: float, log: Path) -> None:
    """One worker, one process of callers, and what they measured."""
    environ = {**os.environ, **row.settings}
    script = [python, str(PEERS / row.script)]
    with log.open("ab") as output:
        worker = subprocess.Popen([*script, "work", url, str(_SLOTS)], env=environ, stdout=output, stderr=output)
    try:
        done = subprocess.run(
            [*script, "call", url, "--seconds", str(seconds), "--callers", *map(str, CALLERS)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    finally:
        worker.kill()
        worker.wait()
    if done.returncode != 0:
        raise SystemExit(f"{row.name} did not hold: {done.stderr[-1500:]}\n{log.read_text(errors='replace')[-1500:]}")
    for count, sample in json.loads(done.stdout).items():
        row.samples[int(count)].append(sample)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, and one line for each target."""
    ours = next(row for row in rows if row.name == _OURS)
    lines = [
        "| submit until the result is seen | 1 caller: p50 / p99 ms | trips/s | 64 callers: p50 / p99 ms | trips/s"
        " | ours is x faster: 1 / 64 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name]
        for count in CALLERS:
            cells.append(f"{row.median(count, 'p50_ms'):.2f} / {row.median(count, 'p99_ms'):.2f}")
            cells.append(f"{row.median(count, 'per_second'):.0f}")
        cells.append(" / ".join(f"{_faster(ours, row, count):.1f}" for count in CALLERS))
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    others = [row for row in rows if row is not ours]
    for count in CALLERS:
        who = f"{count} caller{'s' if count > 1 else ''}"
        for row in others:
            if row.script == "arq_queue.py":
                lines.append(verdict(f"{who}: trips a second over {row.name}", _faster(ours, row, count), 5.0))
        best = max(others, key=lambda row: row.median(count, "per_second"))
        lines.append(verdict(f"{who}: over the best of the others, {best.name}", _faster(ours, best, count), 1.0))
    return "\n".join(lines)


def _faster(ours: Row, row: Row, callers: int) -> float:
    """The median of the rounds' ratios: both had their turn within the same half minute."""
    pairs = zip(ours.samples[callers], row.samples[callers], strict=True)
    return statistics.median(mine["per_second"] / other["per_second"] for mine, other in pairs)


def verdict(what: str, ratio: float, target: float) -> str:
    return f"{what} {ratio:.2f}x, target at least {target}x: {'met' if ratio >= target else 'missed'}"


async def _deploy(url: str, data: Path) -> None:
    store = await store_app.connect(url, data)
    await store_app.deploy(store)
    await store.close()


def run(rounds: int, seconds: float, fsync: str) -> str:
    """Start the server, let the queues take turns, stop it."""
    with tempfile.TemporaryDirectory(prefix="kwb-") as scratch:
        folder = Path(scratch)
        peers = str(peer_python(folder))
        rows = contenders()
        with embedded_redis(folder / "redis", "always" if fsync == "always" else "everysec") as url:
            asyncio.run(_deploy(url, folder))
            for _ in range(rounds):
                for row in rows:
                    python = sys.executable if row.name == _OURS else peers
                    turn(row, python, url, seconds, folder / "workers.log")
        return f"appendfsync {fsync}, {_SLOTS} slots, {rounds} rounds of {seconds:g} s\n\n{table(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--fsync", choices=("always", "everysec"), default="everysec")
    options = parser.parse_args()
    print(run(options.rounds, options.seconds, options.fsync))


if __name__ == "__main__":
    main()
