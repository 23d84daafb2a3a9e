"""A streamed answer on its way from the runner to the gateway that waits for it.

Pieces that arrive while one is being stored travel together. A slow reader holds the app back: the runner may only send
as many pieces as it was granted, and nothing is granted while too much lies unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import msgpack
from fal._runner.protocol import Headers

from scheduler.store.errors import StoreError
from scheduler.store.records import Claimed

Kind = Literal["start", "chunk", "end"]
#: ``(claim, kind, data) -> pieces that the gateway has not read yet``
Append = Callable[[Claimed, Kind, bytes], Awaitable[int]]
#: ``(app, request id) -> the same number``
Unread = Callable[[str, str], Awaitable[int]]

#: Chunks that a runner sends before it waits for more; must be the runner's own number (fal._runner.serving).
FIRST_CREDIT = 64
#: Pieces of at most this many bytes are stored.
PIECE_BYTES = 256 * 1024
#: Stored pieces that nobody has read, beyond which the app is held back, and seconds between looks whether it was read.
MOST_UNREAD = 16
LOOK_AGAIN_SECONDS = 0.02


class StreamBroken(Exception):
    """The runner sent more than it was granted."""


def encode_head(status: int, headers: Headers) -> bytes:
    """The data of a ``start`` piece: msgpack of ``[status, [[name, value], ...]]``, header names in lower case."""
    decoded = [[name.decode("latin-1").lower(), value.decode("latin-1")] for name, value in headers]
    packed: bytes = msgpack.packb([status, decoded])
    return packed


class AnswerStream:
    """One direct request's streamed answer.

    Args:
        claim: the attempt that it answers.
        append: stores a piece where the gateway reads it; unread: how many pieces it has not read yet.
        grant: lets the runner send so many more chunks.
    """

    def __init__(self, claim: Claimed, append: Append, unread: Unread, grant: Callable[[int], None]) -> None:
        self._claim = claim
        self._append = append
        self._unread = unread
        self._grant = grant
        self._chunks: list[bytes] = []
        self._credit = FIRST_CREDIT
        self._end: bytes | None = None
        self._news = asyncio.Event()
        self._unheard = False

    def chunk(self, body: bytes) -> None:
        """Take a chunk from the runner.

        Raises:
            StreamBroken: it was not granted; nothing would bound our memory.
        """
        self._credit -= 1
        if self._credit < 0:
            raise StreamBroken("the runner sent more of a stream than it was granted")
        self._chunks.append(body)
        self._news.set()

    def end(self, error: str | None = None) -> None:
        """No more chunks will come; ``error`` says why if it is not the app's own end."""
        if self._end is None:
            self._end = (error or "").encode()
            self._news.set()

    async def run(self, status: int, headers: Headers) -> bool:
        """Forward everything until ``end``; False when the store refused, so that the caller saw a broken answer."""
        try:
            await self._put("start", encode_head(status, headers))
            while self._end is None or self._chunks:
                await self._news.wait()
                self._news.clear()
                while self._chunks:
                    await self._forward()
            await self._put("end", self._end)
        except StoreError:
            return False
        return True

    async def _forward(self) -> None:
        size = taken = 0
        while taken < len(self._chunks) and (taken == 0 or size + len(self._chunks[taken]) <= PIECE_BYTES):
            size += len(self._chunks[taken])
            taken += 1
        data = self._chunks[0] if taken == 1 else b"".join(self._chunks[:taken])
        del self._chunks[:taken]
        unread = await self._put("chunk", data)
        while unread > MOST_UNREAD and self._end is None:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            unread = await self._unread(self._claim.app, self._claim.request_id)
        self._credit += taken
        self._grant(taken)

    async def _put(self, kind: Kind, data: bytes) -> int:
        """Store a piece unless the request was cancelled, which makes the rest of its answer nobody's."""
        if self._unheard:
            return 0
        unread = await self._append(self._claim, kind, data)
        self._unheard = unread < 0
        return unread
