"""A store with one app, its revision and workers: what most store tests begin with."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fal._spec import AppSpec, EnvironmentSpec

from scheduler.store import Inbox, Store
from scheduler.store.records import (
    Claimed,
    Outcome,
    RevisionRecord,
    RevisionState,
    Submission,
    WorkerRecord,
    WorkerState,
)

APP = "alice/painter"
OK = Outcome(200, (("content-type", "application/json"),), b'{"ok":true}')
LOST = Outcome(503, (), b'{"detail":"lost","error_type":"runner_disconnected"}', "runner_disconnected")
_numbers = itertools.count(1)


class Scene:
    """One store, one app at revision ``r1``, and the leader's epoch."""

    def __init__(self, store: Store, epoch: int) -> None:
        self.store = store
        self.requests = store.requests
        self.epoch = epoch
        self.inboxes: list[Inbox] = []

    async def worker(self, worker_id: str = "w1", *, revision: str = "r1", lease_ms: int = 30_000) -> Inbox:
        """A ready worker's inbox; it has not asked for anything yet."""
        await self.place(worker_id, revision=revision)
        assert await self.store.workers.update(APP, worker_id, ready=True)
        inbox = await self.store.open_inbox(APP, worker_id, revision, lease_ms=lease_ms)
        self.inboxes.append(inbox)
        return inbox

    async def place(self, worker_id: str, *, revision: str = "r1") -> None:
        """A worker that was placed and has not started."""
        record = WorkerRecord(APP, worker_id, revision, "box", WorkerState.PENDING, "S", (), 0)
        await self.store.workers.place(record, self.epoch)

    async def submit(self, request_id: str | None = None, **changes: Any) -> str:
        """A stored request's id."""
        request_id = request_id or f"q{next(_numbers)}"
        await self.requests.submit(submission(request_id, **changes))
        return request_id

    async def claimed(self, inbox: Inbox, **changes: Any) -> Claimed:
        """A new request, claimed by that inbox."""
        request_id = await self.submit(**changes)
        claim = await inbox.next()
        assert claim.request_id == request_id
        return claim

    async def claimed_any(self, inbox: Inbox, **changes: Any) -> Claimed:
        """A new request, claimed by that inbox after it has finished everything before it."""
        request_id = await self.submit(**changes)
        while (claim := await inbox.next()).request_id != request_id:
            await inbox.finish(claim, OK, claim_next=False)
        return claim

    async def lose(self, claim: Claimed, **changes: Any) -> str:
        """The claim's runner died; returns what retry answered."""
        settings: dict[str, Any] = {"reason": "died", "crashed": True, "delay_ms": 0, "fallback": LOST} | changes
        worker_id = settings.pop("worker_id", claim.worker_id)
        answer = await self.requests.retry(APP, claim.request_id, claim.attempt, worker_id=worker_id, **settings)
        if not settings.get("epoch"):
            for inbox in self.inboxes:
                inbox.release(claim)
        return answer

    async def redis(self, *command: str | bytes | int | float) -> Any:
        """A plain command, to look behind the verbs."""
        return await self.store._redis.command(*command)

    async def fields(self, request_id: str) -> dict[str, str]:
        """The hash of a request."""
        flat = await self.redis("HGETALL", f"{{{APP}}}:request:{request_id}")
        return {flat[i].decode(): flat[i + 1].decode("utf-8", "replace") for i in range(0, len(flat), 2)}


def submission(request_id: str, **changes: Any) -> Submission:
    """A small queued POST."""
    plain = Submission(
        app=APP,
        request_id=request_id,
        mode="queued",
        method="POST",
        path="/",
        query="",
        headers=(("content-type", "application/json"),),
        body=b'{"prompt":"rhino"}',
        base_url="http://here",
    )
    return replace(plain, **changes)


def revision(name: str = "r1") -> RevisionRecord:
    """A ready revision of the app."""
    spec = AppSpec("painter", "Painter", "painter.py", EnvironmentSpec("3.11"))
    return RevisionRecord(APP, name, spec, "b" * 64, (), "environment-1", RevisionState.READY, 0)


@asynccontextmanager
async def scene(redis_url: str, data: Path, **settings: Any) -> AsyncIterator[Scene]:
    """An open scene; inboxes and connections are closed at the end."""
    store = await Store.connect(redis_url, data, **settings)
    try:
        await store.apps.put_revision(revision())
        await store.apps.point(APP, "r1", auth=None, scaling=None, ephemeral=False)
        epoch = await store.leader.lead("scheduler-1", 60_000)
        assert epoch is not None
        opened = Scene(store, epoch)
        yield opened
        for inbox in opened.inboxes:
            await inbox.close()
    finally:
        await store.close()
