"""``python -m tests.mutations [WORD ...]``: every mutant, or those that a WORD fits, and the test that it dies of.

Works on copies of the tree, one for each process at work; nothing here is touched. Exit status 1 when one survives.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.mutations.guards import GUARDS, LUA, Guard
from tests.support.platform import ROOT

#: First what plays one thing out, in seconds; the rest last, for what that leaves alive. The house rules stay out:
#: they read the scripts' texts, and comparing texts proves nothing.
DIRECTED = tuple(
    f"tests/store/test_{n}.py"
    for n in (
        "races",
        "fences",
        "requests",
        "lost_replies",
        "connection",
        "connections",
        "apps_and_workers",
        "inbox",
        "letters",
        "retention",
        "platform_records",
    )
)
LAST = (
    "tests/scheduler/test_reaper.py",
    "tests/scheduler/test_clock.py",
    "tests/scheduler/test_jobs_webhooks.py",
    "tests/store/test_model.py",
)
_FAILED = re.compile(r"^(?:FAILED|ERROR) tests/\w+/test_(\S+?)(?: - (.*))?$", re.MULTILINE)
#: A mutant that makes a test wait for ever is as dead as one that fails.
LIMIT_S = 180


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: the test that killed it, or nothing."""

    guard: Guard
    killer: str
    seconds: float

    @property
    def fine(self) -> bool:
        """Killed, or known to be no different. A mutant that is said to be no different must live."""
        return bool(self.killer) != bool(self.guard.equivalent)

    def row(self) -> str:
        end = self.killer or (f"lives: {self.guard.equivalent}" if self.guard.equivalent else "SURVIVES")
        return f"| {self.guard.script} | {self.guard.what} | {end} | {self.seconds:.0f} s |"


def copy_tree() -> Path:
    """What the store's tests need, without git and environments."""
    folder = Path(tempfile.mkdtemp(prefix="kwt-mutant-"))
    for name in (
        "scheduler",
        "keepwarm",
        "gateway",
        "gpu_worker",
        "envbuilder",
        "tests",
        "docs",
        "sdk",
        "pyproject.toml",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run_tests(tree: Path, *tests: str) -> str:
    """The first test that fails there, or ''."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "--timeout=60", *tests]
    # To a file: a server that a broken test leaves behind would hold a pipe open, and its reader, for ever.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env={**os.environ, "COLUMNS": "1000"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            tree_of = psutil.Process(process.pid)
            for left in (tree_of, *tree_of.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    left.kill()
            process.wait()
            return f"no end within {LIMIT_S} s"
        output.seek(0)
        said = output.read()
    if code == 0:
        return ""
    if "compiling script" in said:
        raise SystemExit(f"the mutant is no Lua, which proves nothing:\n{said[-2000:]}")
    failed = _FAILED.search(said)
    if failed is None:
        return said.strip().splitlines()[-1]
    return failed[1].replace(".py::", "::") + (" (the script breaks)" if "user_script" in (failed[2] or "") else "")


def fate_of(guard: Guard, tree: Path) -> Fate:
    """Take the guard out, look whether a test notices, put it back."""
    file = tree / LUA.relative_to(ROOT) / guard.path
    began, text = time.monotonic(), file.read_text()
    file.write_text(guard.taken_out_of(text))
    try:
        killer = run_tests(tree, *DIRECTED) or run_tests(tree, *LAST)
    finally:
        file.write_text(text)
    return Fate(guard, killer, time.monotonic() - began)


def check(guards: list[Guard], jobs: int, *, unharmed: bool = True) -> list[Fate]:
    """The fates of all, in their order; each process at work has a copy of its own.

    Args:
        unharmed: first look whether the tests pass without any mutation: a test that always fails kills everything.
    """
    trees: queue.Queue[Path] = queue.Queue()
    copies = [copy_tree() for _ in range(jobs)]
    try:
        if unharmed and (red := run_tests(copies[0], *DIRECTED, *LAST)):
            raise SystemExit(f"{red} fails without any mutation: mend that first")
        for tree in copies:
            trees.put(tree)

        def one(guard: Guard) -> Fate:
            tree = trees.get()
            try:
                fate = fate_of(guard, tree)
            finally:
                trees.put(tree)
            print(fate.row(), flush=True)
            return fate

        print("| script | the promise taken out | dies of | |\n|---|---|---|---|", flush=True)
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, guards))
    finally:
        for tree in copies:
            shutil.rmtree(tree, ignore_errors=True)


def main() -> int:
    """Check; 0 when no mutant survives that should not."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("words", nargs="*", help="only guards whose script or promise holds one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [
        guard
        for guard in GUARDS
        if not arguments.words or any(word in f"{guard.script} {guard.what}" for word in arguments.words)
    ]
    fates = check(chosen, arguments.jobs)
    wrong = [fate for fate in fates if not fate.fine]
    killed = sum(bool(fate.killer) for fate in fates)
    print(f"{len(fates)} mutants, {killed} killed, {len(fates) - killed} alive, {len(wrong)} of them without a reason")
    for fate in wrong:
        why = f"was said to be equivalent and dies of {fate.killer}" if fate.killer else "survives"
        print(f"  {fate.guard.script}: {fate.guard.what}: {why}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
