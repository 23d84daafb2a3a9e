"""Where control groups may be made: both versions of the kernel's interface, and the many ways to have neither."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from gpu_worker import cgroups
from gpu_worker.runner_group import RunnerGroup
from tests.support.waiting import wait_until
from tests.worker.test_failures import has_ended


def process_in(folder: Path, mounts: str, groups: str) -> Path:
    """A folder that says what ``/proc/self`` says of a process."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text("".join(f"31 23 0:28 {line}\n" for line in mounts.splitlines()))
    (proc / "cgroup").write_text(groups)
    return proc


def controllers(folder: Path, all_of_them: str, enabled: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text(all_of_them)
    (folder / "cgroup.subtree_control").write_text(enabled)


def test_each_controller_of_v1_has_a_hierarchy_and_a_path_of_its_own(tmp_path: Path) -> None:
    mounts = (
        f"/ {tmp_path}/pids rw,relatime - cgroup cgroup rw,pids\n"
        f"/docker/a1 {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"/ {tmp_path}/unified rw - cgroup2 cgroup2 rw"
    )
    proc = process_in(tmp_path, mounts, "9:pids:/jobs/7\n8:memory:/docker/a1\n0::/\n")
    assert cgroups.find("pids", proc) == cgroups.Place(tmp_path / "pids" / "jobs" / "7", False)
    assert cgroups.find("memory", proc) == cgroups.Place(tmp_path / "memory", False), "a container sees its own as /"
    assert cgroups.find("pids", proc).enabled("pids")


def test_v2_has_one_for_all_and_the_platform_sits_in_a_leaf_of_it(tmp_path: Path) -> None:
    controllers(tmp_path / "app.slice" / "keepwarm.scope", "memory pids", "pids")
    for own in ("/app.slice/keepwarm.scope", f"/app.slice/keepwarm.scope/{cgroups.LEAF}"):
        folder = tmp_path / own.replace("/", "-")
        folder.mkdir()
        place = cgroups.find("pids", process_in(folder, f"/ {tmp_path} rw - cgroup2 cgroup rw", f"0::{own}\n"))
        assert place == cgroups.Place(tmp_path / "app.slice" / "keepwarm.scope", True)
        assert (place.enabled("pids"), place.enabled("memory")) == (True, False)


@pytest.mark.parametrize(
    ("mounts", "groups", "says"),
    [
        ("", "", "this machine has no pids control groups"),
        ("/ {}/pids rw - cgroup cgroup rw,cpu", "1:cpu:/\n", "this machine has no pids control groups"),
        (
            "/ {}/v2 rw - cgroup2 cgroup2 rw",
            "0::/\n",
            "v2 has no pids controller; start the platform with `systemd-run",
        ),
        ("/../.. {}/v2 rw - cgroup2 cgroup2 rw", "0::/\n", "this machine has no pids control groups"),
    ],
)
def test_where_there_are_none(tmp_path: Path, mounts: str, groups: str, says: str) -> None:
    controllers(tmp_path / "v2", "memory")
    with pytest.raises(cgroups.CannotLimit, match=says):
        cgroups.find("pids", process_in(tmp_path, mounts.format(tmp_path), groups))


# --- the kernel's own -------------------------------------------------------------------------------------------------

PREPARES = """
import json, subprocess, sys
from gpu_worker import cgroups

controller = sys.argv[1]
child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
try:
    cgroups.prepare(controller)
    why = None
except cgroups.CannotLimit as reason:
    why = str(reason)
place = cgroups.find(controller)
inside = place.folder / cgroups.LEAF
print(json.dumps([why, str(place.folder), place.enabled(controller), len(cgroups.pids(inside))]), flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""


@pytest.fixture
def version_2() -> Iterator[tuple[Path, str] | None]:
    """A folder of version 2 that tests may use, and a controller that it has: version 1 may have the usual ones."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
    for mount in mounts:
        folder = Path(mount[4]) / own.strip("/")
        switch = folder / "cgroup.subtree_control"
        for controller in (folder / "cgroup.controllers").read_text().split():
            had_it = controller in switch.read_text().split()
            with contextlib.suppress(OSError):
                cgroups.write(switch, f"+{controller}")
                yield folder, controller
                if not had_it:
                    cgroups.write(switch, f"-{controller}")
                return
    yield None


@contextlib.contextmanager
def group_below(folder: Path) -> Iterator[Path]:
    group = folder / f"kwt-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        yield group
    finally:
        assert RunnerGroup({"pids": group}, {}).remove()


@contextlib.contextmanager
def running_in(group: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    inside = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    popen = subprocess.Popen(
        ["sh", "-c", inside, "sh", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield popen
    finally:
        popen.communicate(timeout=20)


def said(stream: IO[str] | None) -> tuple[str | None, str, bool, int]:
    assert stream is not None
    why, folder, enabled, inside = json.loads(stream.readline())
    return why, folder, enabled, inside


def test_the_platform_moves_into_a_leaf_but_never_with_strangers(version_2: tuple[Path, str] | None) -> None:
    """The kernel enables no controller below a group that has processes: each limit would be refused with EBUSY."""
    if version_2 is None:
        with pytest.raises(cgroups.CannotLimit):
            cgroups.check("no such controller")
        return
    folder, controller = version_2
    with group_below(folder) as group:
        with running_in(group, "cat"):
            wait_until(lambda: cgroups.pids(group), "somebody else is there")
            with running_in(group, sys.executable, "-c", PREPARES, controller) as platform:
                why, seen, enabled, inside = said(platform.stdout)
                assert why is not None
                assert f"other programs run in {group} too, as process " in why
                assert "Delegate=yes" in why
                assert (seen, enabled, inside) == (str(group), False, 0)
        with running_in(group, sys.executable, "-c", PREPARES, controller) as platform:
            assert said(platform.stdout) == (None, str(group), True, 2)
            assert cgroups.pids(group) == set()
            with running_in(group / cgroups.LEAF, sys.executable, "-c", PREPARES, controller) as restarted:
                assert said(restarted.stdout) == (None, str(group), True, 4)


def test_a_group_is_removed_with_all_that_is_in_it_and_below(version_2: tuple[Path, str] | None) -> None:
    """Of a runner that runs as root: it can make groups of its own, and a folder with folders cannot be removed."""
    folder = version_2[0] if version_2 is not None else cgroups.find("pids").folder
    with group_below(folder) as group:
        inner = group / "of-the-app"
        inner.mkdir()
        popen = subprocess.Popen(["sleep", "60"])
        cgroups.write(inner / "cgroup.procs", popen.pid)

        assert RunnerGroup({"pids": group}, {}).remove()

        assert not group.exists()
        assert has_ended(psutil.Process(popen.pid))
        assert popen.wait(10) == -9
