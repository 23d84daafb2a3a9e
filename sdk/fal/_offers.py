"""Which hosts can run a machine type, and the one text that says so when none can.

Pure and standard library only: the gateway, the operator's doctor and the CLI all say it with these words. Leaves what
a host really has to ``gpu_worker.inventory``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Protocol

from fal._spec import CPU_MACHINE_TYPES

#: GPU machine types of fal's documentation; operators may offer others under names of their own.
GPU_MACHINE_TYPES = (
    "GPU-RTX4090", "GPU-RTX5090", "GPU-A6000", "GPU-L40", "GPU-A100", "GPU-H100", "GPU-H200", "GPU-B200", "GPU",
)  # fmt: skip


class HostOffer(Protocol):
    """What is needed of a host; the store's ``HostRecord`` is one."""

    @property
    def machine_types(self) -> Sequence[str]: ...
    @property
    def gpus(self) -> Sequence[tuple[int, str, int, Sequence[str]]]: ...
    @property
    def cpu_fallback(self) -> bool: ...
    @property
    def alive(self) -> bool: ...


def is_gpu(machine_type: str) -> bool:
    """Whether the name asks for a GPU: ``GPU`` or ``GPU-...``."""
    return machine_type == "GPU" or machine_type.startswith("GPU-")


def gpus_serving(machine_type: str, host: HostOffer, memory_mb: int = 0) -> tuple[int, ...]:
    """Indexes of the host's GPUs that this type may use and that have that much memory, in the host's order."""
    return tuple(gpu[0] for gpu in host.gpus if machine_type in gpu[3] and gpu[2] >= memory_mb)


def serves(machine_type: str, host: HostOffer, num_gpus: int = 1, memory_mb: int = 0) -> bool:
    """Whether the host has the type for real; if it is a GPU type, enough such GPUs with that much memory each."""
    if machine_type not in host.machine_types:
        return False
    return not is_gpu(machine_type) or len(gpus_serving(machine_type, host, memory_mb)) >= max(num_gpus, 1)


def stands_in(machine_type: str, host: HostOffer) -> bool:
    """Whether the host's CPU may stand in for this GPU type, by its operator's explicit choice.

    Known names only, so that a misspelt one is refused instead of running slowly for ever.
    """
    return host.cpu_fallback and machine_type in GPU_MACHINE_TYPES


def refusal(
    machine_types: Sequence[str], hosts: Iterable[HostOffer], num_gpus: int = 1, memory_mb: int = 0
) -> str | None:
    """Why none of ``machine_types`` can run, what the hosts offer and what to do next; None when one can.

    Hosts that are not alive offer nothing. ``memory_mb``: MiB that each GPU must have.
    """
    alive = [host for host in hosts if host.alive]
    if any(
        serves(name, host, num_gpus, memory_mb) or stands_in(name, host) for name in machine_types for host in alive
    ):
        return None
    size = f" with {memory_mb / 1024:g} GB (gpu_memory)" if memory_mb else ""
    wanted = _either(
        [f"{f'{num_gpus} x ' if num_gpus > 1 else ''}{name}{size}" if is_gpu(name) else name for name in machine_types]
    )
    if not alive:
        return (
            f"No host offers {wanted}: no host is connected. Next: start one with `keepwarm up` "
            "(on a machine that joins a platform: `keepwarm service agent`)."
        )
    offers = _offered(alive)
    subject = "This host offers" if len(alive) == 1 else f"The {len(alive)} hosts offer"
    return f"No host offers {wanted}. {subject} {_listing(alive, offers)}. Next: {_next_step(machine_types, offers)}."


def _offered(hosts: Sequence[HostOffer]) -> list[str]:
    known = [*GPU_MACHINE_TYPES, *CPU_MACHINE_TYPES]
    names = {name for host in hosts for name in host.machine_types}
    return sorted(names, key=lambda name: (known.index(name) if name in known else -1, name))


def _listing(hosts: Sequence[HostOffer], offers: Sequence[str]) -> str:
    parts = []
    for name in offers:
        if is_gpu(name):
            most = max(len(gpus_serving(name, host)) for host in hosts)
            parts.append(f"{name} ({most} GPU{'s' if most != 1 else ''}{' at most' if len(hosts) > 1 else ''})")
    cpu = [name for name in offers if not is_gpu(name)]
    if cpu:
        parts.append(f"CPU types {', '.join(cpu)}")
    return " and ".join(parts) if parts else "nothing"


def _next_step(machine_types: Sequence[str], offers: Sequence[str]) -> str:
    steps = []
    unknown = [name for name in machine_types if name not in GPU_MACHINE_TYPES and name not in CPU_MACHINE_TYPES]
    for name in unknown:
        close = difflib.get_close_matches(name, [*GPU_MACHINE_TYPES, *CPU_MACHINE_TYPES, *offers], n=1, cutoff=0.7)
        steps += [f'correct "{name}" (did you mean "{close[0]}"?)'] if close else []
    if any(is_gpu(name) for name in machine_types):
        steps.append("run it on a machine with that GPU")
    offered_gpus = [name for name in offers if is_gpu(name)]
    alternative = offered_gpus[0] if offered_gpus else "M" if "M" in offers else next(iter(offers), None)
    if alternative is not None and alternative not in machine_types:
        steps.append(f'choose machine_type = "{alternative}"')
    if any(is_gpu(name) for name in machine_types):
        steps.append("let the CPU stand in (slow) with --cpu-fallback")
    return _either(steps, ", ") if steps else "ask the operator what the hosts offer (`keepwarm hosts`)"


def _either(items: Sequence[str], separator: str = ", ") -> str:
    if len(items) < 3:
        return " or ".join(items)
    return f"{separator.join(items[:-1])}{separator}or {items[-1]}"
