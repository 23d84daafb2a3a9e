"""An app's HTTP endpoints over one websocket: each text frame is the input of a call, answered in order.

An answer is a ``start`` frame with status and headers, the body in binary frames, and an ``end`` frame. Each call is a
direct call like any other; leaves all of it to ``run``.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import structlog

from .asgi import Message, Receive, Scope, Send, http_scheme
from .errors import CallerGone, answer_for, bad_request, is_expected
from .incoming import Head, new_request_id
from .run import Run

log = structlog.get_logger("gateway.call_socket")

#: Frames that may wait while a call runs; a caller that sends more is not read further.
_MOST_WAITING = 4


class CallSocket:
    """One caller's socket for calls of one endpoint.

    Args:
        path: the endpoint, as in a direct call's address.
    """

    def __init__(self, run: Run, scope: Scope, receive: Receive, send: Send, head: Head, path: str) -> None:
        self._run = run
        self._scope = scope
        self._receive = receive
        self._send = send
        self._head = head
        self._path = path
        self._calls: asyncio.Queue[bytes] = asyncio.Queue(_MOST_WAITING)
        self._gone = asyncio.Event()

    async def serve(self) -> None:
        """Answer calls until the caller leaves.

        Raises:
            Refusal: the endpoint is none of the caller's, before the socket was opened.
        """
        await self._run.check(self._scope, self._head, self._path)
        await self._send({"type": "websocket.accept", "headers": []})
        listening = asyncio.create_task(self._listen())
        try:
            while not self._gone.is_set():
                call = asyncio.ensure_future(self._calls.get())
                gone = asyncio.ensure_future(self._gone.wait())
                await asyncio.wait((call, gone), return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                if not call.done():
                    call.cancel()
                    return
                await self._answer(call.result())
        except (CallerGone, OSError):
            pass
        finally:
            listening.cancel()

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._gone.set()
                return
            text = message.get("text")
            await self._calls.put(message["bytes"] if text is None else text.encode())

    async def _answer(self, body: bytes) -> None:
        request_id = new_request_id()
        answer = _Answer(self._send, request_id)
        try:
            if not _is_json(body):
                raise bad_request("A call over a websocket is one JSON text.")
            scope = {**self._scope, "type": "http", "method": "POST", "scheme": http_scheme(self._scope)}
            await self._run.serve(scope, self._of_call(body), answer.send, self._head_of(body), self._path, request_id)
        except CallerGone:
            if self._gone.is_set():
                raise
            await answer.broke_off()
        except Exception as error:
            if not is_expected(error):
                log.error("a call over a websocket failed", request_id=request_id, exc_info=error)
            status, headers, content = answer_for(error)
            headers.append((b"x-fal-request-id", request_id.encode("ascii")))
            await answer.send({"type": "http.response.start", "status": status, "headers": headers})
            await answer.send({"type": "http.response.body", "body": content})

    def _of_call(self, body: bytes) -> Receive:
        """What the call's own ``receive`` gives: its body, and then the end of the socket."""
        first = [body]

        async def receive() -> Message:
            if first:
                return {"type": "http.request", "body": first.pop(), "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        return receive

    def _head_of(self, body: bytes) -> Head:
        head = Head()
        for name in Head.__slots__:
            setattr(head, name, getattr(self._head, name))
        head.content_length = len(body)
        head.passed = [(name, value) for name, value in self._head.passed if not name.startswith("sec-websocket-")]
        head.passed += [("content-type", "application/json"), ("content-length", str(len(body)))]
        return head


class _Answer:
    """One call's answer on its way into frames."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._frame = send
        self._request_id = request_id
        self._began = time.monotonic()
        self._status = 0
        self._first: float | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            await self._meta(type="start", request_id=self._request_id, status=self._status, headers=headers)
            return
        if body := message.get("body"):
            if self._first is None:
                self._first = time.monotonic() - self._began
            await self._frame({"type": "websocket.send", "bytes": body})
        if not message.get("more_body"):
            await self._end()

    async def broke_off(self) -> None:
        """The app failed in the middle; the status of the end says so."""
        self._status = 502
        await self._end()

    async def _end(self) -> None:
        first = time.monotonic() - self._began if self._first is None else self._first
        await self._meta(
            type="end", request_id=self._request_id, status=self._status, time_to_first_byte_seconds=round(first, 6)
        )

    async def _meta(self, **content: Any) -> None:
        await self._frame({"type": "websocket.send", "text": orjson.dumps(content).decode()})


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True
