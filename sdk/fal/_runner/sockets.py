"""One connection: a websocket of the app, driven in-process by the platform's messages.

Bounded both ways: the app's ``send`` waits while the platform has not taken enough, and the caller's messages are
acknowledged one by one as the app takes them. Leaves tasks, cancellation and logs to ``fal._runner.serving``.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from starlette.routing import Match
from starlette.websockets import WebSocketDisconnect

from fal._runner.channel import Channel
from fal._runner.gpu_health import GpuHealth
from fal._runner.protocol import (
    MAX_MESSAGE_BYTES,
    Headers,
    Request,
    Response,
    SocketAccept,
    SocketClose,
    SocketMessage,
    SocketTaken,
    Window,
)

if TYPE_CHECKING:
    from fal._runner.serving import ASGIApp, ASGIMessage, Scope

_JSON = (b"content-type", b"application/json")
#: The status of a connection that the app ended well; callers only ever see the close code.
_SWITCHED = 101


class ConnectionGone(OSError):
    """Raised into an app that sends to a connection that is over; servers of ASGI apps signal it as an OSError."""


class SocketExchange:
    """One connection and its end; stands in the place of an ``Exchange``."""

    def __init__(self, request: Request, channel: Channel, gpu: GpuHealth) -> None:
        self.request = request
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.answered = False
        self.cancelled = False
        self.started = False
        #: what could be told to the caller has been told, whatever the end
        self.streaming = False
        self._gpu = gpu
        self._channel = channel
        self._connected = False
        self._closed = False
        self._window = Window()
        self._messages: deque[str | bytes] = deque()
        self._end: tuple[int, str] | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._denial: tuple[int, Headers, list[bytes]] | None = None

    # --- the two callables that the ASGI app gets ---------------------------------------------------------------------

    async def receive(self) -> ASGIMessage:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while not self._messages and self._end is None:
            self._news.clear()
            await self._news.wait()
        if self._messages:
            data = self._messages.popleft()
            self._channel.send(SocketTaken(self.request.id, self.request.attempt, 1))
            return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}
        assert self._end is not None
        return {"type": "websocket.disconnect", "code": self._end[0], "reason": self._end[1]}

    async def send(self, message: ASGIMessage) -> None:
        kind = message["type"]
        if kind == "websocket.send":
            await self._send(message)
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._close(message.get("code") or 1000, message.get("reason") or "")
        elif kind == "websocket.http.response.start" and not self.streaming:
            # Of an open connection error handlers send one too; that is the end of the attempt, and would overtake the
            # close which `_swallowed` makes of it.
            self._denial = (message["status"], list(message.get("headers", ())), [])
        elif kind == "websocket.http.response.body" and self._denial is not None:
            status, headers, parts = self._denial
            parts.append(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                self._answer(status, headers, b"".join(parts))

    def _accept(self, message: ASGIMessage) -> None:
        if self._end is not None:
            raise ConnectionGone("the caller has left")
        if not self.streaming:
            self.streaming = True
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers") or ()]
            request = self.request
            self._channel.send(SocketAccept(request.id, request.attempt, message.get("subprotocol"), headers))

    async def _send(self, message: ASGIMessage) -> None:
        data = message.get("bytes")
        data = message.get("text", "") if data is None else bytes(data)
        size = len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "replace"))
        if size > MAX_MESSAGE_BYTES:
            limit = MAX_MESSAGE_BYTES // (1024 * 1024)
            raise ValueError(
                f"a message of {size} bytes is over the limit of {limit} MiB: send it in pieces, or as a file's URL"
            )
        while not self._window.open and not self._over:
            self._room.clear()
            await self._room.wait()
        if self._over or not self.streaming:
            raise ConnectionGone("the connection is not open")
        self._window.sent(data)
        self._channel.send(SocketMessage(self.request.id, self.request.attempt, data))

    @property
    def _over(self) -> bool:
        return self._closed or self.cancelled or self._end is not None

    def _close(self, code: int, reason: str) -> None:
        if not self.streaming:
            self._answer(403, [_JSON], b'{"detail":"The app refused the connection."}')
        elif not self._closed:
            self._closed = True
            self._channel.send(SocketClose(self.request.id, self.request.attempt, code, reason))

    # --- the end ------------------------------------------------------------------------------------------------------

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the app serve the connection; raises what it raises, but not that its caller left."""
        scope = _as_websocket(scope)
        if all(route.matches(scope)[0] is Match.NONE for route in getattr(app, "routes", ())):
            self._refuse(404, f"Path {self.request.path} not found")
            return
        try:
            await app(scope, self.receive, self.send)
        except WebSocketDisconnect:
            if self._end is None:
                raise
        if self.error is not None:
            self._swallowed()
        elif self.streaming:
            self._close(1000, "")
            self._answer(_SWITCHED, [], b"")

    def _swallowed(self) -> None:
        """An error handler made an answer of what the app raised; nothing of that can be sent over a connection."""
        error, self.error = self.error, None
        assert error is not None
        status = getattr(error, "status_code", None)
        if not isinstance(status, int) or not 400 <= status < 500:
            raise error
        self._refuse(status, str(getattr(error, "detail", None) or getattr(error, "message", None) or error))

    async def check(self) -> None:
        """See whether the GPU survived."""
        if not self.cancelled:
            error, self.error = self.error, None
            await self._gpu.check(self.request, error, b"")

    def failed(self, error: BaseException) -> None:
        """The app raised ``error``; of what its error handlers answer nothing can be sent over a connection."""
        self.error = error

    def _refuse(self, status: int, detail: str) -> None:
        if self.streaming:
            self._close(1011, detail)
        self._answer(status, [_JSON], json.dumps({"detail": detail}).encode())

    def answer_error(self, status: int, detail: str) -> None:
        """End the connection, if it has not ended, with an error of the runner's own."""
        if not self.answered:
            if self.streaming:
                self._close(1001 if status == 499 else 1011, "" if status == 499 else detail)
            self._answer(status, [_JSON], json.dumps({"detail": detail}).encode())

    def _answer(self, status: int, headers: Headers, body: bytes) -> None:
        if not self.answered:
            self.answered = True
            self._channel.send(Response(self.request.id, self.request.attempt, status, headers, body))

    # --- from the platform --------------------------------------------------------------------------------------------

    def hear(self, data: str | bytes) -> None:
        """The caller sent a message."""
        self._messages.append(data)
        self._news.set()

    def leave(self, code: int, reason: str) -> None:
        """The caller has left, or the platform ended the connection."""
        if self._end is None:
            self._end = (code, reason)
            self._news.set()
            self._room.set()

    def add_credit(self, messages: int) -> None:
        """The platform has taken so many messages."""
        self._window.taken(messages)
        self._room.set()

    def disconnect(self) -> None:
        """The request was cancelled."""
        self.cancelled = True
        self.leave(1006, "")
        self._room.set()


def _as_websocket(scope: Scope) -> dict[str, Any]:
    offered = [value for name, value in scope["headers"] if name == b"sec-websocket-protocol"]
    found = {name: value for name, value in scope.items() if name != "method"}
    return {
        **found,
        "type": "websocket",
        "scheme": "wss" if scope["scheme"] == "https" else "ws",
        "subprotocols": [one.strip() for value in offered for one in value.decode("latin-1").split(",")],
        "extensions": {"websocket.http.response": {}},
    }
