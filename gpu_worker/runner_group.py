"""The control group of one runner and all that it starts: how much it may take, what ran into that, and its end.

Owns the group's folders, which are named after the supervisor that made them, so that whoever comes later knows a dead
one's. Leaves where they may be made to ``cgroups``. Standard library only: the supervisor needs it before anything
heavier is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from gpu_worker import cgroups, process_tree

#: The controllers that bound a runner: processes and threads, bytes of memory.
TASKS, MEMORY = "pids", "memory"
#: What they bound, for people.
NAMES = {TASKS: "processes and threads", MEMORY: "memory"}
_GB = 1024**3


class RunnerGroup:
    """One group; ``make`` it. With the same name in each controller's hierarchy where those are apart.

    Args:
        folders: by controller.
        limits: what ``make`` was told.
    """

    def __init__(self, folders: Mapping[str, Path], limits: Mapping[str, int]) -> None:
        self._folders = dict(folders)
        self._limits = limits
        self._refused = self._killed = 0
        #: refused before ``kill`` refused everything
        self._refused_alive: int | None = None

    @classmethod
    def make(cls, worker_id: str, limits: Mapping[str, int]) -> RunnerGroup | None:
        """A group with the limits that can be enforced here; None when that is none of them.

        Args:
            limits: by controller, TASKS or MEMORY; 0 is none.

        Raises:
            OSError: a limit can be enforced here, but not this one.
        """
        name = f"{_stem()}-{os.getpid()}-{worker_id}"
        folders: dict[str, Path] = {}
        for controller in (controller for controller, most in limits.items() if most):
            with contextlib.suppress(cgroups.CannotLimit):  # the host's agent has said so
                place = cgroups.check(controller)
                if place.enabled(controller):
                    folders[controller] = place.folder / name
        if not folders:
            return None
        group = cls(folders, limits)
        try:
            for folder in folders.values():
                folder.mkdir(exist_ok=True)
            group._set()
        except OSError:
            group.remove()
            raise
        return group

    def add(self, pid: int) -> None:
        """Put a process in, with all its threads; what it starts from now on is in as well. 0: the one that calls.

        Raises:
            OSError: it has ended, or the group was removed.
        """
        for folder in self._folders.values():
            cgroups.write(folder / "cgroup.procs", pid)

    def holds(self, pid: int) -> bool:
        """Whether it is in, in each hierarchy."""
        return all(pid in cgroups.pids(folder) for folder in self._folders.values())

    def complaints(self) -> list[str]:
        """What ran into a limit since this was asked the last time, as sentences for the app's log."""
        said = []
        refused, killed = self._events()
        if refused > self._refused:
            most = self._limits[TASKS]
            said.append(
                f"The runner may have {most} processes and threads (KEEPWARM_RUNNER_TASKS) and has tried to start more."
            )
        if killed > self._killed:
            said.append(f"A process was ended: {self.out_of_memory} (KEEPWARM_RUNNER_MEMORY_GB).")
        self._refused, self._killed = refused, killed
        return said

    @property
    def out_of_memory(self) -> str:
        """What has happened when the kernel has ended a process for the memory limit."""
        return f"out of memory: the runner reached its limit of {self._limits.get(MEMORY, 0) / _GB:g} GB"

    def has_killed(self) -> bool:
        """Whether that has happened since ``complaints`` was asked the last time."""
        return self._events()[1] > self._killed

    def kill(self) -> None:
        """SIGKILL everything in it. Nothing can start in it afterwards."""
        if self._refused_alive is None:
            self._refused_alive = self._events()[0]
        for controller, folder in self._folders.items():
            with contextlib.suppress(OSError):
                if controller == TASKS:
                    cgroups.write(folder / "pids.max", 0)
            with contextlib.suppress(OSError):
                if (folder / "cgroup.kill").exists():
                    cgroups.write(folder / "cgroup.kill", 1)
            for pid in cgroups.pids(folder):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self, seconds: float = 2.0) -> bool:
        """Kill what is in it and remove it; False when something is still there after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            self.kill()
            left = [folder for folder in self._folders.values() if not _removed(folder)]
            if not left or time.monotonic() > deadline:
                return not left
            time.sleep(0.002)

    def _set(self) -> None:
        if TASKS in self._folders:
            cgroups.write(self._folders[TASKS] / "pids.max", self._limits[TASKS])
        if MEMORY not in self._folders:
            return
        folder, most = self._folders[MEMORY], self._limits[MEMORY]
        unified = (folder / "memory.max").exists()
        cgroups.write(folder / ("memory.max" if unified else "memory.limit_in_bytes"), most)
        # What may be swapped out is not limited by that. Kernels without swap accounting have no such file.
        swap, value = ("memory.swap.max", 0) if unified else ("memory.memsw.limit_in_bytes", most)
        if (folder / swap).exists():
            cgroups.write(folder / swap, value)

    def _events(self) -> tuple[int, int]:
        """How often a process was refused, and one killed for memory."""
        tasks, memory = self._folders.get(TASKS), self._folders.get(MEMORY)
        refused = self._refused_alive or 0
        if tasks is not None and self._refused_alive is None:
            refused = cgroups.counter(tasks / "pids.events", "max")
        killed = 0
        if memory is not None:
            killed = sum(cgroups.counter(memory / name, "oom_kill") for name in ("memory.events", "memory.oom_control"))
        return refused, killed


def clear_away() -> None:
    """End and remove the groups of all supervisors of this machine that have died without doing so."""
    stem, found = _stem(), dict[str, dict[str, Path]]()
    for controller in (TASKS, MEMORY):
        with contextlib.suppress(cgroups.CannotLimit, OSError):
            for folder in cgroups.find(controller).folder.glob(f"{stem}-*-*"):
                found.setdefault(folder.name, {})[controller] = folder
    for name, folders in found.items():
        maker = name.removeprefix(f"{stem}-").partition("-")[0]
        if maker.isdecimal() and not process_tree.lives(int(maker)):
            RunnerGroup(folders, {}).remove()


def limits_that_cannot_be_enforced(wanted: Iterable[str]) -> dict[str, str]:
    """Why, by controller; looks only, at what a platform would meet that is started from where this process runs."""
    reasons: dict[str, str] = {}
    for controller in wanted:
        try:
            cgroups.check(controller, {os.getpid()})
        except cgroups.CannotLimit as reason:
            reasons[controller] = str(reason)
    return reasons


def _stem() -> str:
    """What all names begin with. Process numbers say nothing outside their PID namespace, so that is named too."""
    return f"keepwarm-{os.stat('/proc/self/ns/pid').st_ino}"


def _removed(folder: Path) -> bool:
    """Remove it with the groups that user code has made in it."""
    for inner, _, _ in os.walk(folder, topdown=False):
        for pid in cgroups.pids(Path(inner)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.rmdir(inner)
    return not folder.exists()
