"""Where a worker goes: machine types in the app's order over what the hosts offer and what is taken. Pure.

Owns the choice of host and GPUs, and of the idle workers that would have to go. Leaves reading hosts and workers and
ordering starts and stops to ``placing``, and the words for "nobody offers this" to ``fal._offers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fal._offers import gpus_serving, is_gpu, refusal, serves, stands_in
from fal._spec import CPU_MACHINE_TYPES

from scheduler.store.records import HostRecord, WorkerRecord, WorkerState

#: Apps named as holders of what another one waits for.
MOST_HOLDERS = 5


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker takes: machine types in order of preference, GPUs (ignored for CPU types), MiB of each.

    ``gpu_memory_mb`` 0: whole GPUs. Otherwise it shares them with workers that say theirs, too.
    """

    machine_types: tuple[str, ...]
    num_gpus: int = 1
    gpu_memory_mb: int = 0

    @property
    def cards(self) -> int:
        """GPUs on one host."""
        return max(1, self.num_gpus)


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


@dataclass(frozen=True, slots=True)
class _Card:
    """One GPU that serves a machine type, and who is on it."""

    index: int
    memory_mb: int
    workers: tuple[WorkerRecord, ...]

    @property
    def left_mb(self) -> int:
        """MiB that nobody was given."""
        if any(w.gpu_memory_mb == 0 for w in self.workers):
            return 0
        return self.memory_mb - sum(w.gpu_memory_mb for w in self.workers)

    def has_room(self, memory_mb: int) -> bool:
        """For a worker that needs so much, or the whole card (0)."""
        return not self.workers if memory_mb == 0 else self.left_mb >= memory_mb

    def cheapest_to_go(self, memory_mb: int, costs: Mapping[str, float]) -> tuple[WorkerRecord, ...] | None:
        """Who must go for that room; None when those who may are not enough."""
        return _cheapest_to_go(self.workers, costs, lambda staying: replace(self, workers=staying).has_room(memory_mb))


@dataclass(frozen=True, slots=True)
class _Room:
    """What workers of CPU types have of one host. A type larger than the machine counts as the whole machine."""

    host: HostRecord
    workers: tuple[WorkerRecord, ...]

    def _share(self, machine_type: str) -> tuple[float, float]:
        cores, mb = CPU_MACHINE_TYPES.get(machine_type, (0, 0))
        host = self.host
        return min(cores, host.cpus, host.room_cores or cores), min(mb, host.memory_mb, host.room_mb or mb)

    def left_after(self, machine_type: str) -> tuple[float, float]:
        """Cores and MiB that nobody was given once one more is there; negative where it does not fit.

        What the host does not count is taken from the machine itself: a measure for choosing, not a limit.
        """
        shares = [self._share(machine_type), *(self._share(w.machine_type) for w in self.workers)]
        cores = (self.host.room_cores or self.host.cpus) - sum(share[0] for share in shares)
        return cores, (self.host.room_mb or self.host.memory_mb) - sum(share[1] for share in shares)

    def has_room(self, machine_type: str) -> bool:
        """For one more."""
        cores, mb = self.left_after(machine_type)
        return (cores >= 0 or not self.host.room_cores) and (mb >= 0 or not self.host.room_mb)

    def merit(self, machine_type: str) -> tuple[bool, float, float]:
        """Orders hosts with room, the best last: machines as large as the type, then most cores left, then memory."""
        cores, mb = CPU_MACHINE_TYPES.get(machine_type, (0, 0))
        return self.host.cpus >= cores and self.host.memory_mb >= mb, *self.left_after(machine_type)

    def cheapest_to_go(self, machine_type: str, costs: Mapping[str, float]) -> tuple[WorkerRecord, ...] | None:
        """Who must go for one more; None when those who may are not enough."""
        return _cheapest_to_go(
            self.workers, costs, lambda staying: replace(self, workers=staying).has_room(machine_type)
        )


