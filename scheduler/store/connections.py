"""What the caller of a connection sends, on its way to the worker that serves it.

A connection is a direct request: it is claimed, leased and ended by the same verbs. What its app sends goes to the
gateway as the pieces of a streamed answer do, by ``Requests.append_output``.
"""

from __future__ import annotations

import asyncio

from . import keys
from .connection import Redis
from .pieces import PieceKind, read_pieces
from .scripts import SCRIPTS

_KEEP_MS = 600_000


class Connections:
    """Verbs on the input of connections."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append_input(self, app: str, request_id: str, sequence: int, kind: PieceKind, data: bytes) -> int:
        """Stores one piece and tells the worker; one after the other, numbered from 1.

        Returns:
            Pieces that the worker has not read yet; -1 when the connection is over.

        Raises:
            StoreFull: Redis is out of memory. StoreUnavailable.
        """
        unread: int = await SCRIPTS["append_input"](
            self._redis, app, request_id=request_id, sequence=sequence, kind=kind, data=data
        )
        return unread

    async def unread_input(self, app: str, request_id: str) -> int:
        """Pieces that the worker has not read yet; -1 when the connection is over."""
        status, unread = await asyncio.gather(
            self._redis.command("HGET", keys.request(app, request_id), "status"),
            self._redis.command("XLEN", keys.input(app, request_id)),
        )
        return int(unread) if status == b"IN_PROGRESS" else -1

    async def read_input(self, app: str, request_id: str, after: str = "0") -> list[tuple[str, str, bytes]]:
        """``(id, kind, data)`` of the pieces after ``after``; what came up to ``after`` is deleted as read."""
        return await read_pieces(self._redis, keys.input(app, request_id), after)

    async def gateway_listens(self, gateway_id: str) -> bool:
        """Whether the gateway that holds the caller's end is there; one that reconnects seems gone for a moment.

        Raises:
            StoreUnavailable.
        """
        reply = await self._redis.command("PUBSUB", "NUMSUB", keys.channel_gateway(gateway_id))
        return int(reply[1]) > 0

    async def keep_input(self, app: str, request_id: str) -> None:
        """The worker is there and waits for its app: what lies unread must not expire meanwhile."""
        await self._redis.command("PEXPIRE", keys.input(app, request_id), _KEEP_MS)

    async def drop_input(self, app: str, request_id: str) -> None:
        """Nobody will read what is left."""
        await self._redis.command("DEL", keys.input(app, request_id))
