"""The queue's HTTP: submit, status, the stream of statuses, result, cancel. Polled often, so nothing here is dear.

Leaves shapes to ``wire`` and what happens to a request to the store.
"""

from __future__ import annotations

import re

from scheduler.store import RETENTION_S, Store
from scheduler.store.records import LogEntry, RequestRecord, Submission

from . import answers, cors, incoming, wire
from .addresses import Addresses, queue_base, split_app
from .asgi import Headers, Receive, Scope, Send, respond
from .auth import Right
from .errors import Refusal, bad_request, method_not_allowed
from .events import Events, EventStreams, Story
from .incoming import Head
from .lifecycle import check_preference
from .limits import Limits
from .run import Access, app_headers
from .settings import Settings
from .start_times import start_times
from .webhook_target import checked_webhook

MAX_ATTEMPTS = 10
_CONSUMED = frozenset({"fal_webhook", "fal_max_queue_length"})
_REQUEST = re.compile(r"(?P<route>/.*)?/requests/(?P<id>[^/]+)(?P<what>/status/stream|/status|/cancel|/response)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_JSON = (b"content-type", b"application/json")
#: Seconds between looks of a status stream.
_LOOK_SECONDS = 0.2
_MOST_LOGS = 1000


class Queue:
    """Serves what is below ``/queue``."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        addresses: Addresses,
        access: Access,
        limits: Limits,
        streams: EventStreams,
    ) -> None:
        self._store = store
        self._addresses = addresses
        self._access = access
        self._limits = limits
        self._allow_private = settings.allow_private_webhooks
        keep_s = settings.keep_results_hours * 3600.0
        self._keep_s = None if keep_s == RETENTION_S else keep_s
        self._streams = streams

    async def serve(self, scope: Scope, receive: Receive, send: Send, head: Head, path: str, request_id: str) -> None:
        """One call to the queue, answered.

        Raises:
            Refusal, StoreError: before anything was sent.
        """
        own: Headers = [*cors.ALLOW] if head.origin else []
        found = split_app(path)
        if found is None:
            raise Refusal(404, f'"/queue{path}" is not a queue; use /queue/owner/app.')
        app, route = found
        method = scope["method"]
        if method == "POST":
            return await self._submit(scope, receive, send, head, app, route, request_id, own)
        match = _REQUEST.fullmatch(route)
        if match is None:
            raise method_not_allowed(method, "POST")
        what = match["what"] or "/response"
        needed = "PUT" if what == "/cancel" else "GET"
        if method != needed and not (method == "HEAD" and needed == "GET"):
            raise method_not_allowed(method, needed)
        asked = match["id"]
        own.append((b"x-fal-request-id", asked.encode() if _REQUEST_ID.fullmatch(asked) else request_id.encode()))
        rights: tuple[Right, ...] = ("call", "manage") if what == "/cancel" else ("call", "read")
        record = await self._find(app, asked, head.authorization, rights)
        if record is None:
            return await respond(send, 404, [_JSON, *own], wire.NOT_FOUND)
        if what == "/cancel":
            return await self._cancel(send, record, own)
        if what == "/response":
            return await self._result(send, record, head, own)
        urls = wire.request_urls(queue_base(self._addresses.base_url(scope, head), head.host), app, asked)
        with_logs = _wants_logs(scope["query_string"])
        if what == "/status":
            return await self._status(send, record, urls, with_logs, own)
        await self._streams.tell(self._story(record, urls, with_logs), receive, send, own)

    async def _find(
        self, app: str, asked: str, authorization: bytes | None, rights: tuple[Right, ...]
    ) -> RequestRecord | None:
        """The request, when the caller may see it. Requests outlive their app: what was accepted can be asked for."""
        alive = await self._access.exists(app)
        if alive:
            await self._access.open(app, authorization, rights=rights)
        record = await self._store.requests.get(app, asked) if _REQUEST_ID.fullmatch(asked) else None
        if record is not None and record.mode != "queued":
            record = None
        if not alive:
            if record is None:
                await self._access.open(app, authorization, rights=rights)  # the 404 that names a nearer app
            else:
                await self._access.open_left_behind(app, authorization, rights)
        return record

    async def _submit(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        head: Head,
        app: str,
        route: str,
        request_id: str,
        own: Headers,
    ) -> None:
        alias, caller = await self._access.open(app, head.authorization)
        check_preference(head)
        query, consumed = incoming.split_query(scope["query_string"], _CONSUMED)
        webhook = consumed.get("fal_webhook")
        base_url = self._addresses.base_url(scope, head)
        submission = Submission(
            app=app,
            request_id=request_id,
            mode="queued",
            method="POST",
            path=route,
            query=query,
            headers=app_headers(head, app, route, request_id, caller),
            body=await self._limits.read_body(receive, head.content_length),
            base_url=self._addresses.files_url(scope, head),
            priority=incoming.priority(head),
            start_timeout=incoming.start_timeout(head, alias.scaling.request_start_timeout),
            max_attempts=1 if incoming.no_retry(head) else MAX_ATTEMPTS,
            retries=incoming.retries(head),
            webhook=checked_webhook(webhook, self._allow_private) if webhook else None,
            max_queue_length=_queue_length(consumed.get("fal_max_queue_length")),
            idempotency_key=incoming.idempotency_key(head),
            keep_s=self._keep_s,
            store_io=_store_io(head),
        )
        answer = await self._store.requests.submit(submission)
        urls = wire.request_urls(queue_base(base_url, head.host), app, answer.request_id)
        own.append((b"x-fal-request-id", answer.request_id.encode("ascii")))
        await respond(send, 200, [_JSON, *own], wire.submitted(answer, urls))

    async def _status(self, send: Send, record: RequestRecord, urls: wire.Json, with_logs: bool, own: Headers) -> None:
        logs = await self._logs(record, "0") if with_logs else None
        status, body = wire.status(record, urls, logs)
        await respond(send, status, [_JSON, *own], wire.dumps(body))

    async def _result(self, send: Send, record: RequestRecord, head: Head, own: Headers) -> None:
        if not record.state.terminal:
            # Never 2xx: clients would take it for the result.
            return await respond(send, 400, [_JSON, *own], wire.IN_PROGRESS)
        status, headers, body = answers.final(record)
        headers += await self._access.log_hint(status, record.app, head.authorization)
        headers += await start_times(self._store, record)
        await respond(send, status, headers + own, body)

    async def _cancel(self, send: Send, record: RequestRecord, own: Headers) -> None:
        done = await self._store.requests.cancel(record.app, record.request_id)
        status, body = {
            "cancelled_queued": (202, wire.CANCELLATION_REQUESTED),
            "cancelled_running": (202, wire.CANCELLATION_REQUESTED),
            "already_completed": (400, wire.ALREADY_COMPLETED),
            "not_found": (404, wire.NOT_FOUND),
        }[done]
        await respond(send, status, [_JSON, *own], body)

    def _story(self, record: RequestRecord, urls: wire.Json, with_logs: bool) -> Story:
        """An event at once and on every change, each with the log lines that are new since the one before: clients
        join the lines of all events."""

        async def story(events: Events) -> None:
            shown: tuple[object, ...] | None = None
            after = "0"
            current: RequestRecord | None = record
            while current is not None:
                logs = await self._logs(current, after) if with_logs else None
                if logs:
                    after = logs[-1].id
                state = (current.state, current.position, current.attempt)
                if logs or state != shown:
                    shown = state
                    await events.send(wire.event(wire.status(current, urls, logs)[1]))
                if current.state.terminal or not await events.wait(_LOOK_SECONDS):
                    return
                current = await self._store.requests.get(record.app, record.request_id)

        return story

    async def _logs(self, record: RequestRecord, after: str) -> list[LogEntry]:
        return await self._store.logs.read(record.app, after=after, limit=_MOST_LOGS, request_id=record.request_id)


def _wants_logs(query: bytes) -> bool:
    return any(item in (b"logs=1", b"logs=true", b"logs=True") for item in query.split(b"&"))


def _store_io(head: Head) -> bool:
    """``X-Fal-Store-IO: 0``: the caller wants nothing stored longer than it takes to fetch it."""
    given = head.options.get(b"x-fal-store-io") if head.options else None
    return given is None or given.strip().lower() not in (b"0", b"false", b"no")


def _queue_length(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 9:
        raise bad_request(f"fal_max_queue_length is {given[:40]!r}; give a whole number from 0.")
    return int(given)