def _cheapest_to_go(
    there: Sequence[WorkerRecord],
    costs: Mapping[str, float],
    leaves_room: Callable[[tuple[WorkerRecord, ...]], bool],
) -> tuple[WorkerRecord, ...] | None:
    """Cheapest first until those who stay leave room; whoever then turns out not to be needed stays after all.

    Not always the least sum: that would take a search over all sets.
    """

    def enough(gone: Sequence[WorkerRecord]) -> bool:
        ids = {w.worker_id for w in gone}
        return leaves_room(tuple(w for w in there if w.worker_id not in ids))

    gone: list[WorkerRecord] = []
    for worker in sorted(there, key=lambda w: (costs.get(w.worker_id, 0.0), w.worker_id)):
        if enough(gone):
            break
        if worker.worker_id in costs:
            gone.append(worker)
    if not enough(gone):
        return None
    for dearest in reversed(gone):
        others = [w for w in gone if w is not dearest]
        if enough(others):
            gone = others
    return tuple(gone)


def place(need: Need, hosts: Iterable[HostRecord], taken: Iterable[WorkerRecord]) -> Placed | Blocked:
    """The place for one more worker.

    Real offers are tried for every type in order before any CPU stands in for a GPU: a type further down the app's
    own list is what its author chose as the alternative. A type whose cards are all taken is waited for, never
    replaced by a slow CPU.

    Args:
        hosts: all known hosts; those not alive are ignored.
        taken: every worker of every app; terminated ones are ignored.
    """
    alive, workers = _alive(hosts), _living(taken)
    load = {h.host: sum(1 for w in workers if w.host == h.host) for h in alive}

    offered: list[str] = []
    holders: dict[str, WorkerRecord] = {}
    for machine_type in need.machine_types:
        serving = [h for h in alive if serves(machine_type, h, need.cards, need.gpu_memory_mb)]
        if not serving:
            continue
        if not is_gpu(machine_type):
            rooms = [_room(h, workers) for h in serving]
            fitting = [room for room in rooms if room.has_room(machine_type)]
            if fitting:
                # Of equals the one with the fewest workers of any kind, then the first by name: max keeps the first.
                fitting.sort(key=lambda room: (load[room.host.host], room.host.host))
                return Placed(max(fitting, key=lambda room: room.merit(machine_type)).host.host, machine_type)
            offered.append(machine_type)
            holders |= {w.worker_id: w for room in rooms for w in room.workers}
            continue
        found = _cards_for(machine_type, need, serving, workers)
        if found is not None:
            return found
        offered.append(machine_type)
        holders |= {w.worker_id: w for h in serving for c in _cards(machine_type, h, need, workers) for w in c.workers}

    if offered:
        reason = f"Waiting for {wanted(offered[0], need)}: all are in use."
        return Blocked(reason, busy=True, holders=tuple(holders.values()))
    for machine_type in need.machine_types:
        allowing = [h for h in alive if stands_in(machine_type, h)]
        if allowing:
            return Placed(_least_loaded(allowing, load), machine_type, cpu_fallback_for=machine_type)
    why = refusal(need.machine_types, alive, need.cards, need.gpu_memory_mb)
    return Blocked(why or "No host has room.")


def wanted(machine_type: str, need: Need) -> str:
    """What one worker of the type takes, for "Waiting for ..."."""
    if not is_gpu(machine_type):
        cores, mb = CPU_MACHINE_TYPES.get(machine_type, (0, 0))
        return f"{cores:g} core{'' if cores == 1 else 's'} and {mb / 1024:g} GB of memory ({machine_type})"
    if need.cards > 1:
        return f"a free set of {need.cards} x {machine_type} on one host"
    if need.gpu_memory_mb:
        return f"a free {need.gpu_memory_mb / 1024:g} GB of a {machine_type}"
    return f"a free {machine_type}"


def place_again(
    need: Need, suspended: Iterable[WorkerRecord], hosts: Iterable[HostRecord], taken: Iterable[WorkerRecord]
) -> WorkerRecord | None:
    """The suspended worker that can take its own cards again, the one that was in use last; None: none can.

    Args:
        suspended: of the app's current revision. taken: as for ``place``.
    """
    alive, workers = {h.host: h for h in _alive(hosts)}, _living(taken)
    for worker in sorted(suspended, key=lambda w: (-(w.idle_since_ms or 0), w.worker_id)):
        host = alive.get(worker.host)
        if host is None:
            continue
        own = replace(need, gpu_memory_mb=worker.gpu_memory_mb)
        free = {c.index for c in _cards(worker.machine_type, host, own, workers) if c.has_room(own.gpu_memory_mb)}
        if free.issuperset(worker.gpu_ids):
            return worker
    return None


