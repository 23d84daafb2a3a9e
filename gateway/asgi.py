"""The little ASGI that the hot paths speak directly: types, one whole answer, hanging up.

Leaves everything with a route table to Starlette.
"""

from __future__ import annotations

from starlette.types import Message, Receive, Scope, Send

__all__ = [
    "BODILESS",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "http_scheme",
    "respond",
    "start",
    "until_hang_up",
]

Headers = list[tuple[bytes, bytes]]
#: Statuses that never have a body; after a 204 or 304, one would be read as the next answer.
BODILESS = frozenset({204, 205, 304})


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """One whole answer; adds its length. A status that has no body loses the one that an app gave it."""
    if status in BODILESS:
        body = b""
    if status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def start(send: Send, status: int, headers: Headers) -> None:
    """The head of an answer whose body comes piece by piece; it leaves at once."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": True})


def http_scheme(scope: Scope) -> str:
    """``https`` for a websocket over TLS as well."""
    return "https" if scope["scheme"] in ("wss", "https") else "http"


async def until_hang_up(receive: Receive) -> None:
    """Returns when the caller has closed the connection. The body must have been read."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
