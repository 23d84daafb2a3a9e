"""Answers Request messages by driving the app as an in-process ASGI app.

Owns the exchange between one Request and its answer: whole answers, streams with credit, cancellation, attribution of
logs. Leaves routes and error answers to ``fal._routes`` and how many requests run at once to the supervisor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from fal import _upload_policy as upload_policy
from fal._context import RequestContext, set_current_request
from fal._plain_routes import Ended, PlainRoute
from fal._runner.channel import Channel
from fal._runner.gpu_health import GpuHealth
from fal._runner.output import Output
from fal._runner.protocol import (
    Cancel,
    Credit,
    Headers,
    Request,
    Response,
    ResponseChunk,
    ResponseEnd,
    ResponseStart,
    SocketClose,
    SocketMessage,
)
from fal._runner.sockets import SocketExchange
from fal._spec import WEBSOCKET

#: Chunks that a stream may send before the platform has asked for more.
FIRST_CREDIT = 64
#: Larger pieces of a stream are cut.
MAX_CHUNK_BYTES = 1024 * 1024
_JSON = (b"content-type", b"application/json")

Scope = dict[str, Any]
ASGIMessage = dict[str, Any]
ASGIApp = Callable[
    [Scope, Callable[[], Awaitable[ASGIMessage]], Callable[[ASGIMessage], Awaitable[None]]], Awaitable[None]
]


class CallerGone(OSError):
    """Raised into a stream whose caller has cancelled; servers of ASGI apps signal it as an OSError."""


class Exchange:
    """One Request and its answer."""

    __slots__ = (
        "_body_read", "_channel", "_checked", "_credit", "_extra_headers", "_gone", "_gpu", "_headers", "_more",
        "_parts", "_status", "answered", "cancelled", "error", "request", "started", "streaming", "task",
    )  # fmt: skip

    def __init__(
        self, request: Request, channel: Channel, extra_headers: Callable[[], Headers], gpu: GpuHealth
    ) -> None:
        self.request = request
        #: what the app raised, where its error handlers make the answer
        self.error: BaseException | None = None
        self._gpu = gpu
        self._checked = False
        self.task: asyncio.Task[None] | None = None
        self.answered = False
        self.cancelled = False
        self.started = False
        self.streaming = False
        self._channel = channel
        self._extra_headers = extra_headers
        self._body_read = False
        self._status = 500
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._credit = FIRST_CREDIT
        self._more: asyncio.Event | None = None
        self._gone: asyncio.Event | None = None

    # --- the two callables that the ASGI app gets ---------------------------------------------------------------------

    async def receive(self) -> ASGIMessage:
        if not self.cancelled:
            if not self._body_read:
                self._body_read = True
                return {"type": "http.request", "body": self.request.body, "more_body": False}
            if self._gone is None:
                self._gone = asyncio.Event()
            await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: ASGIMessage) -> None:
        if self.cancelled and self.streaming:
            raise CallerGone("the request was cancelled")
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            self._headers = [*message.get("headers", ()), *self._extra_headers()]
            # An answer of unknown length is a stream: its caller wants the start now, not with the first piece.
            if self.request.stream and not any(key == b"content-length" for key, _ in self._headers):
                self._start_stream()
        elif kind == "http.response.body":
            body, more = message.get("body", b""), message.get("more_body", False)
            if not more and not self.streaming:
                if self._status >= 500:
                    await self.check(b"".join([*self._parts, body]))
                elif self.error is not None or self._parts:
                    await self.check()
                self._answer(body)
                return
            if more and not self.streaming and self.request.stream:
                self._start_stream()
            if self.streaming:
                await self._send_chunks(body, more)
            else:
                self._parts.append(bytes(body))

    async def check(self, body: bytes = b"") -> None:
        """See whether the GPU survived, ahead of the answer; once."""
        if not self._checked and not self.cancelled:
            self._checked = True
            # An error keeps alive what the app's frames hold, GPU memory too, and its frames hold this exchange.
            error, self.error = self.error, None
            await self._gpu.check(self.request, error, body)

    def failed(self, error: BaseException) -> None:
        """The app raised ``error``, of which an error handler makes an answer."""
        self.error = error

    # --- answers ------------------------------------------------------------------------------------------------------

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer at once."""
        self._status, self._headers = status, [*headers, *self._extra_headers()]
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        if self._parts:
            body = b"".join([*self._parts, body])
        self.answered = True
        request = self.request
        self._channel.send(Response(request.id, request.attempt, self._status, self._headers, bytes(body)))

    def answer_error(self, status: int, detail: str) -> None:
        """End the exchange, if it has not ended, with an error of the runner's own."""
        if self.answered:
            return
        if self.streaming:
            self.answered = True
            self._channel.send(ResponseEnd(self.request.id, self.request.attempt, detail))
            return
        self._status, self._headers, self._parts = status, [_JSON, *self._extra_headers()], []
        self._answer(b'{"detail":"%b"}' % detail.replace("\\", "\\\\").replace('"', '\\"').encode())

    def _start_stream(self) -> None:
        self.streaming = True
        self._channel.send(ResponseStart(self.request.id, self.request.attempt, self._status, self._headers))

    async def _send_chunks(self, body: bytes, more: bool) -> None:
        request = self.request
        for start in range(0, len(body), MAX_CHUNK_BYTES):
            while self._credit <= 0 and not self.cancelled:
                self._more = asyncio.Event()
                await self._more.wait()
            if self.cancelled:
                raise CallerGone("the request was cancelled")
            self._credit -= 1
            self._channel.send(ResponseChunk(request.id, request.attempt, bytes(body[start : start + MAX_CHUNK_BYTES])))
        if not more:
            await self.check()  # its status was sent long before anything could fail
            self.answered = True
            self._channel.send(ResponseEnd(request.id, request.attempt))

    # --- from the platform --------------------------------------------------------------------------------------------

    def add_credit(self, chunks: int) -> None:
        """The platform can take ``chunks`` more pieces."""
        self._credit += chunks
        if self._more is not None:
            self._more.set()

    def disconnect(self) -> None:
        """``request.is_disconnected()`` is true from now on."""
        self.cancelled = True
        for event in (self._more, self._gone):
            if event is not None:
                event.set()


