"""Carries placement out for one leader: who is on which card, who waits for one, who makes room.

Owns the picture of all workers and of the apps that wait for a place. Leaves how many workers an app should have to
``reconcile`` and ``policy``, and the choice of cards and of those who go to ``placement``.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from scheduler.control.placement import Blocked, Need, Placed, make_room, place, place_again, wanted
from scheduler.control.policy import StopHow
from scheduler.store import Store
from scheduler.store.records import (
    AppRecord,
    AppSeen,
    HostRecord,
    LogEntry,
    RevisionRecord,
    WorkerRecord,
    WorkerState,
)

log = structlog.get_logger("scheduler")


@dataclass(frozen=True, slots=True)
class Waiting:
    """An app that wants a worker and has no place for it, since when and why."""

    need: Need
    priority: int
    since_ms: int
    blocked: Blocked

    @property
    def turn(self) -> tuple[int, int]:
        """Orders those who wait; the lowest comes first."""
        return -self.priority, self.since_ms


class Placer:
    """Places workers, one at a time over all apps, so that no card is given away twice."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fleet: dict[str, tuple[WorkerRecord, ...]] = {}
        self._waiting: dict[str, Waiting] = {}
        self._lock = asyncio.Lock()
        self._knows_the_fleet = False

    def update(self, app: str, workers: tuple[WorkerRecord, ...]) -> bool:
        """What a look saw of an app's workers; whether there is more room now, which others may be waiting for."""
        before = _holders(self._fleet.get(app, ()))
        if workers:
            self._fleet[app] = workers
        else:
            self._fleet.pop(app, None)
        return bool(before - _holders(workers))

    def forget(self, app: str) -> None:
        """The app wants nothing more."""
        self._fleet.pop(app, None)
        self._waiting.pop(app, None)

    def waiting(self, app: str) -> Waiting | None:
        """What the app waits for, if it does."""
        return self._waiting.get(app)

    async def wants_no_more(self, app: str) -> None:
        """A place was found, or is not needed any more."""
        if self._waiting.pop(app, None) is not None:
            await self._store.apps.not_blocked(app)

    async def start(self, record: AppRecord, revision: RevisionRecord, seen: AppSeen, count: int, epoch: int) -> bool:
        """Place up to ``count`` workers; False when there is no place for one of them.

        Raises:
            StaleLeader, StoreUnavailable.
        """
        need = need_of(revision)
        async with self._lock:
            await self.learn_the_fleet()
            hosts = await self._store.hosts.list()
            for _ in range(count):
                if await self._resume(record, need, seen.now_ms, hosts, epoch):
                    continue
                found = self._place(record, need, seen.now_ms, hosts)
                if isinstance(found, Blocked):
                    await self._wait(record, need, seen, found, hosts)
                    return False
                worker = _worker(revision, need, found, seen.now_ms)
                await self._store.workers.place(worker, epoch)
                self._fleet[record.app] = (*self._fleet.get(record.app, ()), worker)
                log.info("start", app=worker.app, worker=worker.worker_id, host=worker.host, type=worker.machine_type)
        await self.wants_no_more(record.app)
        return True

    async def _resume(
        self, record: AppRecord, need: Need, now_ms: int, hosts: Sequence[HostRecord], epoch: int
    ) -> bool:
        """Have a suspended worker of the app take its own cards again, where they are free; whether one does."""
        mine = self._fleet.get(record.app, ())
        sleeping = [w for w in mine if _sleeps(w) and w.revision == record.revision and w.retiring is None]
        worker = place_again(need, sleeping, hosts, self._taken())
        if worker is None:
            return False
        found = Placed(worker.host, worker.machine_type, worker.gpu_ids)
        if isinstance(self._unless_promised(record, need, found, now_ms, hosts), Blocked):
            return False
        back = await self._store.workers.resume(record.app, worker.worker_id, epoch)
        changed = replace(worker, state=WorkerState.SETUP if back else WorkerState.TERMINATED)
        self._fleet[record.app] = tuple(changed if w is worker else w for w in mine)
        if back:
            log.info("resume", app=worker.app, worker=worker.worker_id, host=worker.host, type=worker.machine_type)
        return back

    async def suspends(self, worker: WorkerRecord) -> bool:
        """Whether this idle worker is better suspended than ended: its host can, and has not too many of them yet, and
        its revision has not shown that it cannot. One that is counts from now on."""
        if not worker.gpu_ids or worker.cpu_fallback_for is not None or worker.retiring is not None:
            return False
        hosts = await self._store.hosts.list()
        most = next((h.suspends for h in hosts if h.host == worker.host and h.alive), 0)
        if sum(1 for w in self._taken() if w.host == worker.host and w.stop_requested == "suspend") >= most:
            return False
        app, revision = await asyncio.gather(
            self._store.apps.get(worker.app), self._store.apps.revision(worker.app, worker.revision)
        )
        if app is None or app.revision != worker.revision or revision is None or revision.suspension:
            return False
        told = replace(worker, stop_requested="suspend")
        workers = self._fleet.get(worker.app, ())
        self._fleet[worker.app] = tuple(told if w.worker_id == worker.worker_id else w for w in workers)
        return True

    def _place(self, record: AppRecord, need: Need, now_ms: int, hosts: Sequence[HostRecord]) -> Placed | Blocked:
        """A place that takes nothing from an app which is to have it first."""
        found = place(need, hosts, self._taken())
        if isinstance(found, Blocked) or found.cpu_fallback_for is not None:
            return found
        return self._unless_promised(record, need, found, now_ms, hosts)

    def _unless_promised(
        self, record: AppRecord, need: Need, found: Placed, now_ms: int, hosts: Sequence[HostRecord]
    ) -> Placed | Blocked:
        """First come more important apps, then those that have waited longer. What they could not use anyway is free
        to take."""
        taken = list(self._taken())
        mine = self._waiting.get(record.app)
        turn = (-record.scaling.app_priority, mine.since_ms if mine is not None else now_ms)
        after = [*taken, _holder(need, found)]
        for app, other in sorted(self._waiting.items(), key=lambda item: item[1].turn):
            if app == record.app or other.turn >= turn:
                continue
            could, still = place(other.need, hosts, taken), place(other.need, hosts, after)
            if isinstance(could, Placed) and isinstance(still, Blocked):
                return Blocked(f"Waiting for {wanted(found.machine_type, need)}: {app} has it first.", busy=True)
        return found

    def _taken(self) -> Iterable[WorkerRecord]:
        return (worker for workers in self._fleet.values() for worker in workers)

    async def _wait(
        self, record: AppRecord, need: Need, seen: AppSeen, blocked: Blocked, hosts: Sequence[HostRecord]
    ) -> None:
        app = record.app
        before = self._waiting.get(app)
        if before is None or before.blocked.reason != blocked.reason:
            log.warning("blocked", app=app, reason=blocked.reason)
            await self._store.logs.append(app, [LogEntry("", seen.now_ms / 1000, "WARN", blocked.reason)])
        since_ms = seen.now_ms if before is None else before.since_ms
        self._waiting[app] = Waiting(need, record.scaling.app_priority, since_ms, blocked)
        await self._store.apps.say_blocked(app, blocked.words)
        if blocked.busy:
            await self._make_room(record, need, seen, blocked.holders, hosts)

    async def _make_room(
        self,
        record: AppRecord,
        need: Need,
        seen: AppSeen,
        holders: Sequence[WorkerRecord],
        hosts: Sequence[HostRecord],
    ) -> None:
        """Idle workers that may go, go: those past their keep_alive, and those of less important apps.

        Of the app's own old revision (or worn out) also a busy one leaves, after what it is doing: there is no other
        way to change an app's code on its only card.
        """
        costs = await self._costs(record, seen, holders)
        for worker in make_room(need, hosts, self._taken(), costs):
            if not worker.takes_requests:
                continue
            how: StopHow = "suspend" if await self.suspends(worker) else "idle"
            why = f"makes room for {record.app}"
            if worker.app == record.app:
                how, why = "drain", worker.retiring or "makes room for the new revision"
            log.info("stop", app=worker.app, worker=worker.worker_id, how=how, reason=why)
            await self._store.workers.request_stop(worker.app, worker.worker_id, how, why)

    async def _costs(self, record: AppRecord, seen: AppSeen, holders: Sequence[WorkerRecord]) -> dict[str, float]:
        """What it costs that each of those goes who may: what a new start would take, over how long it was idle."""
        names = sorted({w.app for w in holders} - {record.app})
        aliases = dict(zip(names, await asyncio.gather(*map(self._store.apps.get, names)), strict=True))
        costs: dict[str, float] = {}
        for worker in holders:
            alias = aliases.get(worker.app)
            if not worker.takes_requests:
                costs[worker.worker_id] = 0.0
            elif worker.app == record.app:
                old = worker.revision != record.revision or worker.retiring is not None
                if old and worker.state in (WorkerState.IDLE, WorkerState.RUNNING):
                    costs[worker.worker_id] = 1.0 + worker.in_flight
            elif alias is not None and self._may_go(worker, alias, record, seen.now_ms):
                idle_s = max(1.0, (seen.now_ms - (worker.idle_since_ms or seen.now_ms)) / 1000)
                costs[worker.worker_id] = max(0.1, worker.stages.get("total", 1.0)) / idle_s
        return costs

    def _may_go(self, worker: WorkerRecord, alias: AppRecord, waiting: AppRecord, now_ms: int) -> bool:
        if worker.state is not WorkerState.IDLE or worker.in_flight or worker.leftover or worker.idle_since_ms is None:
            return False
        scaling = alias.scaling
        if scaling.app_priority < waiting.scaling.app_priority:
            return True
        kept = sum(1 for w in self._fleet.get(alias.app, ()) if w.takes_requests)
        promised = max(worker.idle_since_ms, worker.ready_at_ms or 0) + scaling.keep_alive * 1000
        return kept > scaling.min_concurrency and promised <= now_ms

    async def learn_the_fleet(self) -> None:
        """What an earlier leader placed takes up cards, also in apps that were not looked at yet.

        Asked once, best before the first request needs it: a thousand apps take 50 ms.
        """
        if self._knows_the_fleet:
            return
        names = [name for name in await self._store.apps.names() if name not in self._fleet]
        for name, workers in zip(names, await asyncio.gather(*map(self._store.workers.list, names)), strict=True):
            if workers:
                self._fleet.setdefault(name, tuple(workers))
        self._knows_the_fleet = True


