"""How long requests wait and what that costs, by scaling policy: arrival traces replayed in virtual time.

    python benchmarks/scaling_traces.py [--seed 1] [--hours 2]

Ours is ``scheduler.control.policy.decide`` itself, asked at every event as the scheduler does. Beside it, over the same
arrivals, service times and starts: Knative's KPA (window of 60 s, panic window of 6 s, target 70 % of one request per
worker, from zero at once, back to zero 30 s after the window is empty; its documentation gives the numbers) and plain
"queue length / target", looked at each second. All may use the same most workers and keep none without need beyond what
their rules say. Prints one table per trace, and ratios to ours.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fal._spec import ScalingSpec

from scheduler.control.policy import Memory, Policy, decide
from scheduler.store.records import AppSeen, WorkerRecord, WorkerState

_MOST = 20
_KEEP_ALIVE = 60
_SERVICE_S = 2.0
_START_S = 8.0


@dataclass
class Worker:
    """One simulated worker; times in seconds."""

    name: str
    ordered: float
    ready: float
    idle_since: float | None = None
    busy: bool = False


@dataclass
class World:
    """What a policy sees."""

    now: float = 0.0
    queue: deque[float] = field(default_factory=deque)
    workers: dict[str, Worker] = field(default_factory=dict)

    @property
    def running(self) -> int:
        return sum(worker.busy for worker in self.workers.values())

    @property
    def demand(self) -> int:
        return len(self.queue) + self.running


class Scaler(Protocol):
    """A policy: how many workers to start now, and which to stop. ``again`` is when it must be asked next."""

    on_events: bool

    def look(self, world: World) -> tuple[int, list[str], float | None]: ...


class Ours:
    """The platform's own policy."""

    on_events = True

    def __init__(self) -> None:
        scaling = ScalingSpec(keep_alive=_KEEP_ALIVE, max_concurrency=_MOST)
        self._policy, self._memory = Policy("r", scaling), Memory()

    def look(self, world: World) -> tuple[int, list[str], float | None]:
        now_ms = round(world.now * 1000)
        oldest = round(world.queue[0] * 1000) if world.queue else None
        workers = tuple(_record(worker, world.now) for worker in world.workers.values())
        seen = AppSeen("o/a", now_ms, len(world.queue), 0, world.running, oldest, workers, None)
        decision, self._memory = decide(self._policy, seen, self._memory, now_ms)
        again = None if decision.again_at_ms is None else decision.again_at_ms / 1000
        return decision.start, [stop.worker_id for stop in decision.stops], again


def _record(worker: Worker, now: float) -> WorkerRecord:
    state = WorkerState.SETUP if now < worker.ready else WorkerState.RUNNING if worker.busy else WorkerState.IDLE
    return WorkerRecord(
        *("o/a", worker.name, "r", "box", state, "GPU", (0,), round(worker.ordered * 1000)),
        ready_at_ms=None if now < worker.ready else round(worker.ready * 1000),
        idle_since_ms=None if worker.idle_since is None else round(worker.idle_since * 1000),
        in_flight=int(worker.busy),
    )


class Knative:
    """The KPA's formula: average demand over a window, divided by the target; a short window decides in a panic."""

    on_events = False
    _TICK, _STABLE, _PANIC, _TARGET, _PANIC_AT, _GRACE = 2.0, 60.0, 6.0, 0.7, 2.0, 30.0

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._panic_until = -1.0
        self._most_in_panic = 0
        self._empty_since: float | None = None

    def look(self, world: World) -> tuple[int, list[str], float | None]:
        now = world.now
        self._samples.append((now, world.demand))
        while self._samples[0][0] < now - self._STABLE:
            self._samples.popleft()
        stable, panic = self._desired(now, self._STABLE), self._desired(now, self._PANIC)
        there = len(world.workers)
        if panic >= self._PANIC_AT * max(1, there):
            self._panic_until = now + self._STABLE
        if now < self._panic_until:
            self._most_in_panic = max(self._most_in_panic, panic, there)
            desired = self._most_in_panic
        else:
            self._most_in_panic, desired = 0, max(stable, math.floor(there / 2))  # at most halved at each tick
            desired = stable if stable > 0 else min(desired, 1)
        if world.demand and there == 0:
            desired = max(1, desired)  # the activator
        self._empty_since = None if desired or world.demand else self._empty_since or now
        if desired == 0 and now - (self._empty_since or now) < self._GRACE:
            desired = min(1, there)
        return _towards(world, min(_MOST, desired), now + self._TICK)

    def _desired(self, now: float, window: float) -> int:
        seen = [demand for at, demand in self._samples if at >= now - window]
        return math.ceil(sum(seen) / len(seen) / self._TARGET)


class Plain:
    """Demand over a target of one, each second; nothing is kept."""

    on_events = False

    def look(self, world: World) -> tuple[int, list[str], float | None]:
        return _towards(world, min(_MOST, world.demand), world.now + 1.0)


def _towards(world: World, desired: int, again: float) -> tuple[int, list[str], float | None]:
    idle = [w.name for w in world.workers.values() if w.idle_since is not None]
    return max(0, desired - len(world.workers)), idle[: max(0, len(world.workers) - desired)], again


