"""Supervisors of an agent that died: they drain by themselves; the next agent waits for them, then ends what hangs.

Owns recognising them by their command line. Until one has gone, its worker's order is not started a second time.
"""

from __future__ import annotations

import contextlib
import sys
import time

import psutil

from gpu_worker.settings import AgentSettings

_MODULE = "gpu_worker.supervisor"


def supervisor_command(settings: AgentSettings, worker_id: str) -> list[str]:
    """The command line of a supervisor; what stands after the module is only read by ``Leftovers``.

    ``-P`` keeps the folder in which the operator happened to stand off the import path.
    """
    return [sys.executable, "-P", "-m", _MODULE, *_marks(settings), worker_id]


def _marks(settings: AgentSettings) -> list[str]:
    return [settings.host_id, str(settings.data_dir)]


class Leftovers:
    """Supervisors of this host and data folder that were running before this agent was."""

    def __init__(self, settings: AgentSettings) -> None:
        self._marks = [_MODULE, *_marks(settings)]
        self._grace = settings.stop_grace
        self._deadline = 0.0
        self._processes: dict[str, psutil.Process] = {}

    def find(self) -> None:
        """Look for them, once, before the first supervisor of our own is started."""
        self._deadline = time.monotonic() + self._grace
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if command[3:6] == self._marks and len(command) == 7:
                    self._processes[command[6]] = process
                    process.terminate()

    def worker_ids(self) -> frozenset[str]:
        """Workers whose old supervisor still runs."""
        for worker_id, process in list(self._processes.items()):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                del self._processes[worker_id]
        return frozenset(self._processes)

    def end_overdue(self) -> None:
        """Kill those that have not drained within the grace, with everything below them."""
        if not self._processes or time.monotonic() < self._deadline:
            return
        for process in self._processes.values():
            with contextlib.suppress(psutil.Error):
                for child in [*process.children(recursive=True), process]:
                    child.kill()
