"""How much of its GPUs' memory a worker uses: the most of any one card, as the driver counts it by process.

Workers that share a card say what they need; what was measured tells the scheduler when that was too little. With
simulated GPUs a process' memory in RAM stands for what it would have on the card.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

#: MiB of one card by process id, for the processes asked about.
UsageSource = Callable[[int, Collection[int]], Mapping[int, int]]
_MIB = 1024 * 1024


class GpuUsage:
    """The peak of one worker, over all looks."""

    def __init__(self, gpu_ids: Sequence[int], source: UsageSource) -> None:
        self._gpu_ids = gpu_ids
        self._source = source
        self.peak_mb = 0

    def look(self, pids: Collection[int]) -> int:
        """Measure now; the most that those processes together used of one card so far, in MiB."""
        for gpu in self._gpu_ids:
            self.peak_mb = max(self.peak_mb, sum(self._source(gpu, pids).values()))
        return self.peak_mb


def nvml_usage(gpu: int, pids: Collection[int]) -> Mapping[int, int]:
    """By the NVIDIA driver; nothing where it does not tell (no driver, or process ids of another namespace)."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return {p.pid: int(p.usedGpuMemory or 0) // _MIB for p in found if p.pid in pids}
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def simulated_usage(gpu: int, pids: Collection[int]) -> Mapping[int, int]:
    """What the processes have in RAM."""
    return ram_usage(pids)


def ram_usage(pids: Collection[int]) -> dict[int, int]:
    """MiB in RAM by process id; what is shared counts for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    used: dict[int, int] = {}
    for pid in pids:
        try:
            used[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page // _MIB
        except (OSError, IndexError, ValueError):
            continue  # it has ended
    return used


def usage_source(simulated: bool) -> UsageSource:
    """The driver, or the stand-in where the cards are simulated."""
    return simulated_usage if simulated else nvml_usage
