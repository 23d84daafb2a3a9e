"""Direct calls: one POST that waits for its answer, or streams it. The path that every millisecond counts on.

Leaves retries to nobody: a direct call is tried once. A caller who hangs up cancels the request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import quote

import msgpack
import structlog
from fal._spec import WEBSOCKET

from scheduler.store import Store
from scheduler.store.errors import StoreError
from scheduler.store.records import AppRecord, Submission

from . import answers, cors, incoming
from .addresses import Addresses, split_app
from .asgi import BODILESS, Headers, Receive, Scope, Send, respond, start
from .auth import Keys, Right, check_app, check_owner, check_scope
from .directory import Directory
from .errors import CallerGone, Refusal, method_not_allowed, unauthorized
from .incoming import Head
from .lifecycle import check_preference
from .limits import Limits
from .results import Results, Waiter
from .start_times import start_times
from .tokens import Tokens

log = structlog.get_logger("gateway.run")

_CONSUMED = frozenset({"fal_webhook", "fal_max_queue_length"})
_NOTHING: dict[str, str] = {}
_NO_METHODS = frozenset({"CONNECT", "TRACE", WEBSOCKET})
#: How often, and seconds apart, a request is cancelled that the store was away for.
_CANCEL_TRIES = 12
_CANCEL_PAUSE = 5.0
_PLAIN_ROUTE = re.compile(r"[A-Za-z0-9/_.~-]*")


class Access:
    """Finds the app that a path names and checks that the caller may use it."""

    def __init__(self, directory: Directory, keys: Keys, tokens: Tokens) -> None:
        self._directory = directory
        self._keys = keys
        self._tokens = tokens

    async def open(
        self, app: str, authorization: bytes | None, token: str | None = None, rights: tuple[Right, ...] = ("call",)
    ) -> tuple[AppRecord, str | None]:
        """The app, and the owner of the key that was used for it (None for public apps).

        Args:
            token: the query's ``fal_jwt_token``, which stands for the key that it was made with.
            rights: one of which the key's scope must have.

        Raises:
            Refusal: 404 for an unknown app, 401 and 403 for a missing or wrong key.
        """
        record = self._directory.fresh(app) or await self._directory.find(app)
        if record is None:
            try:
                key = await self._keys.identify(authorization)
            except Refusal:
                key = None
            raise await self._directory.missing(app, key)
        if record.auth == "public":
            return record, None
        if token is not None and authorization is None:
            key = await self._keys.of_token(self._tokens.check_call(token, app))
        else:
            key = await self._keys.identify(authorization)
        check_app(record, key, *rights)
        return record, key.owner if key is not None else None

    async def log_hint(self, status: int, app: str, authorization: bytes | None) -> Headers:
        """Where the cause of a 5xx stands, for the app's owner: the body is the app's own, and clients read it."""
        if status < 500 or not authorization:
            return []
        try:
            key = await self._keys.identify(authorization)
        except (Refusal, StoreError):  # a public app was called with no valid key; the answer counts all the same
            return []
        if key is None or key.owner != app.split("/", 1)[0]:
            return []
        return [(b"x-keepwarm-log", f"fal logs {app}".encode())]

    async def exists(self, app: str) -> bool:
        """Whether the app is there; asked before ``open`` where more than the app may be meant."""
        return (self._directory.fresh(app) or await self._directory.find(app)) is not None

    async def open_left_behind(self, app: str, authorization: bytes | None, rights: tuple[Right, ...]) -> None:
        """Check that the caller may see what a deleted app has left. Who could call it is forgotten with it.

        Raises:
            Refusal: 401 and 403 for a missing or wrong key.
        """
        key = await self._keys.identify(authorization)
        if key is None:
            raise unauthorized(f'The app "{app}" was deleted. Its requests can still be read with a key of its owner.')
        check_owner(app.split("/", 1)[0], key)
        check_scope(key, *rights)


def app_headers(head: Head, app: str, route: str, request_id: str, caller: str | None) -> tuple[tuple[str, str], ...]:
    """What the app sees: the caller's own headers and the platform's."""
    headers = head.passed
    headers.append(("x-fal-request-id", request_id))
    headers.append(("x-fal-endpoint", app if route == "/" else app + _ascii(route)))
    if caller is not None:
        headers.append(("x-fal-caller-user-id", caller))
    return tuple(headers)


def _ascii(route: str) -> str:
    """The route as a header can carry it. It arrives decoded, and may hold any character, line breaks too."""
    return route if _PLAIN_ROUTE.fullmatch(route) else quote(route, safe="/:@!$&'()*+,;=")


class Run:
    """Serves direct calls."""

    def __init__(
        self,
        store: Store,
        addresses: Addresses,
        access: Access,
        limits: Limits,
        results: Results,
        write_timeout: float,
    ) -> None:
        self._store = store
        self._addresses = addresses
        self._access = access
        self._limits = limits
        self._results = results
        self._write_timeout = write_timeout
        self._cancelling: set[asyncio.Task[None]] = set()

    async def check(self, scope: Scope, head: Head, path: str) -> None:
        """Whether the caller could make a direct call; for sockets that many calls come over.

        Raises:
            Refusal: as ``serve``.
        """
        found = split_app(path)
        if found is None:
            raise Refusal(404, f'"{path}" is not the address of an app; use /owner/app.')
        _, own = incoming.split_query(scope["query_string"], _CONSUMED)
        await self._access.open(found[0], head.authorization, own.get("fal_jwt_token"))

    async def serve(self, scope: Scope, receive: Receive, send: Send, head: Head, path: str, request_id: str) -> None:
        """One direct call, answered.

        Raises:
            Refusal, StoreError: before anything was sent.
            CallerGone: nobody is there any more.
        """
        found = split_app(path)
        if found is None:
            raise Refusal(404, f'"{path}" is not the address of an app; use /owner/app.')
        app, route = found
        if scope["method"] in _NO_METHODS:
            raise method_not_allowed(scope["method"], "POST")
        query, own = incoming.split_query(scope["query_string"], _CONSUMED) if scope["query_string"] else ("", _NOTHING)
        alias, caller = await self._access.open(app, head.authorization, own.get("fal_jwt_token"))
        check_preference(head)
        start_timeout = incoming.start_timeout(head, alias.scaling.request_start_timeout)
        priority = incoming.priority(head) if head.options else "normal"
        submission = Submission(
            app=app,
            request_id=request_id,
            mode="direct",
            method=scope["method"],
            path=route,
            query=query,
            headers=app_headers(head, app, route, request_id, caller),
            body=await self._limits.read_body(receive, head.content_length),
            base_url=self._addresses.files_url(scope, head),
            priority=priority,
            start_timeout=start_timeout,
            max_attempts=1,
            gateway=self._results.gateway_id,
        )
        self._limits.enter()
        waiter = self._results.expect(app, request_id, start_timeout, receive)
        try:
            await self._store.requests.submit(submission)
            await self._answer(waiter, send, head)
        except asyncio.CancelledError:
            # The gateway is stopping and will not wait any longer. Nobody could ever fetch this answer.
            await asyncio.shield(self._cancel(waiter))
            raise
        finally:
            self._results.forget(waiter)
            self._limits.leave()

    async def _answer(self, waiter: Waiter, send: Send, head: Head) -> None:
        own: Headers = [(b"x-fal-request-id", waiter.request_id.encode("ascii"))]
        if head.origin:
            own += cors.ALLOW
        while True:
            await waiter.wait()
            if waiter.record is None and waiter.cut_off:
                raise self.cut_off(waiter)
            if waiter.record is not None and not waiter.output:
                status, headers, body = answers.final(waiter.record)
                headers += own
                headers += await start_times(self._store, waiter.record)
                if status >= 500:
                    headers += await self._access.log_hint(status, waiter.app, head.authorization)
                await respond(send, status, headers, body)
                return
            hint = partial(self._access.log_hint, app=waiter.app, authorization=head.authorization)
            if await Stream(self._store, waiter, send, own, self._write_timeout, hint).run():
                return
            await self._check_end(waiter)

    async def _check_end(self, waiter: Waiter) -> None:
        """Ends the wait when there is nothing more to wait for."""
        if waiter.gone:
            await self._cancel(waiter)
            raise CallerGone
        if waiter.record is not None:
            return
        if waiter.lost:
            raise Refusal(404, "The app was deleted while this request waited.", "client_cancelled")
        if waiter.expired:
            await self._cancel(waiter)
            raise Refusal(504, "The request did not end within the longest wait of this gateway.", "request_timeout")

    async def _cancel(self, waiter: Waiter) -> bool:
        try:
            await self._store.requests.cancel(waiter.app, waiter.request_id, error_type="client_disconnected")
            return True
        except StoreError as error:
            log.warning("a request whose caller left was not cancelled", request_id=waiter.request_id, error=str(error))
            return False

    def cut_off(self, waiter: Waiter) -> Refusal:
        """The answer for a caller whose request's end the store cannot say; the request is cancelled when it can."""
        task = asyncio.get_running_loop().create_task(self._cancel_later(waiter))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)
        return Refusal(
            503,
            f"The platform's store is not available, so that this request's answer cannot be passed on: "
            f"{waiter.cut_off} Try again in a moment.",
            "internal_error",
            ((b"retry-after", b"5"),),
        )

    async def _cancel_later(self, waiter: Waiter) -> None:
        """Once the store is back, so that what nobody waits for any more does not run then."""
        for _ in range(_CANCEL_TRIES):
            if await self._cancel(waiter):
                return
            await asyncio.sleep(_CANCEL_PAUSE)


