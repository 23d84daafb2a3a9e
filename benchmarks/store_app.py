"""One app in a store, ready to be submitted to, and its workers: what measures the queue without HTTP and runners.

Owns what the scheduler and a deploy would have written. Knows nothing of what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fal._spec import AppSpec, EnvironmentSpec

from scheduler.store import Inbox, InboxClosed, Store
from scheduler.store.records import (
    Claimed,
    Outcome,
    RevisionRecord,
    RevisionState,
    Submission,
    WorkerRecord,
    WorkerState,
)

APP = "bench/queue"
_REVISION = "r1"
_HEADERS = (("content-type", "application/json"),)


async def deploy(store: Store) -> None:
    """The app, with a revision to run."""
    spec = AppSpec("queue", "Queue", "queue.py", EnvironmentSpec("3.11"))
    record = RevisionRecord(APP, _REVISION, spec, "b" * 64, (), "environment-1", RevisionState.READY, 0)
    await store.apps.put_revision(record)
    await store.apps.point(APP, _REVISION, auth=None, scaling=None, ephemeral=False)


@asynccontextmanager
async def worker(store: Store, worker_id: str) -> AsyncIterator[Inbox]:
    """The inbox of a ready worker."""
    epoch = await store.leader.lead("bench", 60_000)
    assert epoch is not None, "another scheduler leads this store"
    record = WorkerRecord(APP, worker_id, _REVISION, "box", WorkerState.PENDING, "S", (), 0)
    await store.workers.place(record, epoch)
    await store.workers.update(APP, worker_id, ready=True)
    inbox = await store.open_inbox(APP, worker_id, _REVISION)
    try:
        yield inbox
    finally:
        await inbox.close()


async def serve(inbox: Inbox, slots: int) -> None:
    """Answers every request with its own body, ``slots`` at once, until the inbox is closed to new ones."""

    async def slot() -> None:
        with contextlib.suppress(InboxClosed):
            while True:
                claim = await inbox.next()
                await inbox.finish(claim, echo(claim))

    await asyncio.gather(*(slot() for _ in range(slots)))


def echo(claim: Claimed) -> Outcome:
    return Outcome(200, _HEADERS, claim.body)


def submission(request_id: str, body: bytes, gateway: str | None = None) -> Submission:
    """A small POST with the headers that a client sends; retried like any queued one."""
    return Submission(
        app=APP,
        request_id=request_id,
        mode="queued",
        method="POST",
        path="/",
        query="",
        headers=_HEADERS,
        body=body,
        base_url="http://127.0.0.1",
        gateway=gateway,
    )


async def connect(url: str, data: Path) -> Store:
    """A store whose queue is as long as a measurement needs."""
    return await Store.connect(url, data, max_queue=1_000_000)
