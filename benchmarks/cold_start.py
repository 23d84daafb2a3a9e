"""From the first request of a sleeping app to its answer, the environment being built: where the time goes. One table.

    python benchmarks/cold_start.py [--rounds 5] [--heavy]

Each round waits until the app has no worker left, sends one request and reads the start's stages from the worker's
record. --heavy adds the SDXL example over the tiny weights and the embeddings (their environments take minutes to
build on a fresh machine; the building is not part of the figures).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from servers import ROOT, Platform, platform

_LIGHT: dict[str, dict[str, Any]] = {
    "examples/hello.py::Hello": {},
    "examples/painting.py::Painting": {},
}
_HEAVY: dict[str, dict[str, Any]] = {
    "examples/embeddings.py::Embeddings": {"sentences": ["A cat sits on the mat."]},
    "examples/sdxl_cpu.py::SdxlCpu": {"prompt": "a red circle on a blue background"},
}
_STAGES = ("environment", "spawn", "boot", "import", "setup")
_BUDGET_SECONDS = 150.0  # no round of an app begins later than this


@dataclass
class Row:
    """Samples of one app, in seconds: the caller's whole wait, each stage, and a call of the warm worker."""

    name: str
    total: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in (*_STAGES, "other")})

    def add(self, total: float, warm: float, stages: dict[str, float]) -> None:
        self.total.append(total)
        self.warm.append(warm)
        for stage in _STAGES:
            self.stages[stage].append(stages.get(stage, 0.0))
        # Queueing, the scheduler's decision, the host's order, the claim, and the way back.
        self.stages["other"].append(total - sum(stages.get(stage, 0.0) for stage in _STAGES) - warm)


def measure(running: Platform, reference: str, body: dict[str, Any], rounds: int) -> Row:
    """Deploy an app that sleeps a second after each request, and wake it `rounds` times."""
    url = running.deploy(reference)
    running.scale(url, keep_alive=1, min_concurrency=0)
    row = Row(reference)
    began = time.monotonic()
    with httpx.Client(trust_env=False, timeout=300) as client:
        client.post(url, json=body).raise_for_status()  # the first start after a build also warms the page cache
        while len(row.total) < rounds and time.monotonic() - began < _BUDGET_SECONDS:
            _wait_asleep(running, url)
            total = _timed_post(client, url, body)
            warm = _timed_post(client, url, body)
            [worker] = running.workers(url)
            row.add(total, warm, worker["stages"])
    return row


def _timed_post(client: httpx.Client, url: str, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    client.post(url, json=body).raise_for_status()
    return time.perf_counter() - started


def _wait_asleep(running: Platform, url: str) -> None:
    deadline = time.monotonic() + 60
    while running.workers(url):
        if time.monotonic() > deadline:
            raise SystemExit(f"{url} keeps its worker although keep_alive is over")
        time.sleep(0.1)


def table(rows: list[Row]) -> str:
    """Markdown; medians in seconds."""
    lines = [
        f"| app | rounds | first answer | {' | '.join(_STAGES)} | first request | queue and orders |",
        "|" + "---|" * (len(_STAGES) + 5),
    ]
    for row in rows:
        stages = " | ".join(f"{statistics.median(row.stages[stage]):.3f}" for stage in _STAGES)
        lines.append(
            f"| {row.name} | {len(row.total)} | **{statistics.median(row.total):.2f}** | {stages}"
            f" | {statistics.median(row.warm):.3f} | {statistics.median(row.stages['other']):.3f} |"
        )
    return "\n".join(lines)


def run(rounds: int, heavy: bool) -> str:
    """Start a platform, measure, stop it."""
    # The model comes from a cache on disk; runners get these names because the platform is told to pass them on.
    os.environ |= {"HF_HOME": str(ROOT / "examples" / "weights"), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="kwb-") as scratch:
        folder = Path(scratch)
        settings = {"KEEPWARM_RUNNER_ENV": "HF_HOME,HF_HUB_OFFLINE"}
        with platform(folder / "data", folder / "builds", "always", "--cpu-fallback", settings=settings) as running:
            apps = _LIGHT | (_HEAVY if heavy else {})
            return table([measure(running, reference, body, rounds) for reference, body in apps.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heavy", action="store_true")
    options = parser.parse_args()
    print(run(options.rounds, options.heavy))


if __name__ == "__main__":
    main()
