"""An app's log: a page of it, or followed as it grows; and the session of a ``fal run``, which ends with its caller."""

from __future__ import annotations

import re

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store import keys
from scheduler.store.errors import StoreError
from scheduler.store.records import LogEntry

from . import wire
from .control import Control, answer
from .errors import CallerGone, Refusal, bad_request
from .events import Events, Story

log = structlog.get_logger("gateway.logs")

_APP = "/api/v1/apps/{owner}/{app}"
_ENTRY_ID = re.compile(r"\d{1,20}(-\d{1,20})?")
_MOST_LINES = 5000
#: Seconds between looks when nothing was published, and between renewals of a session.
_LOOK_SECONDS = 1.0
#: A session survives its gateway for so long: ``fal run`` connects to another one within that time.
SESSION_SECONDS = 20


class Logs:
    """Routes ``/api/v1/apps/{owner}/{app}/logs`` and ``.../session``."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._store = control.store

    def routes(self) -> list[Route]:
        return [
            Route(f"{_APP}/logs", self.logs, methods=["GET"]),
            Route(f"{_APP}/session", self.session, methods=["GET"]),
        ]

    async def logs(self, request: Request) -> Response:
        """``?limit=`` lines, the newest unless ``?after=`` an entry; ``?follow=1`` goes on as events."""
        app = (await self._control.owned_alias(request)).app
        query = request.query_params
        limit = _limit(query.get("limit", "1000"))
        after = _after(query.get("after"))
        request_id, worker_id = query.get("request_id") or None, query.get("worker_id") or None
        entries = await self._read(app, after, limit, request_id, worker_id)
        if query.get("follow") not in ("1", "true"):
            return answer({"items": [wire.log(entry) for entry in entries]})
        return self._control.streams.answer(self._follow(app, entries, after, request_id, worker_id))

    async def session(self, request: Request) -> Response:
        """Holds a ``fal run`` app alive and shows its log; when the caller hangs up, the app is deleted."""
        app = await self._control.owned_alias(request)
        if not app.ephemeral:
            raise Refusal(409, f'"{app.app}" is deployed and needs no session; "fal apps delete" removes it.')
        after = _after(request.query_params.get("after")) or "0"
        await self._store.apps.touch_session(app.app, SESSION_SECONDS)
        return self._control.streams.answer(self._hold(app.app, after))

    async def _read(
        self, app: str, after: str | None, limit: int, request_id: str | None, worker_id: str | None
    ) -> list[LogEntry]:
        if after is None and request_id is None and worker_id is None:
            return await self._store.logs.tail(app, limit)
        return await self._store.logs.read(
            app, after=after or "0", limit=limit, request_id=request_id, worker_id=worker_id
        )

    def _follow(
        self, app: str, entries: list[LogEntry], after: str | None, request_id: str | None, worker_id: str | None
    ) -> Story:
        async def story(events: Events) -> None:
            last, found = after or "0", entries
            subscription = await self._store.subscribe({keys.channel_logs(app): events.note})
            try:
                while True:
                    for entry in found:
                        last = entry.id
                        await events.send(wire.event({"type": "log", **wire.log(entry)}))
                    if not await events.wait(_LOOK_SECONDS):
                        return
                    found = await self._read(app, last, 1000, request_id, worker_id)
                    if not found and await self._store.apps.get(app) is None:
                        return
            finally:
                await subscription.close()

        return story

    def _hold(self, app: str, after: str) -> Story:
        async def story(events: Events) -> None:
            subscription = await self._store.subscribe({keys.channel_logs(app): events.note})
            try:
                await self._show_and_renew(app, after, events)
            except CallerGone:
                events.gone = True
                raise
            finally:
                await subscription.close()
                # Not when this gateway is stopping: the caller is still there and will come back to another one.
                if events.gone:
                    await self._store.apps.delete(app)
                    self._control.directory.forget(app)

        return story

    async def _show_and_renew(self, app: str, last: str, events: Events) -> None:
        while True:
            try:
                for entry in await self._store.logs.read(app, after=last, limit=1000):
                    last = entry.id
                    await events.send(wire.event({"type": "log", **wire.log(entry)}))
                if await self._store.apps.get(app) is None:
                    return
                await self._store.apps.touch_session(app, SESSION_SECONDS)
            except StoreError as error:
                log.warning("a session could not be renewed", app=app, error=str(error))
            if not await events.wait(_LOOK_SECONDS):
                return


def _limit(given: str) -> int:
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= _MOST_LINES:
        raise bad_request(f"limit is {given[:40]!r}; use 1 to {_MOST_LINES}.")
    return int(given)


def _after(given: str | None) -> str | None:
    if not given:
        return None
    if not _ENTRY_ID.fullmatch(given):
        raise bad_request(f"after is {given[:40]!r}; give the id of a log entry.")
    return given
