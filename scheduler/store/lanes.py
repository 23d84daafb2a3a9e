"""One direction of a connection: messages on their way to the one process that reads them, in order and bounded.

Messages that come while a piece is being stored travel together. Nothing more is stored while too much lies unread, so
that whoever writes feels a slow reader. Both the gateway and the worker write into lanes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from .pieces import Data, PieceKind, pack_close, pack_messages

#: Pieces that nobody has read, and their bytes, beyond which nothing is stored; seconds between looks.
MOST_UNREAD = 16
MOST_UNREAD_BYTES = 4 * 1024 * 1024
LOOK_AGAIN_SECONDS = 0.02
#: Messages, and their bytes, that may wait in this process.
MOST_HELD = 64
MOST_HELD_BYTES = 1024 * 1024
#: A piece takes no further message beyond so many bytes.
PIECE_BYTES = 256 * 1024


class Lane:
    """Messages of one connection in one direction.

    Args:
        append: stores a piece; how many the reader has not read yet, below 0 when nobody reads any more.
        unread: the same number, asked again.
        taken: called with how many messages have been stored and may be followed by others.
    """

    def __init__(
        self,
        append: Callable[[PieceKind, bytes], Awaitable[int]],
        unread: Callable[[], Awaitable[int]],
        taken: Callable[[int], None] = lambda messages: None,
    ) -> None:
        self._append = append
        self._unread = unread
        self._taken = taken
        self._held: deque[Data] = deque()
        self._held_bytes = 0
        self._stored: deque[int] = deque()  # bytes of the pieces that may be unread, oldest first
        self._close: bytes | None = None
        self._stopped = False
        self._news = asyncio.Event()
        self._moved = asyncio.Event()

    def add(self, data: Data) -> None:
        """One more message; dropped after ``close`` or ``stop``."""
        if self._close is None and not self._stopped:
            self._held.append(data)
            self._held_bytes += len(data)
            self._news.set()

    @property
    def full(self) -> bool:
        """Whether no other message should be added now."""
        return (len(self._held) >= MOST_HELD or self._held_bytes >= MOST_HELD_BYTES) and not self._stopped

    async def room(self) -> None:
        """Wait until another message may be added, or none counts any more."""
        while self.full:
            self._moved.clear()
            await self._moved.wait()

    def close(self, code: int, reason: str) -> None:
        """No more messages will come; the reader hears so after those that did. The first close counts."""
        if self._close is None:
            self._close = pack_close(code, reason)
            self._news.set()

    def stop(self) -> None:
        """No more messages will come, and the reader hears why on another way."""
        self._stopped = True
        self._news.set()
        self._moved.set()

    async def run(self) -> bool:
        """Store everything until ``close`` or ``stop``; False when nobody reads any more.

        Raises:
            StoreError: the store takes nothing.
        """
        try:
            while True:
                while self._held:
                    if not await self._store_some():
                        return False
                if self._close is not None:
                    return await self._append("close", self._close) >= 0
                if self._stopped:
                    return True
                await self._news.wait()
                self._news.clear()
        finally:
            self.stop()

    async def _store_some(self) -> bool:
        messages: list[Data] = []
        size = 0
        while self._held and (not messages or size + len(self._held[0]) <= PIECE_BYTES):
            messages.append(self._held.popleft())
            size += len(messages[-1])
        unread = await self._append("messages", pack_messages(messages))
        self._held_bytes -= size
        self._stored.append(size)
        while self._too_much(unread) and not self._stopped:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            unread = await self._unread()
        self._moved.set()
        self._taken(len(messages))
        return unread >= 0

    def _too_much(self, unread: int) -> bool:
        while len(self._stored) > max(unread, 0):
            self._stored.popleft()
        return unread > MOST_UNREAD or sum(self._stored) > MOST_UNREAD_BYTES
