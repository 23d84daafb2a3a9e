"""From the first request of a sleeping app to its answer, the environment being built: where the time goes. One table.

    python benchmarks/cold_start.py [--rounds 5] [--heavy]

Two platforms take turns: one forks its runners from zygotes, the other (`--no-zygote`) starts each from nothing. Each
round waits until the app has no worker left, sends one request and reads the start's stages from the worker's record.
Ratios are medians of the rounds' own ratios. --heavy adds the SDXL example over the tiny weights and the embeddings
(their environments take minutes to build on a fresh machine; the building is not part of the figures).
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
_TRIES = 20
_BUDGET_SECONDS = 150.0  # no round of an app begins later than this


@dataclass
class Row:
    """Samples of one app and one kind of start, in seconds.

    ``total``: the caller's whole wait. ``ready``: from the host's order to a ready worker. ``warm``: a call of it.
    """

    name: str
    kind: str
    total: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in (*_STAGES, "other")})

    def add(self, total: float, warm: float, stages: dict[str, float]) -> None:
        self.total.append(total)
        self.ready.append(stages["total"])
        self.warm.append(warm)
        for stage in _STAGES:
            self.stages[stage].append(stages.get(stage, 0.0))
        # Queueing, the scheduler's decision, the host's order, the claim, and the way back.
        self.stages["other"].append(total - sum(stages.get(stage, 0.0) for stage in _STAGES) - warm)


def measure(platforms: dict[str, Platform], reference: str, body: dict[str, Any], rounds: int) -> list[Row]:
    """Deploy an app that sleeps a second after each request, and wake it `rounds` times on each platform in turn."""
    urls = {kind: running.deploy(reference) for kind, running in platforms.items()}
    rows = {kind: Row(reference, kind) for kind in platforms}
    with httpx.Client(trust_env=False, timeout=300) as client:
        for kind, running in platforms.items():
            running.scale(urls[kind], keep_alive=1, min_concurrency=0)
            _wake_until(client, running, urls[kind], body, kind)  # the first start after a build also warms the cache
        began = time.monotonic()
        while len(rows["zygote"].total) < rounds and time.monotonic() - began < _BUDGET_SECONDS:
            for kind, running in platforms.items():
                rows[kind].add(*_wake_until(client, running, urls[kind], body, kind))
    return list(rows.values())


def _wake_until(
    client: httpx.Client, running: Platform, url: str, body: dict[str, Any], kind: str
) -> tuple[float, float, dict[str, float]]:
    """Let the app fall asleep and wake it, until its start was of this kind; the caller's wait, a warm call, stages."""
    for _ in range(_TRIES):
        _wait_asleep(running, url)
        total = _timed_post(client, url, body)
        warm = _timed_post(client, url, body)
        [worker] = running.workers(url)
        if worker["start_kind"] == kind:
            return total, warm, worker["stages"]
        time.sleep(1)  # the zygote is still importing
    raise SystemExit(f"{url}: {_TRIES} starts, none of them by {kind}")


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


def table(apps: list[list[Row]]) -> str:
    """Markdown; medians in seconds, and the ratio of each pair."""
    lines = [
        f"| app | start | rounds | first answer | ready | {' | '.join(_STAGES)} | first request | queue and orders |",
        "|" + "---|" * (len(_STAGES) + 7),
    ]
    for rows in apps:
        lines += [_line(row) for row in rows]
        forked, plain = rows
        answer, ready = (_ratio(forked.total, plain.total), _ratio(forked.ready, plain.ready))
        lines.append(f"| | ratio | | **{answer:.2f}** | **{ready:.2f}** |" + " |" * (len(_STAGES) + 2))
    return "\n".join(lines)


def _line(row: Row) -> str:
    stages = " | ".join(f"{statistics.median(row.stages[stage]):.3f}" for stage in _STAGES)
    return (
        f"| {row.name} | {row.kind} | {len(row.total)} | **{statistics.median(row.total):.2f}** "
        f"| {statistics.median(row.ready):.2f} | {stages} | {statistics.median(row.warm):.3f} "
        f"| {statistics.median(row.stages['other']):.3f} |"
    )


def _ratio(ones: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def run(rounds: int, heavy: bool) -> str:
    """Start the platforms, measure, stop them."""
    # The model comes from a cache on disk; runners get these names because the platform is told to pass them on.
    os.environ |= {"HF_HOME": str(ROOT / "examples" / "weights"), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="kwb-") as scratch:
        folder = Path(scratch)
        options = {"settings": {"KEEPWARM_RUNNER_ENV": "HF_HOME,HF_HUB_OFFLINE"}}
        builds = folder / "builds"
        with (
            platform(folder / "forks", builds, "always", "--cpu-fallback", **options) as forking,
            platform(folder / "starts", builds, "always", "--cpu-fallback", "--no-zygote", **options) as starting,
        ):
            platforms = {"zygote": forking, "spawn": starting}
            apps = _LIGHT | (_HEAVY if heavy else {})
            return table([measure(platforms, reference, body, rounds) for reference, body in apps.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heavy", action="store_true")
    options = parser.parse_args()
    print(run(options.rounds, options.heavy))


if __name__ == "__main__":
    main()