class Serving:
    """All requests of one runner.

    Args:
        app: the ASGI app.
        channel: where answers go.
        output: the streams whose lines belong to requests.
        extra_headers: called for each answer; headers added to it.
        paths: the app's routes; one that ends in ``/cancel`` is told of cancellations.
        plain_routes: those of them that answer POST and can be called without the app around them.
        from_any_thread: whether ``extra_headers`` may be called from other threads than the loop's.
    """

    def __init__(
        self,
        app: ASGIApp,
        channel: Channel,
        output: Output,
        extra_headers: Callable[[], Headers],
        paths: frozenset[str],
        on_base_url: Callable[[str], None],
        plain_routes: Mapping[str, PlainRoute],
        from_any_thread: bool = True,
    ) -> None:
        self._app = app
        self._channel = channel
        self._output = output
        self._extra_headers = extra_headers
        self._paths = paths
        self._on_base_url = on_base_url
        self._gpu = GpuHealth(channel)
        self._plain_routes = plain_routes
        self._from_any_thread = from_any_thread
        self._running: dict[str, Exchange | SocketExchange] = {}
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        upload_policy.set_running(lambda: [exchange.request.headers for exchange in list(self._running.values())])

    def receive(self, message: object) -> None:
        """Take one message from the supervisor. Runs on the loop."""
        kind = type(message)
        if kind is Request:
            self._accept(message)  # type: ignore[arg-type]
        elif kind is Credit:
            exchange = self._running.get(message.id)  # type: ignore[attr-defined]
            if exchange is not None:
                exchange.add_credit(message.chunks)  # type: ignore[attr-defined]
        elif kind is Cancel:
            self._cancel(message.id)  # type: ignore[attr-defined]
        elif kind is SocketMessage or kind is SocketClose:
            self._of_caller(message)  # type: ignore[arg-type]

    def _of_caller(self, message: SocketMessage | SocketClose) -> None:
        exchange = self._running.get(message.id)
        if not isinstance(exchange, SocketExchange):
            return
        if isinstance(message, SocketClose):
            exchange.leave(message.code, message.reason)
        else:
            exchange.hear(message.data)

    async def wait_until_idle(self) -> None:
        """Wait for all running requests."""
        await self._idle.wait()

    def abandon(self) -> None:
        """Nobody waits for answers any more: cancel everything that can be cancelled."""
        for exchange in list(self._running.values()):
            exchange.disconnect()
            if exchange.task is not None and exchange.started:
                exchange.task.cancel()

    def _accept(self, request: Request) -> None:
        exchange: Exchange | SocketExchange
        if request.method == WEBSOCKET:
            exchange = SocketExchange(request, self._channel, self._gpu)
        else:
            exchange = Exchange(request, self._channel, self._extra_headers, self._gpu)
        self._running[request.id] = exchange
        self._idle.clear()
        self._on_base_url(request.base_url)
        exchange.task = asyncio.get_running_loop().create_task(self._serve(exchange))

    async def _serve(self, exchange: Exchange | SocketExchange) -> None:
        request = exchange.request
        exchange.started = True
        set_current_request(RequestContext(request.id, request.path, request.headers, request.base_url))
        try:
            over_socket = isinstance(exchange, SocketExchange)
            if (why := upload_policy.refusal(request.headers, over_socket)) is not None:
                exchange.answer_error(422, why)
            elif not exchange.cancelled:
                if isinstance(exchange, SocketExchange):
                    await self._connect(exchange)
                else:
                    await self._call(exchange)
                exchange.answer_error(500, "the app sent no answer")
            exchange.answer_error(499, "the request was cancelled")
        except asyncio.CancelledError:
            exchange.answer_error(499, "the request was cancelled")
        except BaseException as error:  # noqa: BLE001 - user code may raise anything; it must cost one request only
            if exchange.cancelled and isinstance(error, Exception):
                exchange.answer_error(499, "the request was cancelled")
            else:
                error = _lone(error)
                self._output.exception(error, request.id)
                await self._check(exchange, error)
                exchange.answer_error(500, "Internal Server Error" if not exchange.streaming else _one_line(error))
        finally:
            exchange.error = None
            self._output.end_request(request.id)
            if self._running.get(request.id) is exchange:
                del self._running[request.id]
            if not self._running:
                self._idle.set()

    async def _check(self, exchange: Exchange | SocketExchange, error: BaseException) -> None:
        exchange.error = error
        try:
            await exchange.check()
        except asyncio.CancelledError:
            pass  # cancelled meanwhile; it is about to be answered

    async def _call(self, exchange: Exchange) -> None:
        request = exchange.request
        app: ASGIApp = self._app
        route = self._plain_routes.get(request.path) if request.method == "POST" else None
        if route is not None:
            end = await route.answer(request.body, request.headers, exchange.answer, self._from_any_thread)
            if end is True:
                return
            if isinstance(end, Ended):
                app = end
        scope = _scope(request)
        scope["fal.failed"] = exchange.failed
        await app(scope, exchange.receive, exchange.send)

    async def _connect(self, exchange: SocketExchange) -> None:
        scope = _scope(exchange.request)
        scope["fal.failed"] = exchange.failed
        await exchange.run(self._app, scope)

    def _cancel(self, request_id: str) -> None:
        exchange = self._running.get(request_id)
        if exchange is None:
            return
        exchange.disconnect()
        path = exchange.request.path.rstrip("/") + "/cancel"
        if path in self._paths:
            # The app has its own way to stop; it decides how the request ends.
            task = asyncio.get_running_loop().create_task(self._tell_app(exchange.request, path))
            self._side_tasks.add(task)
            task.add_done_callback(self._side_tasks.discard)
        elif exchange.task is not None and exchange.started:
            exchange.task.cancel()  # one that has not started yet would vanish without an answer

    async def _tell_app(self, request: Request, path: str) -> None:
        set_current_request(RequestContext(request.id, path, request.headers, request.base_url))
        call = Request(request.id, request.attempt, "POST", path, b"", request.headers, b"", request.base_url, False)
        unheard = _Unheard()
        try:
            await self._app(_scope(call), unheard.receive, unheard.send)
        except BaseException as error:  # noqa: BLE001 - the cancel route is user code; its failure is only logged
            self._output.exception(error, request.id)


