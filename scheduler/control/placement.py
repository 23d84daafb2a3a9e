"""Where a worker goes: machine types in the app's order over what the hosts offer and what is taken. Pure.

Owns the choice of host and GPUs. Leaves reading hosts and workers and ordering the start to ``reconcile``, and the
words for "nobody offers this" to ``fal._offers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fal._offers import gpus_serving, is_gpu, refusal, serves, stands_in

from scheduler.store.records import HostRecord, WorkerRecord, WorkerState

#: Apps named as holders of what another one waits for.
MOST_HOLDERS = 5


@dataclass(frozen=True, slots=True)
class Placed:
    """A place for one worker. ``cpu_fallback_for`` names the GPU type that the host's CPU stands in for."""

    host: str
    machine_type: str
    gpu_ids: tuple[int, ...] = ()
    cpu_fallback_for: str | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """No place now; ``reason`` says what is taken or offered. ``busy``: a worker that leaves would make room.

    ``holders`` are the workers that would.
    """

    reason: str
    busy: bool = False
    holders: tuple[WorkerRecord, ...] = ()

    @property
    def words(self) -> str:
        """The reason, and who holds what is wanted."""
        if not self.holders:
            return self.reason
        by_app: dict[str, list[str]] = {}
        for worker in self.holders:
            by_app.setdefault(worker.app, []).append(worker.state.value.lower())
        most = sorted(by_app.items())[:MOST_HOLDERS]
        named = [f"{app} ({', '.join(sorted(states))})" for app, states in most]
        more = f" and {len(by_app) - len(most)} more apps" if len(by_app) > len(most) else ""
        return f"{self.reason.rstrip('.')}, by {', '.join(named)}{more}."


def place(
    machine_types: Sequence[str], num_gpus: int, hosts: Iterable[HostRecord], taken: Iterable[WorkerRecord]
) -> Placed | Blocked:
    """The place for one more worker.

    Real offers are tried for every type in order before any CPU stands in for a GPU: a type further down the app's
    own list is what its author chose as the alternative. A type whose cards are all taken is waited for, never
    replaced by a slow CPU.

    Args:
        machine_types: names in order of preference.
        num_gpus: GPUs per worker; ignored for CPU types.
        hosts: all known hosts; those not alive are ignored.
        taken: every worker of every app; terminated ones are ignored.
    """
    alive = sorted((h for h in hosts if h.alive), key=lambda h: h.host)
    workers = [w for w in taken if w.state is not WorkerState.TERMINATED]
    load = {h.host: sum(1 for w in workers if w.host == h.host) for h in alive}
    used = {(w.host, gpu) for w in workers for gpu in w.gpu_ids}
    wanted = max(1, num_gpus)

    offered: list[str] = []
    wanted_cards: set[tuple[str, int]] = set()
    for machine_type in machine_types:
        serving = [h for h in alive if serves(machine_type, h, wanted)]
        if not serving:
            continue
        if not is_gpu(machine_type):
            return Placed(_least_loaded(serving, load), machine_type)
        found = _cards(machine_type, wanted, serving, used)
        if found is not None:
            return found
        offered.append(machine_type)
        wanted_cards |= {(host.host, gpu) for host in serving for gpu in gpus_serving(machine_type, host)}

    if offered:
        what = offered[0] if wanted == 1 else f"set of {wanted} x {offered[0]} on one host"
        holders = tuple(w for w in workers if any((w.host, gpu) in wanted_cards for gpu in w.gpu_ids))
        return Blocked(f"Waiting for a free {what}: all are in use.", busy=True, holders=holders)
    for machine_type in machine_types:
        allowing = [h for h in alive if stands_in(machine_type, h)]
        if allowing:
            return Placed(_least_loaded(allowing, load), machine_type, cpu_fallback_for=machine_type)
    return Blocked(refusal(machine_types, alive, wanted) or "No host has room.")


def _least_loaded(hosts: Sequence[HostRecord], load: dict[str, int]) -> str:
    return min(hosts, key=lambda h: (load[h.host], h.host)).host


def _cards(machine_type: str, wanted: int, hosts: Sequence[HostRecord], used: set[tuple[str, int]]) -> Placed | None:
    """The host with the fewest free cards that still fit, so that whole machines stay free for larger apps."""
    best: tuple[int, str, tuple[int, ...]] | None = None
    for host in hosts:
        free = sorted(gpu for gpu in gpus_serving(machine_type, host) if (host.host, gpu) not in used)
        if len(free) >= wanted and (best is None or (len(free), host.host) < best[:2]):
            best = (len(free), host.host, tuple(free[:wanted]))
    return Placed(best[1], machine_type, best[2]) if best else None
