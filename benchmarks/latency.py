"""What the platform adds to a call: the same no-op handler here, on bare FastAPI and on LitServe. Prints one table.

    python benchmarks/latency.py [--rounds 5] [--seconds 2]

All servers run at once and are asked in turn, round after round, by one client process on the same machine; each figure
is the median of the rounds. Ours is the whole way: gateway, Redis with its append-only file, supervisor, runner. "plain
def" is the handler without ``async``, as most model code has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from servers import ROOT, peer, peer_python, platform

_CLIENTS = (1, 32)
_BARE, _LITSERVE = "bare FastAPI + uvicorn", "LitServe"
_BARE_PLAIN = "bare FastAPI + uvicorn, plain def"
_OURS = {"always": "Keepwarm, appendfsync always", "everysec": "Keepwarm, appendfsync everysec"}
_OURS_PLAIN = {fsync: f"{name}, plain def" for fsync, name in _OURS.items()}


@dataclass
class Row:
    """One server's samples: by number of clients, one dict a round. ``bare`` names the row with the same handler."""

    name: str
    url: str
    bare: str = _BARE
    samples: dict[int, list[dict[str, float]]] = field(default_factory=lambda: {count: [] for count in _CLIENTS})

    def median(self, clients: int, figure: str) -> float:
        return statistics.median(sample[figure] for sample in self.samples[clients])


def measure(rows: list[Row], rounds: int, seconds: float) -> None:
    """Fill the rows' samples, one server after the other in each round, so that a slow minute touches all of them."""
    for row in rows:
        for clients in _CLIENTS:
            _load(row.url, clients, 1.0)  # warm-up
    for _ in range(rounds):
        for clients in _CLIENTS:
            for row in rows:
                row.samples[clients].append(_load(row.url, clients, seconds))


def _load(url: str, clients: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), url]
    done = subprocess.run(
        [*command, "--clients", str(clients), "--seconds", str(seconds)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{url} did not hold: {done.stderr[-1500:]}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def table(rows: list[Row]) -> str:
    """The rows as Markdown, and one line for each target."""
    by_name = {row.name: row for row in rows}
    litserve = by_name[_LITSERVE]
    lines = [
        "| no-op POST | 1 client: p50 / p99 ms | x bare p50 | 32 clients: answers/s | p50 / p99 ms | x LitServe |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        slower = row.median(1, "p50_ms") / by_name[row.bare].median(1, "p50_ms")
        faster = row.median(32, "per_second") / litserve.median(32, "per_second")
        lines.append(
            f"| {row.name} | {row.median(1, 'p50_ms'):.2f} / {row.median(1, 'p99_ms'):.2f} | {slower:.2f}"
            f" | {row.median(32, 'per_second'):.0f} | {row.median(32, 'p50_ms'):.1f} / {row.median(32, 'p99_ms'):.1f}"
            f" | {faster:.2f} |"
        )
    lines.append("")
    for name in (*_OURS.values(), *_OURS_PLAIN.values()):
        slower = by_name[name].median(1, "p50_ms") / by_name[by_name[name].bare].median(1, "p50_ms")
        faster = by_name[name].median(32, "per_second") / litserve.median(32, "per_second")
        lines.append(f"{name}: {_verdict('p50 over bare FastAPI', slower, 2.5, at_most=True)}")
        lines.append(f"{name}: {_verdict('throughput over LitServe', faster, 1.5, at_most=False)}")
    return "\n".join(lines)


def _verdict(what: str, ratio: float, target: float, at_most: bool) -> str:
    met = ratio <= target if at_most else ratio >= target
    return f"{what} {ratio:.2f}x, target {'at most' if at_most else 'at least'} {target}x: {'met' if met else 'missed'}"


def run(rounds: int, seconds: float) -> str:
    """Start everything, measure, stop everything."""
    with tempfile.TemporaryDirectory(prefix="kwb-") as scratch, ExitStack() as running:
        folder = Path(scratch)
        python = peer_python(folder)
        bare = running.enter_context(peer(Path(sys.executable), "bare_fastapi.py", folder / "fastapi.log"))
        rows = [
            Row(_BARE, bare),
            Row(_BARE_PLAIN, f"{bare}plain", _BARE_PLAIN),
            Row(_LITSERVE, running.enter_context(peer(python, "litserve_server.py", folder / "litserve.log"))),
            Row(
                "LitServe, fast_queue",
                running.enter_context(peer(python, "litserve_server.py", folder / "fast.log", "--fast-queue")),
            ),
        ]
        for fsync, name in _OURS.items():
            ours = running.enter_context(platform(folder / fsync, folder / "builds", fsync))
            rows.append(Row(name, ours.deploy("benchmarks/peers/noop.py::NoOp")))
            rows.append(Row(_OURS_PLAIN[fsync], ours.deploy("benchmarks/peers/noop.py::NoOpPlain"), _BARE_PLAIN))
            if fsync == "everysec":
                many = ours.deploy("benchmarks/peers/noop.py::NoOpManyAtOnce")
                rows.append(Row(f"{name}, max_multiplexing 32", many))
        measure(rows, rounds, seconds)
        return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one measurement")
    options = parser.parse_args()
    print(run(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
