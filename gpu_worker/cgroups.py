"""The control groups of this machine: in which folder one of ours may be made, and why not where it may not.

Both versions of Linux' interface: one folder for each controller (v1), or one for all (v2). Owns moving the platform
into a leaf where v2 asks for it. Leaves the group of one runner to ``runner_group``. Standard library only: the
supervisor needs it before anything heavier is imported.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gpu_worker import process_tree

#: Where the platform's own processes go on v2, which wants none beside groups that have limits.
LEAF = "keepwarm-platform"
_SELF = Path("/proc/self")
_ADVICE = "start the platform with `systemd-run --user --scope -p Delegate=yes`, or as a service with Delegate=yes"
#: Rounds of moving processes; in each one that was just forking may be missed.
_ROUNDS = 20


class CannotLimit(Exception):
    """A controller cannot be used here; the message says why and what to do."""


@dataclass(frozen=True)
class Place:
    """A folder below which groups may be made. ``unified``: of v2, where controllers must be enabled first."""

    folder: Path
    unified: bool

    def enabled(self, controller: str) -> bool:
        """Whether groups made here have it."""
        return not self.unified or controller in _words(self.folder / "cgroup.subtree_control")


def find(controller: str, proc: Path = _SELF) -> Place:
    """Where this process may make groups that have ``controller`` ("pids", "memory"); nothing is tried or changed.

    Raises:
        CannotLimit: nowhere.
    """
    paths = _own_paths(proc)
    complaint = f"this machine has no {controller} control groups"
    for line in _text(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        (root, point), kind = before.split()[3:5], after.split()[0]
        unified = kind == "cgroup2"
        if not unified and (kind != "cgroup" or controller not in after.split()[2].split(",")):
            continue
        own = paths.get("" if unified else controller)
        if own is None or not PurePosixPath(own).is_relative_to(root):
            continue
        folder = Path(point) / PurePosixPath(own).relative_to(root)
        if folder.name == LEAF:
            folder = folder.parent
        if not unified or controller in _words(folder / "cgroup.controllers"):
            return Place(folder, unified)
        complaint = f"{folder} has no {controller} controller; {_ADVICE}"
    raise CannotLimit(complaint)


def check(controller: str, family: Collection[int] | None = None) -> Place:
    """The same, as far as can be told by looking.

    Args:
        family: the processes that may be moved into a leaf; None: the parent of this one and all below that.

    Raises:
        CannotLimit: nowhere.
    """
    place = find(controller)
    if not os.access(place.folder, os.W_OK):
        raise CannotLimit(f"{place.folder} cannot be written; {_ADVICE}" if place.unified else _not_written(place))
    if not place.enabled(controller):
        there = pids(place.folder)
        strangers = set() if 1 in there else there - set(_family(there) if family is None else family)
        if strangers:
            raise CannotLimit(f"other programs run in {place.folder} too, as process {min(strangers)}; {_ADVICE}")
    return place


def prepare(controller: str) -> None:
    """Once for each host, by its agent: from now on its supervisors may make groups that have ``controller``.

    Raises:
        CannotLimit: they may not.
    """
    place = check(controller)
    if place.enabled(controller):
        return
    try:
        _enable(place.folder, controller)
    except OSError as error:
        raise CannotLimit(f"{place.folder}: the {controller} controller cannot be enabled: {error}") from error


def pids(folder: Path) -> set[int]:
    """The processes in a group, as far as this process sees them; none where there is no group (any more)."""
    # Those of a foreign PID namespace are shown as 0, which would be our own process group to whoever signals it.
    return {int(word) for word in _words(folder / "cgroup.procs") if word != "0"}


def counter(file: Path, name: str) -> int:
    """The number beside ``name`` in a group's file of counters; 0 where there is none."""
    lines = (line.split() for line in _text(file).splitlines())
    return next((int(line[1]) for line in lines if len(line) == 2 and line[0] == name), 0)


def write(file: Path, value: int | str) -> None:
    """Set one of a group's values.

    Raises:
        OSError: the kernel refuses it.
    """
    with file.open("w", encoding="ascii") as stream:
        stream.write(str(value))


def _enable(folder: Path, controller: str) -> None:
    switch, leaf = folder / "cgroup.subtree_control", folder / LEAF
    for attempt in range(_ROUNDS):
        try:
            write(switch, f"+{controller}")
            return
        except OSError as error:  # EBUSY: processes are in the folder itself
            if error.errno != errno.EBUSY or attempt == _ROUNDS - 1:
                raise
        leaf.mkdir(exist_ok=True)
        for pid in pids(folder):
            with contextlib.suppress(ProcessLookupError):
                write(leaf / "cgroup.procs", pid)


def _family(there: Collection[int]) -> set[int]:
    """This process and what started it, with all that is below."""
    parent = os.getppid()
    top = parent if parent in there else os.getpid()
    return {top, *process_tree.descendants(top)}


def _own_paths(proc: Path) -> dict[str, str]:
    """In which group a process is, by controller; by "" that of v2."""
    paths: dict[str, str] = {}
    for line in _text(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _not_written(place: Place) -> str:
    return f"{place.folder} cannot be written; that takes root, and in a container `--cgroupns=private --privileged`"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def _words(file: Path) -> list[str]:
    return _text(file).split()
