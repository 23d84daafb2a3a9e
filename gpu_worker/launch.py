"""The small interface by which workers are started and stopped, and the way that needs no other software.

The scheduler decides and calls a ``Launcher``; where there is one machine, or an agent on each, orders go through the
store to the host's agent. An engine that places workers itself stands beside it as another class.
"""

from __future__ import annotations

from typing import Literal, Protocol

from scheduler.store import Store
from scheduler.store.records import WorkerRecord


class Launcher(Protocol):
    """Starts and stops workers. Leases and fencing stay the store's: no launcher can fence a partitioned host."""

    async def start(self, worker: WorkerRecord, epoch: int) -> None:
        """Record ``worker`` as PENDING and have its host start it; returns before it runs.

        Raises:
            StaleLeader: another scheduler leads by now.
            StoreUnavailable: not recorded, or unknown whether.
        """
        ...

    async def stop(self, worker: WorkerRecord, how: Literal["drain", "kill", "idle"], reason: str) -> None:
        """Ask a worker to leave; ``idle`` only if it has nothing to do at that moment."""
        ...


class AgentLauncher:
    """Orders to host agents (``python -m gpu_worker`` on every host)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def start(self, worker: WorkerRecord, epoch: int) -> None:
        await self._store.workers.place(worker, epoch)

    async def stop(self, worker: WorkerRecord, how: Literal["drain", "kill", "idle"], reason: str) -> None:
        await self._store.workers.request_stop(worker.app, worker.worker_id, how, reason)