def make_room(
    need: Need, hosts: Iterable[HostRecord], taken: Iterable[WorkerRecord], costs: Mapping[str, float]
) -> tuple[WorkerRecord, ...]:
    """The workers whose leaving lets one more start, at the lowest cost together; empty when no such set exists.

    Types are tried in the app's order, and all GPUs, or cores and memory, come from one host.

    Args:
        costs: by worker id, for those that may go; others stay.
    """
    alive, workers = _alive(hosts), _living(taken)
    for machine_type in need.machine_types:
        best: tuple[float, str, tuple[WorkerRecord, ...]] | None = None
        for host in alive:
            if not serves(machine_type, host, need.cards, need.gpu_memory_mb):
                continue
            if not is_gpu(machine_type):
                leaving = _room(host, workers).cheapest_to_go(machine_type, costs)
                if leaving is not None:
                    option = (sum(costs[w.worker_id] for w in leaving), host.host, leaving)
                    best = option if best is None or option[:2] < best[:2] else best
                continue
            sets = (c.cheapest_to_go(need.gpu_memory_mb, costs) for c in _cards(machine_type, host, need, workers))
            by_cost = [(sum(costs[w.worker_id] for w in gone), gone) for gone in sets if gone is not None]
            by_cost.sort(key=lambda option: option[0])
            if len(by_cost) < need.cards:
                continue
            chosen = by_cost[: need.cards]
            going = {w.worker_id: w for _, gone in chosen for w in gone}
            option = (sum(cost for cost, _ in chosen), host.host, tuple(going.values()))
            if best is None or option[:2] < best[:2]:
                best = option
        if best is not None:
            return best[2]
    return ()


def _alive(hosts: Iterable[HostRecord]) -> list[HostRecord]:
    return sorted((h for h in hosts if h.alive), key=lambda h: h.host)


def _living(taken: Iterable[WorkerRecord]) -> list[WorkerRecord]:
    """Those that hold what they were given: a suspended worker's cards are free."""
    return [w for w in taken if w.state not in (WorkerState.TERMINATED, WorkerState.SUSPENDED)]


def _least_loaded(hosts: Sequence[HostRecord], load: dict[str, int]) -> str:
    return min(hosts, key=lambda h: (load[h.host], h.host)).host


def _room(host: HostRecord, workers: Iterable[WorkerRecord]) -> _Room:
    """Workers of GPU types are not counted; one for which the CPU stands in has the GPU's type, too."""
    return _Room(host, tuple(w for w in workers if w.host == host.host and not is_gpu(w.machine_type)))


def _cards(machine_type: str, host: HostRecord, need: Need, workers: Sequence[WorkerRecord]) -> list[_Card]:
    here = [w for w in workers if w.host == host.host]
    sizes = {gpu[0]: gpu[2] for gpu in host.gpus}
    return [
        _Card(index, sizes[index], tuple(w for w in here if index in w.gpu_ids))
        for index in gpus_serving(machine_type, host, need.gpu_memory_mb)
    ]


def _cards_for(
    machine_type: str, need: Need, hosts: Sequence[HostRecord], workers: Sequence[WorkerRecord]
) -> Placed | None:
    """The host with the least room that still fits, and its fullest GPUs: what is whole stays so for larger apps."""
    best: tuple[int, str, tuple[int, ...]] | None = None
    for host in hosts:
        fitting = [c for c in _cards(machine_type, host, need, workers) if c.has_room(need.gpu_memory_mb)]
        fitting.sort(key=lambda c: (c.left_mb if need.gpu_memory_mb else 0, c.index))
        if len(fitting) < need.cards:
            continue
        chosen = fitting[: need.cards]
        room = sum(c.left_mb for c in chosen) if need.gpu_memory_mb else len(fitting)
        if best is None or (room, host.host) < best[:2]:
            best = (room, host.host, tuple(c.index for c in chosen))
    return Placed(best[1], machine_type, best[2]) if best else None
