"""Child commands: their lines, their limits, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from envbuilder.errors import DiskFull, LimitReached
from envbuilder.process import BuildLog, Finished, Limits, run_child
from tests.envbuilder.builds import gone
from tests.support.loop import run
from tests.support.waiting import wait_until

RunPython = Callable[..., tuple[Finished, list[str]]]


def limits(folder: Path, *, wall: float = 30, silence: float = 30, floor: int = 0) -> Limits:
    return Limits(time.monotonic() + wall, wall, silence, folder, floor)


async def run_python(folder: Path, code: str, bounds: Limits, lines: list[str]) -> Finished:
    return await run_child(
        [sys.executable, "-c", code],
        doing="The test",
        environment={"PATH": os.environ["PATH"]},
        cwd=folder,
        limits=bounds,
        log=BuildLog(lines.append),
    )


GRANDCHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
"""


def test_lines_come_clean_and_one_by_one(tmp_path: Path) -> None:
    lines: list[str] = []
    code = r"""
import sys
sys.stdout.write("\x1b[1;31mred\x1b[0m one\n50%\r100%\n")
sys.stdout.write("https://user:secret@host/simple \u202e\x07tricky\n")
sys.stdout.flush()
sys.stdout.buffer.write("no end \u00e9".encode())
"""
    finished = run(run_python(tmp_path, code, limits(tmp_path), lines))
    assert lines == ["red one", "50%", "100%", "https://****@host/simple tricky", "no end é"]
    assert finished == Finished(0, tuple(lines))


def test_endless_output_takes_bounded_memory_and_a_bounded_log(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; sys.stdout.write('x' * 3_000_000 + '\\n'); sys.stdout.write('y\\n' * 100_000)"
    finished = run(run_python(tmp_path, code, limits(tmp_path), lines))
    assert finished.status == 0
    assert max(map(len, lines)) <= 16 * 1024
    assert len(lines) <= 20_000
    assert lines[-1] == "[further lines are left out]"


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)]
)
def test_exit_status(tmp_path: Path, code: str, status: int) -> None:
    assert run(run_python(tmp_path, code, limits(tmp_path), [])).status == status


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    lines: list[str] = []
    child = run_child(
        ["/no/such/uv"],
        doing="The test",
        environment={},
        cwd=tmp_path,
        limits=limits(tmp_path),
        log=BuildLog(lines.append),
    )
    assert run(child).status == 127
    assert lines == ["/no/such/uv: No such file or directory"]


def test_the_wall_limit_ends_the_whole_tree(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(LimitReached, match=r"passed its limit of 1 s.*KEEPWARM_BUILD_WALL_SECONDS"):
        run(run_python(tmp_path, GRANDCHILD + "time.sleep(100)", limits(tmp_path, wall=1), lines))
    wait_until(lambda: gone(int(lines[0])), "the grandchild to be ended")


def test_silence_is_no_line_and_no_work(tmp_path: Path) -> None:
    with pytest.raises(LimitReached, match="no output and no work"):
        run(run_python(tmp_path, "import time; time.sleep(100)", limits(tmp_path, silence=0.5), []))
    busy = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    assert run(run_python(tmp_path, busy, limits(tmp_path, silence=0.5), [])).status == 0


def test_stragglers_of_a_command_that_has_ended_are_ended_too(tmp_path: Path) -> None:
    lines: list[str] = []
    assert run(run_python(tmp_path, GRANDCHILD, limits(tmp_path), lines)).status == 0
    wait_until(lambda: gone(int(lines[0])), "the straggler to be ended")


def test_a_process_that_left_the_group_holds_nothing_up(tmp_path: Path) -> None:
    """A build script that daemonises keeps our pipe open for ever; the build once waited for its end."""
    lines: list[str] = []
    escaped = GRANDCHILD.replace('sleep(100)"]', 'sleep(100)"], start_new_session=True')
    started = time.monotonic()
    try:
        assert run(run_python(tmp_path, escaped, limits(tmp_path), lines)).status == 0
        assert time.monotonic() - started < 20
    finally:
        psutil.Process(int(lines[0])).kill()


def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    lines: list[str] = []

    async def cancelled() -> None:
        task = asyncio.create_task(run_python(tmp_path, GRANDCHILD + "time.sleep(100)", limits(tmp_path), lines))
        while not lines:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled())
    wait_until(lambda: gone(int(lines[0])), "the grandchild to be ended")


def test_a_full_disk_is_said_before_and_during(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="free some room"):
        run(run_python(tmp_path, "", limits(tmp_path, floor=1 << 60), []))
