"""Names of machine types: which of them a card serves, and what an operator's ``--offer`` makes of a host.

Pure. Leaves asking the driver to ``inventory`` and the refusal of an unavailable type to ``fal._offers``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fal._offers import is_gpu
from fal._spec import CPU_MACHINE_TYPES

#: Machine type -> pattern over NVML's product name. Close relatives with other memory or speed are kept apart on
#: purpose (A800, H20, GH200, RTX 6000 Ada, laptop chips): an operator who wants them to count says so with --offer.
_PRODUCTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("GPU-A100", r"\bA100\b"),
        ("GPU-H100", r"\bH100\b"),
        ("GPU-H200", r"\bH200\b"),
        ("GPU-B200", r"\bG?B200\b"),
        ("GPU-L40", r"\bL40S?\b"),
        ("GPU-RTX4090", r"\bRTX 4090\b(?! Laptop)"),
        ("GPU-RTX5090", r"\bRTX 5090\b(?! Laptop)"),
        ("GPU-A6000", r"\bRTX A6000\b"),
    )
)
_OFFER = re.compile(r"(?P<name>GPU(?:-[A-Za-z0-9][A-Za-z0-9._-]*)?)=(?P<count>\d{1,3})")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card: driver ``index``, product ``name``, ``memory_mb``, and the machine types that it serves."""

    index: int
    name: str
    memory_mb: int
    machine_types: tuple[str, ...] = ()


def machine_types_of(product: str) -> tuple[str, ...]:
    """The machine types that a card with this NVML product name serves; every card serves plain ``GPU``."""
    return (*(name for name, pattern in _PRODUCTS if pattern.search(product)), "GPU")


def parse_offer(text: str) -> dict[str, int]:
    """What ``--offer`` says: ``"GPU-A100=2,GPU-L40=1"`` as ``{"GPU-A100": 2, "GPU-L40": 1}``.

    Raises:
        ValueError: something else; CPU types are not offered this way because every host has them.
    """
    offer: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _OFFER.fullmatch(item)
        if match is None:
            hint = "CPU types are on every host and need no offer" if item.split("=")[0] in CPU_MACHINE_TYPES else ""
            raise ValueError(f"cannot read the offer {item!r}: write GPU-A100=2{f' ({hint})' if hint else ''}")
        name, count = match["name"], int(match["count"])
        if name in offer:
            raise ValueError(f"the offer names {name} twice")
        offer[name] = count
    return offer


def apply_offer(gpus: Sequence[Gpu], offer: Mapping[str, int] | None) -> tuple[Gpu, ...]:
    """The cards as they are offered: each as what it is, or, with an ``offer``, only those that it counts.

    A card that really is the named type is taken first; then any other one, because the operator's word counts.

    Raises:
        ValueError: more cards are offered than the host has.
    """
    detected = [replace(gpu, machine_types=machine_types_of(gpu.name)) for gpu in gpus]
    if offer is None:
        return tuple(detected)
    wanted = sum(offer.values())
    if wanted > len(detected):
        seen = ", ".join(gpu.name for gpu in detected) or "none"
        raise ValueError(f"{wanted} GPUs are offered but the driver shows {len(detected)} ({seen}); lower the offer")
    free = list(detected)
    offered: list[Gpu] = []
    for name, count in offer.items():
        free.sort(key=lambda gpu, name=name: (name not in gpu.machine_types, gpu.index))  # type: ignore[misc]
        taken, free = free[:count], free[count:]
        names = (name,) if name == "GPU" else (name, "GPU")
        offered += [replace(gpu, machine_types=names) for gpu in taken]
    return tuple(sorted(offered, key=lambda gpu: gpu.index))


def host_machine_types(gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """Every name that a host with these cards serves for real: its GPUs' types, then all CPU types."""
    names = dict.fromkeys(name for gpu in gpus for name in gpu.machine_types if is_gpu(name))
    return (*names, *CPU_MACHINE_TYPES)