@dataclass
class Outcome:
    """What a trace cost under one policy."""

    waits: list[float]
    worker_seconds: float
    cold_starts: int

    def wait(self, share: float) -> float:
        return sorted(self.waits)[min(len(self.waits) - 1, int(share * len(self.waits)))]


def replay(arrivals: Sequence[float], services: Sequence[float], scaler: Scaler) -> Outcome:
    """Run one trace to its end: every request is served once, in order of arrival."""
    world, waits = World(), list[float]()
    spent, started = 0.0, 0
    numbers, service = itertools.count(), iter(services)
    events: list[tuple[float, int, str, str]] = [(at, next(numbers), "arrival", "") for at in arrivals]
    events.append((0.0, next(numbers), "look", ""))
    heapq.heapify(events)
    left = len(arrivals)

    def push(at: float, kind: str, name: str = "") -> None:
        heapq.heappush(events, (at, next(numbers), kind, name))

    while events and (left or world.workers):
        world.now, _, kind, name = heapq.heappop(events)
        if kind == "arrival":
            world.queue.append(world.now)
        elif kind == "ready" and name in world.workers:
            world.workers[name].idle_since = world.now
        elif kind == "done":
            worker = world.workers[name]
            worker.busy, worker.idle_since = False, world.now
            left -= 1
        for worker in world.workers.values():
            if world.queue and worker.idle_since is not None:
                waits.append(world.now - world.queue.popleft())
                worker.busy, worker.idle_since = True, None
                push(world.now + next(service), "done", worker.name)
        if kind == "look" or scaler.on_events:
            start, stops, again = scaler.look(world)
            for stopped in stops:
                spent += world.now - world.workers.pop(stopped).ordered
            for _ in range(start):
                started += 1
                fresh = Worker(f"w{started}", world.now, world.now + _START_S)
                world.workers[fresh.name] = fresh
                push(fresh.ready, "ready", fresh.name)
            if again is not None and (left or world.workers):
                push(max(again, world.now + 0.001), "look")
    return Outcome(waits, spent, started)


# --- traces -----------------------------------------------------------------------------------------------------------


def poisson(draw: random.Random, seconds: float) -> Iterable[float]:
    """One request in four seconds on average: two workers' worth now and then."""
    return _thinned(draw, seconds, 0.25, lambda _: 0.25)


def diurnal(draw: random.Random, seconds: float) -> Iterable[float]:
    """A day pressed into the time: from nothing to three requests a second and back."""
    return _thinned(draw, seconds, 3.0, lambda at: 3.0 * max(0.0, math.sin(2 * math.pi * at / seconds)) ** 2)


def bursty(draw: random.Random, seconds: float) -> Iterable[float]:
    """Silence, and every ten minutes or so forty requests within five seconds."""
    at = draw.expovariate(1 / 300)
    while at < seconds:
        yield from sorted(at + draw.uniform(0, 5) for _ in range(40))
        at += 5 + draw.expovariate(1 / 600)


def sparse(draw: random.Random, seconds: float) -> Iterable[float]:
    """A lone request every three minutes: what sleeping is for."""
    return _thinned(draw, seconds, 1 / 180, lambda _: 1 / 180)


def _thinned(draw: random.Random, seconds: float, most: float, rate: Callable[[float], float]) -> Iterable[float]:
    at = draw.expovariate(most)
    while at < seconds:
        if draw.random() * most <= rate(at):
            yield at
        at += draw.expovariate(most)


_TRACES = {"Poisson": poisson, "diurnal": diurnal, "bursty": bursty, "sparse": sparse}
_SCALERS: dict[str, Callable[[], Scaler]] = {"Keepwarm": Ours, "Knative KPA": Knative, "queue / target": Plain}


def run(seed: int, hours: float) -> str:
    """All traces under all policies, as Markdown."""
    lines = [
        "| trace | policy | wait p50 / p95 / p99 s | x | worker-seconds | x | cold starts | x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, trace in _TRACES.items():
        draw = random.Random(f"{seed} {name}")
        arrivals = list(trace(draw, hours * 3600))
        services = [draw.lognormvariate(math.log(_SERVICE_S), 0.5) for _ in arrivals]
        ours: Outcome | None = None
        for policy, make in _SCALERS.items():
            found = replay(arrivals, services, make())
            ours = ours or found
            mean, our_mean = sum(found.waits) / len(found.waits), sum(ours.waits) / len(ours.waits)
            lines.append(
                f"| {name} ({len(arrivals)}) | {policy}"
                f" | {found.wait(0.5):.1f} / {found.wait(0.95):.1f} / {found.wait(0.99):.1f}"
                f" | {mean / max(our_mean, 1e-9):.2f}"
                f" | {found.worker_seconds:.0f} | {found.worker_seconds / ours.worker_seconds:.2f}"
                f" | {found.cold_starts} | {found.cold_starts / ours.cold_starts:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=2.0, help="length of each trace, in virtual time")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.hours:g} h each; median request {_SERVICE_S:g} s, start {_START_S:g} s,")
    print(f"at most {_MOST} workers, keep_alive {_KEEP_ALIVE} s; x: beside Keepwarm, of waits the mean\n")
    print(run(options.seed, options.hours))


if __name__ == "__main__":
    main()