class _Unheard:
    """Callables for an ASGI call whose answer nobody reads."""

    async def receive(self) -> ASGIMessage:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: ASGIMessage) -> None:
        return None


def _lone(error: BaseException) -> BaseException:
    """The error inside groups of one: what older Starlette makes of an error in a stream."""
    inner: Sequence[BaseException] = getattr(error, "exceptions", ())
    return _lone(inner[0]) if len(inner) == 1 and isinstance(inner[0], BaseException) else error


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


_SERVERS: dict[str, tuple[str, tuple[str, int | None]]] = {}


def _server(base_url: str) -> tuple[str, tuple[str, int | None]]:
    known = _SERVERS.get(base_url)
    if known is None:
        parts = urlsplit(base_url)
        known = (parts.scheme or "http", (parts.hostname or "localhost", parts.port))
        if len(_SERVERS) < 64:  # callers choose the Host header: never let them fill the memory
            _SERVERS[base_url] = known
    return known


def _scope(request: Request) -> Scope:
    scheme, server = _server(request.base_url)
    path = request.path
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": scheme,
        # The gateway has decoded it; once more would turn a "%41" that the caller meant into an "A".
        "path": path,
        "raw_path": (path if path.isascii() and "%" not in path else quote(path)).encode("ascii"),
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": None,
        "server": server,
        "state": {},
        "extensions": {},
    }