class Stream:
    """A streamed answer on its way from the store to the caller.

    Nothing is read from the store while the caller does not take what was read before, so that the worker feels it.
    """

    def __init__(
        self,
        store: Store,
        waiter: Waiter,
        send: Send,
        own: Headers,
        write_timeout: float,
        hint: Callable[[int], Awaitable[Headers]],
    ) -> None:
        self._store = store
        self._hint = hint
        self._waiter = waiter
        self._send = send
        self._own = own
        self._write_timeout = write_timeout
        self._after = "0"
        self._started = False
        self._bodiless = False

    async def run(self) -> bool:
        """Pass on pieces until the end. False when nothing was there: no streamed answer has begun.

        Raises:
            CallerGone: the caller left or takes nothing; the connection must be closed.
        """
        waiter = self._waiter
        while True:
            ended = waiter.record is not None
            if waiter.cut_off and not ended:
                if not self._started:
                    return False
                raise CallerGone
            waiter.output = False
            pieces = await self._store.requests.read_output(waiter.app, waiter.request_id, self._after)
            for piece_id, kind, data in pieces:
                self._after = piece_id
                if await self._pass_on(kind, data):
                    return True
            if waiter.gone or waiter.expired or waiter.lost:
                if not self._started:
                    return False
                await self._abandon()
            if pieces:
                continue
            if not self._started:
                return False
            if ended:
                raise CallerGone  # the worker died in the middle; only closing the connection can say so
            await waiter.wait()

    async def _pass_on(self, kind: str, data: bytes) -> bool:
        """One piece to the caller; True when it was the last."""
        if kind == "start":
            status, pairs = msgpack.unpackb(data)
            status = status if 200 <= status <= 599 else 502
            headers = answers.passed_headers(tuple((name, value) for name, value in pairs), status) + self._own
            headers += await self._hint(status)
            self._started = True
            self._bodiless = status in BODILESS
            await start(self._send, status, headers)
            return False
        if kind == "end":
            if data:
                raise CallerGone  # the app failed in the middle of its answer
            await self._send({"type": "http.response.body", "body": b""})
            return True
        if not data or self._bodiless:  # an empty piece: the worker looks whether its pieces are being read
            return False
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            await self._abandon()
        return False

    async def _abandon(self) -> None:
        try:
            await self._store.requests.cancel(
                self._waiter.app, self._waiter.request_id, error_type="client_disconnected"
            )
        finally:
            raise CallerGone
