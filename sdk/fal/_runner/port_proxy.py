"""The app of a function that starts a web server of its own: an ASGI app that passes everything on to it.

Requests arrive whole, since the platform stores them; answers are passed on as they come. Whoever leaves, or is
cancelled, has its connection to the server closed. Leaves bytes to ``upstream`` and ``upstream_socket``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.routing import Match

from fal._runner.protocol import Headers
from fal._runner.upstream import Answer, BadAnswer, NotListening, Upstream, passed
from fal._runner.upstream_socket import Closed, UpstreamSocket, answered_headers

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Answers up to so many bytes are passed on in one piece.
_WHOLE_BYTES = 1024 * 1024
#: Seconds for a server to answer a close.
_GOODBYE_SECONDS = 2.0
#: Seconds between a connection that broke and the news that the server has ended.
_OVER_SECONDS = 0.25
_JSON: Headers = [(b"content-type", b"application/json")]
#: Bytes of an OpenAPI document, and seconds to wait for it.
_MOST_DOCUMENT_BYTES = 4 * 1024 * 1024
_DOCUMENT_SECONDS = 3.0


class _Everything:
    """A route that every path belongs to: which of them exist is for the server to say."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.FULL, {}


class PortProxy:
    """Passes on to one port.

    Args:
        name: the function's, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        #: where the server listens; known once it does
        self.place = ("127.0.0.1", 0)
        #: set when the server is gone for good
        self.over = asyncio.Event()
        self.routes = (_Everything(),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upstream = Upstream(*self.place)
        try:
            await upstream.connect()
            if scope["type"] == "websocket":
                await self._connection(upstream, scope, receive, send)
            else:
                await self._request(upstream, scope, receive, send)
        except NotListening as error:
            await self._unless_over()
            # 503 has the runner replaced: a server that takes no connections serves nobody.
            await _refuse(scope, send, 503, f"The web server of {self._name}() takes no connections: {error}.")
        finally:
            upstream.close()

    async def _request(self, upstream: Upstream, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        body = (await receive()).get("body", b"")
        started = False
        try:
            await upstream.request(method, scope["path"], scope["query_string"], scope["headers"], body)
            answer = await upstream.answer(method)
            if answer.length is not None and answer.length <= _WHOLE_BYTES:
                whole = b"".join([piece async for piece in upstream.body(answer)])
                await send(_start(answer, len(whole)))
                await send({"type": "http.response.body", "body": whole})
                return
            await send(_start(answer, answer.length))
            started = True
            async for piece in upstream.body(answer):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except BadAnswer as error:
            if started:
                raise
            await self._unless_over()
            await _refuse(scope, send, 502, f"The web server of {self._name}() {error}.")

    async def _connection(self, upstream: Upstream, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        server = UpstreamSocket(upstream)
        try:
            answer = await server.open(scope["path"], scope["query_string"], scope["headers"])
            if answer.status != 101:
                body = b"".join([piece async for piece in upstream.body(answer)])
                await send({"type": "websocket.http.response.start", **_head(answer)})
                await send({"type": "websocket.http.response.body", "body": body})
                return
        except BadAnswer as error:
            await self._unless_over()
            await _refuse(scope, send, 502, f"The web server of {self._name}() {error}.")
            return
        subprotocol, headers = answered_headers(answer)
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        told, heard = (
            asyncio.ensure_future(_to_server(server, receive)),
            asyncio.ensure_future(_to_caller(server, send)),
        )
        directions = (told, heard)
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():  # the caller has left: the server has a moment to say goodbye
                await asyncio.wait((heard,), timeout=_GOODBYE_SECONDS)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _unless_over(self) -> None:
        """Leave a request unanswered when the server has ended: so does the runner, and that is what it died of."""
        try:
            await asyncio.wait_for(self.over.wait(), _OVER_SECONDS)
        except asyncio.TimeoutError:
            return
        await asyncio.Event().wait()

    async def openapi(self) -> dict[str, Any] | None:
        """The server's own OpenAPI document, where it has one at the usual place."""
        try:
            return await asyncio.wait_for(self._document(), _DOCUMENT_SECONDS)
        except (OSError, asyncio.TimeoutError, BadAnswer, ValueError):
            return None

    async def _document(self) -> dict[str, Any] | None:
        upstream = Upstream(*self.place)
        try:
            await upstream.connect()
            await upstream.request("GET", "/openapi.json", b"", [(b"host", b"localhost")], b"")
            answer = await upstream.answer("GET")
            body = b""
            async for piece in upstream.body(answer):
                body += piece
                if answer.status != 200 or len(body) > _MOST_DOCUMENT_BYTES:
                    return None
        finally:
            upstream.close()
        document = json.loads(body) if answer.status == 200 else None
        return document if isinstance(document, dict) and "openapi" in document else None


async def _to_server(server: UpstreamSocket, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            server.close(message.get("code") or 1005, message.get("reason") or "")
            return
        text = message.get("text")
        await server.send(text if text is not None else message["bytes"])


async def _to_caller(server: UpstreamSocket, send: Send) -> None:
    try:
        while True:
            data = await server.receive()
            await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
    except Closed as end:
        server.close(end.code, "")
        await send({"type": "websocket.close", "code": end.code, "reason": end.reason})


def _start(answer: Answer, length: int | None) -> dict[str, Any]:
    head = _head(answer)
    if length is not None:
        # It is what tells a whole answer from a stream.
        head["headers"].append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", **head}


def _head(answer: Answer) -> dict[str, Any]:
    return {"status": answer.status, "headers": passed(answer.headers)}


async def _refuse(scope: Scope, send: Send, status: int, detail: str) -> None:
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    body = json.dumps({"detail": detail}).encode()
    headers = [*_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
