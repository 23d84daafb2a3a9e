"""A host whose workers are coroutines: they take orders, start, serve and stop through the real store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fal._spec import AppSpec, EnvironmentSpec, ScalingSpec

from scheduler.store import InboxClosed, Store, keys
from scheduler.store.records import (
    Claimed,
    EnvironmentRecord,
    EnvironmentState,
    HostRecord,
    Outcome,
    RequestRecord,
    RequestState,
    RevisionRecord,
    RevisionState,
    Submission,
    WorkerState,
)
from tests.support.waiting import await_until

CPU_TYPES = ("XS", "S", "M", "L", "XL")
APP = "o/app"
CPU_HOST = HostRecord("h1", CPU_TYPES, (), False, 2, 8000)


@dataclass
class StubHost:
    """Runs what it is ordered to.

    Args:
        setup_error: every start fails with this while it is set.
        deaf: orders are ignored, as by a host whose agent has died.
        hold: while clear, started workers stay in SETUP.
        serve: while clear, claimed requests do not end.
    """

    store: Store
    record: HostRecord = CPU_HOST
    setup_error: str | None = None
    deaf: bool = False
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    serve: asyncio.Event = field(default_factory=asyncio.Event)
    started: list[str] = field(default_factory=list)
    served: list[tuple[str, str]] = field(default_factory=list)
    workers: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hold.set()
        self.serve.set()

    async def report(self) -> None:
        await self.store.hosts.report(self.record, ttl_s=600)

    async def look(self) -> None:
        if self.deaf:
            return
        for worker_id, app in (await self.store.workers.orders(self.record.host)).items():
            if worker_id not in self.workers:
                self.started.append(worker_id)
                self.workers[worker_id] = asyncio.create_task(self._work(app, worker_id))

    async def _work(self, app: str, worker_id: str) -> None:
        store = self.store
        record = await store.workers.get(app, worker_id)
        assert record is not None
        stop = asyncio.Event()
        inbox = await store.open_inbox(app, worker_id, record.revision, lease_ms=30_000)
        inbox.stop_requested = lambda how: stop.set()
        stopping = asyncio.create_task(stop.wait())
        serving = asyncio.create_task(asyncio.sleep(0))
        try:
            await store.workers.update(app, worker_id, state=WorkerState.SETUP)
            if self.setup_error is not None:
                await store.apps.startup_failed(app, record.revision, self.setup_error)
                return
            holding = asyncio.create_task(self.hold.wait())
            await asyncio.wait({holding, stopping}, return_when=asyncio.FIRST_COMPLETED)
            holding.cancel()
            if stop.is_set():
                return
            await store.workers.update(app, worker_id, state=WorkerState.IDLE, ready=True)
            await store.apps.startup_succeeded(app, record.revision, "{}", {})
            serving = asyncio.create_task(self._serve(inbox, worker_id))
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            inbox.close_to_new()
            await store.workers.update(app, worker_id, state=WorkerState.DRAINING)
            await serving
        finally:
            stopping.cancel()
            serving.cancel()
            await inbox.close()
            await store.workers.remove(app, worker_id, "ended")

    async def _serve(self, inbox: Any, worker_id: str) -> None:
        with contextlib.suppress(InboxClosed):
            while True:
                claim: Claimed = await inbox.next()
                await self.serve.wait()
                self.served.append((claim.request_id, worker_id))
                await inbox.finish(claim, Outcome(200, (), b'"done"'))

    async def end(self) -> None:
        for task in self.workers.values():
            task.cancel()
        await asyncio.gather(*self.workers.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def platform(redis_url: str, data: Path, **host: Any) -> AsyncIterator[tuple[Store, StubHost]]:
    """A store with one stub host that follows its orders until the block ends."""
    store = await Store.connect(redis_url, data)
    found = StubHost(store, **host)
    await found.report()
    changed = asyncio.Event()
    changed.set()
    subscription = await store.subscribe({keys.channel_host(found.record.host): lambda _: changed.set()}, changed.set)

    async def follow() -> None:
        while True:
            await changed.wait()
            changed.clear()
            await found.look()

    following = asyncio.create_task(follow())
    try:
        yield store, found
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await found.end()
        await subscription.close()
        await store.close()


async def deploy(
    store: Store, app: str = APP, revision: str = "r1", scaling: ScalingSpec | None = None, **spec: Any
) -> RevisionRecord:
    """A ready revision with a ready environment, and the alias on it."""
    values: dict[str, Any] = {"name": app.split("/")[1], "class_name": "A", "entry_file": "a.py"}
    wanted = AppSpec(environment=EnvironmentSpec("3.11"), machine_types=("S",), **values)
    wanted = replace(wanted, **spec)
    record = RevisionRecord(app, revision, wanted, "b" * 64, (), "key1", RevisionState.READY, 0)
    await store.apps.put_revision(record)
    await store.environments.put(EnvironmentRecord("key1", EnvironmentState.READY, "/env"))
    await store.apps.point(app, revision, auth=None, scaling=scaling or ScalingSpec(), ephemeral=False)
    return record


async def submit(store: Store, request_id: str, app: str = APP, **fields: Any) -> None:
    values: dict[str, Any] = {"mode": "queued", "method": "POST", "path": "/", "query": "", "headers": ()}
    values |= {"body": b"{}", "base_url": "http://x", **fields}
    await store.requests.submit(Submission(app, request_id, **values))


async def ended(store: Store, request_id: str, app: str = APP, timeout: float = 20) -> RequestRecord:
    """The request once it has ended."""

    async def look() -> RequestRecord | None:
        record = await store.requests.get(app, request_id)
        return record if record is not None and record.state.terminal else None

    found = await await_until(look, f"request {request_id} to end", timeout)
    assert found is not None
    return found


async def states(store: Store, app: str = APP) -> list[WorkerState]:
    return [worker.state for worker in await store.workers.list(app)]


__all__ = ["APP", "RequestState", "StubHost", "deploy", "ended", "platform", "states", "submit"]
