"""The little ASGI that the hot paths speak directly: types, one whole answer, hanging up.

Leaves everything with a route table to Starlette.
"""

from __future__ import annotations

from starlette.types import Message, Receive, Scope, Send

__all__ = ["Headers", "Message", "Receive", "Scope", "Send", "respond", "start", "until_hang_up"]

Headers = list[tuple[bytes, bytes]]


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """One whole answer; adds its length."""
    if status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def start(send: Send, status: int, headers: Headers) -> None:
    """The head of an answer whose body comes piece by piece; it leaves at once."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": True})


async def until_hang_up(receive: Receive) -> None:
    """Returns when the caller has closed the connection. The body must have been read."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
