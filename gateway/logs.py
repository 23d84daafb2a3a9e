"""An app's log: a page of it, or followed as it grows; and the session of a ``fal run``, which ends with its caller."""

from __future__ import annotations

import re
from typing import NamedTuple

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.store import keys
from scheduler.store.errors import StoreError
from scheduler.store.records import LogEntry

from . import shapes, wire
from .control import Control, answer, page_size
from .errors import CallerGone, Refusal, bad_request
from .events import Events, Story
from .operations import Parameter, describe, events, limit, switch

log = structlog.get_logger("gateway.logs")

_APP = "/api/v1/apps/{owner}/{app}"
#: Redis refuses numbers beyond 64 bits.
_ENTRY_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_AFTER = Parameter("after", {"type": "string", "pattern": f"^({_ENTRY_ID.pattern})?$"}, "Only lines after this one.")
_MOST_LINES = 5000
_PAGE = 1000
#: About as many lines as are kept: one worker's lines may lie anywhere among them.
_WHOLE_LOG = 10_000
#: Seconds between looks when nothing was published, and between renewals of a session.
_LOOK_SECONDS = 1.0
#: A session survives its gateway for so long: ``fal run`` connects to another one within that time.
SESSION_SECONDS = 20


class Wanted(NamedTuple):
    """Which lines: of an app, and perhaps of one request or one worker."""

    app: str
    request_id: str | None
    worker_id: str | None

    def has(self, entry: LogEntry) -> bool:
        return self.worker_id is None or entry.worker_id == self.worker_id


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

    @describe(
        200,
        shapes.Items[shapes.LogLine],
        events(shapes.LogEvent),
        query=(
            limit(_MOST_LINES, 1000),
            _AFTER,
            Parameter("request_id", {"type": "string"}, "Only lines of this request."),
            Parameter("worker_id", {"type": "string"}, "Only lines of this worker."),
            switch("follow", "Go on with new lines, as events."),
        ),
    )
    async def logs(self, request: Request) -> Response:
        """``?limit=`` lines, the newest unless ``?after=`` an entry; ``?follow=1`` goes on as events."""
        app = (await self._control.owned_alias(request)).app
        query = request.query_params
        limit = page_size(query.get("limit", "1000"), _MOST_LINES)
        after = _after(query.get("after"))
        wanted = Wanted(app, query.get("request_id") or None, query.get("worker_id") or None)
        entries = await self._newest(wanted, limit) if after is None else (await self._page(wanted, after, limit))[0]
        if query.get("follow") not in ("1", "true"):
            return answer({"items": [wire.log(entry) for entry in entries]})
        return self._control.streams.answer(self._follow(wanted, entries, after or "0"))

    @describe(200, events(shapes.LogEvent), query=(_AFTER,), refusals=(409,))
    async def session(self, request: Request) -> Response:
        """Holds a ``fal run`` app alive and shows its log; when the caller hangs up, the app is deleted."""
        app = await self._control.owned_alias(request)
        if not app.ephemeral:
            raise Refusal(409, f'"{app.app}" is deployed and needs no session; "fal apps delete" removes it.')
        after = _after(request.query_params.get("after")) or "0"
        await self._store.apps.touch_session(app.app, SESSION_SECONDS)
        return self._control.streams.answer(self._hold(app.app, after))

    async def _newest(self, wanted: Wanted, limit: int) -> list[LogEntry]:
        if wanted.request_id is not None:
            entries = await self._store.logs.read(wanted.app, request_id=wanted.request_id)
        else:
            entries = await self._store.logs.tail(wanted.app, limit if wanted.worker_id is None else _WHOLE_LOG)
        return [entry for entry in entries if wanted.has(entry)][-limit:]

    async def _page(self, wanted: Wanted, after: str, limit: int) -> tuple[list[LogEntry], str, bool]:
        """Lines after an id, the id to go on from, and whether there may be more at once."""
        read = await self._store.logs.read(wanted.app, after, limit, wanted.request_id)
        last = read[-1].id if read else after
        return [entry for entry in read if wanted.has(entry)], last, len(read) == limit

    def _follow(self, wanted: Wanted, entries: list[LogEntry], after: str) -> Story:
        async def story(events: Events) -> None:
            found, last, more = entries, entries[-1].id if entries else after, True
            subscription = await self._store.subscribe({keys.channel_logs(wanted.app): events.note})
            try:
                while True:
                    for entry in found:
                        await events.send(wire.log_event(entry))
                    if not more and not await events.wait(_LOOK_SECONDS):
                        return
                    found, last, more = await self._page(wanted, last, _PAGE)
                    if not found and await self._store.apps.get(wanted.app) is None:
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
                while entries := await self._store.logs.read(app, last, _PAGE):
                    for entry in entries:
                        last = entry.id
                        await events.send(wire.log_event(entry))
                if await self._store.apps.get(app) is None:
                    return
                await self._store.apps.touch_session(app, SESSION_SECONDS)
            except StoreError as error:
                log.warning("a session could not be renewed", app=app, error=str(error))
            if not await events.wait(_LOOK_SECONDS):
                return


def _after(given: str | None) -> str | None:
    if not given:
        return None
    if not _ENTRY_ID.fullmatch(given):
        raise bad_request(f"after is {given[:40]!r}; give the id of a log entry.")
    return given
