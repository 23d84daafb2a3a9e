"""What fal's own command line asks of rest.fal.ai: who am I, queues, GPUs in use, the logs of runners.

The same facts as the control API, in the shapes that ``fal`` 1.83 expects. Its deploys go over gRPC and are not here.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import NamedTuple, get_args

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store import keys
from scheduler.store.records import LogEntry, WorkerRecord

from . import wire
from .apps import flushed_caller, waiting
from .auth import Right
from .control import Control, answer
from .errors import Refusal, bad_request
from .events import Events, Story

_APP = "/rest/applications/{owner}/{app}"
_MOST_LINES = 10_000
_PAGE = 1000
#: Seconds between looks when nothing was published.
_LOOK_SECONDS = 1.0


class Wanted(NamedTuple):
    """Which lines of a runner: between two unix times (the second not included), with a word in them."""

    app: str
    worker_id: str
    since: float | None
    until: float | None
    search: str

    def has(self, entry: LogEntry) -> bool:
        return (
            entry.worker_id == self.worker_id
            and (self.since is None or entry.at >= self.since)
            and (self.until is None or entry.at < self.until)
            and self.search in entry.message
        )


class FalCli:
    """Routes ``/rest/users``, ``/rest/applications``, ``/rest/runners`` and ``/rest/logs``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._store = control.store

    def routes(self) -> list[Route]:
        return [
            Route("/rest/users/current", self.user, methods=["GET"]),
            Route("/rest/users/teams", self.teams, methods=["GET"]),
            Route("/rest/applications/metrics", self.metrics, methods=["GET"]),
            Route(f"{_APP}/queue", self.queue_size, methods=["GET"]),
            Route(f"{_APP}/queue", self.queue_flush, methods=["DELETE"]),
            Route("/rest/runners/{worker_id}", self.runner, methods=["GET"]),
            Route("/rest/logs/history", self.history, methods=["POST"]),
            Route("/rest/logs/stream", self.follow, methods=["POST"]),
        ]

    async def user(self, request: Request) -> Response:
        """Whom the key acts for."""
        owner = (await self._control.caller(request, *get_args(Right))).owner
        named = {"full_name": owner, "nickname": owner, "username": owner, "user_id": owner}
        return answer({**named, "is_personal": True, "is_locked": False, "is_paying": False, "members": []})

    async def teams(self, request: Request) -> Response:
        """Owners have no members here."""
        await self._control.caller(request)
        return answer([])

    async def queue_size(self, request: Request) -> Response:
        """How many requests wait."""
        app = (await self._control.owned_alias(request)).app
        return answer(await waiting(self._store, app, request))

    async def queue_flush(self, request: Request) -> Response:
        """End all that wait, or those of one caller."""
        app = (await self._control.owned_alias(request)).app
        return answer({"flushed": await self._store.requests.flush_queue(app, flushed_caller(request))})

    async def metrics(self, request: Request) -> Response:
        """GPUs that the owner's workers hold, by machine type."""
        total: dict[str, int] = {}
        apps: dict[str, dict[str, dict[str, int]]] = {}
        for app, workers in await self._workers(request):
            held: dict[str, int] = {}
            for worker in workers:
                held[worker.machine_type] = held.get(worker.machine_type, 0) + len(worker.gpu_ids)
                total[worker.machine_type] = total.get(worker.machine_type, 0) + len(worker.gpu_ids)
            apps[app] = {"gpu_count_by_type": held}
        return answer({"summary": {"total_gpu_by_type": total}, "apps": apps})

    async def runner(self, request: Request) -> Response:
        """When a runner started and ended; the end only as its last line, for workers are forgotten."""
        worker_id = request.path_params["worker_id"]
        app, worker = await self._find(request, worker_id)
        lines = [entry for entry in await self._store.logs.tail(app, _MOST_LINES) if entry.worker_id == worker_id]
        started = worker.created_at_ms / 1000 if worker is not None else lines[0].at
        ended = None if worker is not None else lines[-1].at + 1
        return answer(
            {
                "runner_id": worker_id,
                "app": app,
                "started_at": wire.iso(started),
                "ended_at": None if ended is None else wire.iso(ended),
            }
        )

    async def history(self, request: Request) -> Response:
        """A page of lines, newest first, and the time to ask on from for older ones."""
        wanted = await self._wanted(request)
        size = _page_size(request.query_params.get("page_size", str(_PAGE)))
        found = [entry for entry in await self._store.logs.tail(wanted.app, _MOST_LINES) if wanted.has(entry)]
        found.reverse()
        page = found[:size]
        # The next page ends before this one's oldest time: lines of one instant stay together.
        page += [entry for entry in found[size:] if entry.at == page[-1].at]
        more = len(page) < len(found)
        return answer(
            {"items": [_line(entry) for entry in page], "next_until": wire.iso(page[-1].at) if more else None}
        )

    async def follow(self, request: Request) -> Response:
        """Lines as they come, oldest first."""
        return self._control.streams.answer(self._story(await self._wanted(request)))

    def _story(self, wanted: Wanted) -> Story:
        async def story(events: Events) -> None:
            last = "0"
            subscription = await self._store.subscribe({keys.channel_logs(wanted.app): events.note})
            try:
                while True:
                    while entries := await self._store.logs.read(wanted.app, last, _PAGE):
                        last = entries[-1].id
                        for entry in filter(wanted.has, entries):
                            await events.send(wire.event(_line(entry)))
                    if not await events.wait(_LOOK_SECONDS) or await self._store.apps.get(wanted.app) is None:
                        return
            finally:
                await subscription.close()

        return story

    async def _wanted(self, request: Request) -> Wanted:
        query = request.query_params
        worker_id = query.get("job_id", "")
        app, _ = await self._find(request, worker_id)
        return Wanted(app, worker_id, _time(query, "since"), _time(query, "until"), query.get("search", ""))

    async def _find(self, request: Request, worker_id: str) -> tuple[str, WorkerRecord | None]:
        """The app of a runner; without a record when it has gone and only its lines are left.

        Raises:
            Refusal: 404 when none of the caller's apps has or had it.
        """
        apps = await self._workers(request)
        for app, workers in apps:
            for worker in workers:
                if worker.worker_id == worker_id:
                    return app, worker
        for app, _ in apps:
            if any(entry.worker_id == worker_id for entry in await self._store.logs.tail(app, _MOST_LINES)):
                return app, None
        raise Refusal(404, f"There is no runner {worker_id[:80]!r}; `fal runners list APP` shows those that there are.")

    async def _workers(self, request: Request) -> list[tuple[str, list[WorkerRecord]]]:
        owner = (await self._control.caller(request, "read")).owner
        apps = [app.app for app in await self._store.apps.list() if app.app.startswith(f"{owner}/")]
        found = await asyncio.gather(*(self._store.workers.list(app) for app in apps))
        return list(zip(apps, found, strict=True))


def _line(entry: LogEntry) -> dict[str, str]:
    return {"timestamp": wire.iso(entry.at), "level": entry.level, "message": entry.message}


def _page_size(given: str) -> int:
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= _MOST_LINES:
        raise bad_request(f"page_size is {given[:40]!r}; use 1 to {_MOST_LINES}.")
    return int(given)


def _time(query: QueryParams, name: str) -> float | None:
    given = query.get(name)
    if not given:
        return None
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise bad_request(f"{name} is {given[:40]!r}; give an ISO 8601 time.") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