def _holders(workers: Iterable[WorkerRecord]) -> set[str]:
    return {w.worker_id for w in workers if w.state is not WorkerState.SUSPENDED}


def _sleeps(worker: WorkerRecord) -> bool:
    return worker.state is WorkerState.SUSPENDED and worker.stop_requested == "suspend"


def need_of(revision: RevisionRecord) -> Need:
    """What one worker of the revision takes: what it says, or more where more was measured."""
    spec = revision.spec
    memory_mb = max(spec.gpu_memory_mb, revision.gpu_peak_mb) if spec.gpu_memory_mb else 0
    return Need(spec.machine_types, spec.num_gpus, memory_mb)


def _worker(revision: RevisionRecord, need: Need, placed: Placed, now_ms: int) -> WorkerRecord:
    return WorkerRecord(
        app=revision.app,
        worker_id=str(uuid.uuid4()),
        revision=revision.revision,
        host=placed.host,
        state=WorkerState.PENDING,
        machine_type=placed.machine_type,
        gpu_ids=placed.gpu_ids,
        gpu_memory_mb=need.gpu_memory_mb if placed.gpu_ids else 0,
        created_at_ms=now_ms,
        cpu_fallback_for=placed.cpu_fallback_for,
    )


def _holder(need: Need, placed: Placed) -> WorkerRecord:
    """A worker that is not there, for asking what would be left beside it."""
    return WorkerRecord(
        app="",
        worker_id="",
        revision="",
        host=placed.host,
        state=WorkerState.PENDING,
        machine_type=placed.machine_type,
        gpu_ids=placed.gpu_ids,
        created_at_ms=0,
        gpu_memory_mb=need.gpu_memory_mb,
    )
