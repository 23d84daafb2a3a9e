"""Bounds on what callers may cost: bodies by size and time, memory of all bodies together, how many wait.

Bounds on heads (size, time) are in ``server``, where the bytes arrive.
"""

from __future__ import annotations

import asyncio

from .asgi import Receive
from .errors import CallerGone, Refusal, overloaded, too_large
from .settings import Settings

_SECONDS_PER_BYTE = 1 / 65536


class Limits:
    """The bounds of one gateway process and what is taken of them."""

    def __init__(self, settings: Settings) -> None:
        self._max_body = settings.max_body_bytes
        self._max_buffered = settings.max_buffered_bytes
        self._body_timeout = settings.body_timeout
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
            Refusal: 413 over the limit (before reading, when the length is declared), 400 when it arrives too
                slowly, 503 when the bodies of all callers together are too much.
            CallerGone: the connection closed in the middle.
        """
        limit = self._max_body if at_most is None else at_most
        if declared is not None and declared > limit:
            raise too_large(limit)
        expected = declared if declared is not None else 65536
        if self._buffered + expected > self._max_buffered:
            raise overloaded("The gateway is holding as many request bodies as it may. Try again in a moment.")
        self._buffered += expected
        try:
            async with asyncio.timeout(self._body_timeout + expected * _SECONDS_PER_BYTE) as clock:
                return await self._receive_all(receive, limit, clock)
        except TimeoutError:
            raise Refusal(
                400, "The body did not arrive in time.", "bad_request", ((b"connection", b"close"),)
            ) from None
        finally:
            self._buffered -= expected

    async def _receive_all(self, receive: Receive, limit: int, clock: asyncio.Timeout) -> bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        body: bytes = message["body"]
        if not message["more_body"]:
            if len(body) > limit:
                raise too_large(limit)
            return body
        parts = [body]
        size = len(body)
        started = asyncio.get_running_loop().time()
        while message["more_body"]:
            if size > limit:
                raise too_large(limit)
            # An undeclared length earns its time as it arrives, so that a slow but honest upload is not cut off.
            clock.reschedule(max(clock.when() or 0.0, started + self._body_timeout + size * _SECONDS_PER_BYTE))
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            parts.append(message["body"])
            size += len(message["body"])
        if size > limit:
            raise too_large(limit)
        return b"".join(parts)
