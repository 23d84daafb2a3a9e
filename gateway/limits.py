"""Bounds on what callers may cost: bodies by size, memory of all bodies together, how many wait.

Bounds on time, and on the size of heads, are in ``server``, where the bytes arrive.
"""

from __future__ import annotations

from .asgi import Receive
from .errors import CallerGone, overloaded, too_large
from .settings import Settings

#: What a body without a declared length is taken to need, in bytes.
_UNDECLARED = 65536


class Limits:
    """The bounds of one gateway process and what is taken of them."""

    def __init__(self, settings: Settings) -> None:
        self._max_body = settings.max_body_bytes
        self._max_buffered = settings.max_buffered_bytes
        self._max_waiting = settings.max_waiting
        self._buffered = 0
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Callers that wait for an answer or read an event stream."""
        return self._waiting

    def enter(self) -> None:
        """Count one more waiting caller; pair with ``leave``.

        Raises:
            Refusal: 503 when too many wait already.
        """
        if self._waiting >= self._max_waiting:
            raise overloaded(
                f"{self._waiting} callers already wait in this gateway. Try again in a moment, or use the queue."
            )
        self._waiting += 1

    def leave(self) -> None:
        """The caller got its answer or went away."""
        self._waiting -= 1

    async def read_body(self, receive: Receive, declared: int | None, at_most: int | None = None) -> bytes:
        """The whole body; ``declared`` is its Content-Length, if it was given one.

        Raises:
            Refusal: 413 over the limit (before reading, when the length is declared), 503 when the bodies of all
                callers together are too much.
            CallerGone: the connection closed in the middle, or was closed because the body came too slowly.
        """
        limit = self._max_body if at_most is None else at_most
        if declared is not None and declared > limit:
            raise too_large(limit)
        expected = declared if declared is not None else _UNDECLARED
        if self._buffered + expected > self._max_buffered:
            raise overloaded("The gateway is holding as many request bodies as it may. Try again in a moment.")
        self._buffered += expected
        try:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            body: bytes = message["body"]
            if message["more_body"]:
                body = await self._receive_rest(receive, body, limit)
            if len(body) > limit:
                raise too_large(limit)
            return body
        finally:
            self._buffered -= expected

    async def _receive_rest(self, receive: Receive, first: bytes, limit: int) -> bytes:
        parts = [first]
        size = len(first)
        more = True
        while more and size <= limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            parts.append(message["body"])
            size += len(message["body"])
            more = message["more_body"]
        return b"".join(parts)
