"""What this machine has: GPUs through NVML, CPUs and memory through psutil, or a simulated set for tests.

No driver or no NVML library means no GPUs, not an error. Leaves names of machine types to ``machine_types``.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence

from gpu_worker.machine_types import Gpu, apply_offer, host_machine_types, parse_offer
from scheduler.store.records import HostRecord

#: Lists the machine's cards, without machine types.
GpuSource = Callable[[], Sequence[Gpu]]
_SIMULATED = re.compile(r"(?P<name>[^=:]+)(?::(?P<memory>\d+))?=(?P<count>\d{1,3})")


def nvml_gpus() -> tuple[Gpu, ...]:
    """The cards that the NVIDIA driver shows, by PCI order; empty without a driver.

    NVML's order is PCI order, which is why runners get ``CUDA_DEVICE_ORDER=PCI_BUS_ID``: CUDA's own order differs.
    """
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_nvml_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:  # a card that fell off the bus must not take the host's CPUs with it
        return ()
    finally:
        pynvml.nvmlShutdown()


def _nvml_gpu(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total // (1024 * 1024)
    return Gpu(index, name.decode() if isinstance(name, bytes) else str(name), int(memory))


def simulated_gpus(text: str) -> GpuSource:
    """A source that shows cards that are not there: ``"NVIDIA A100-SXM4-40GB:40960=2,NVIDIA L40S=1"``.

    Raises:
        ValueError: unreadable text.
    """
    gpus: list[Gpu] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _SIMULATED.fullmatch(item)
        if match is None:
            raise ValueError(f"cannot read the simulated GPUs {item!r}: write NVIDIA L40S:46068=2")
        memory = int(match["memory"] or 24576)
        gpus += [Gpu(len(gpus) + n, match["name"].strip(), memory) for n in range(int(match["count"]))]
    return lambda: tuple(gpus)


def local_host(
    *,
    cpu_fallback: bool = False,
    offer: str | None = None,
    host_id: str | None = None,
    gpu_source: GpuSource | None = None,
    cpu_overcommit: float = 0,
    memory_overcommit: float = 0,
) -> HostRecord:
    """This machine as a host.

    Args:
        cpu_fallback: the operator lets the CPU stand in for GPU types.
        offer: ``"GPU-A100=2"`` when the operator limits or renames what is offered.
        host_id: its name; the machine's host name if not given.
        gpu_source: where GPUs come from; the driver if not given.
        cpu_overcommit, memory_overcommit: how many times the machine's cores and RAM its workers of CPU types may
            take together; 0: they are not counted.

    Raises:
        ValueError: an unreadable offer, or one of more cards than there are.
    """
    import psutil

    gpus = apply_offer((gpu_source or nvml_gpus)(), parse_offer(offer) if offer else None)
    cpus, memory_mb = usable_cpus(), psutil.virtual_memory().total // (1024 * 1024)
    return HostRecord(
        host=host_id or socket.gethostname(),
        machine_types=host_machine_types(gpus),
        gpus=tuple((gpu.index, gpu.name, gpu.memory_mb, gpu.machine_types) for gpu in gpus),
        cpu_fallback=cpu_fallback,
        cpus=cpus,
        memory_mb=memory_mb,
        room_cores=cpus * cpu_overcommit,
        room_mb=round(memory_mb * memory_overcommit),
    )


def usable_cpus() -> int:
    """Cores that this process may use; fewer than the machine has under ``taskset`` or a cpuset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_source(environ: Mapping[str, str]) -> GpuSource:
    """The driver, or what ``KEEPWARM_SIMULATED_GPUS`` describes."""
    text = environ.get("KEEPWARM_SIMULATED_GPUS")
    return simulated_gpus(text) if text else nvml_gpus
