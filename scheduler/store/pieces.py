"""Pieces of streams and connections: how they lie in Redis, and how messages are packed into them.

Leaves who writes them, and with which fence, to ``requests`` and ``connections``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import msgpack

from .connection import Redis

#: ``start``, ``chunk`` and ``end`` of a streamed answer; ``accept``, ``messages`` and ``close`` of a connection.
PieceKind = Literal["start", "chunk", "end", "accept", "messages", "close"]
#: One message of a connection.
Data = str | bytes


async def read_pieces(redis: Redis, key: str, after: str) -> list[tuple[str, str, bytes]]:
    """``(id, kind, data)`` of the pieces after ``after``; what came up to ``after`` is deleted as read."""
    if after != "0":
        trimmed = f"{int(after.partition('-')[0]) + 1}-0"
        read, _ = await asyncio.gather(
            redis.command("XRANGE", key, f"({after}", "+", "COUNT", 100),
            redis.command("XTRIM", key, "MINID", trimmed),
        )
    else:
        read = await redis.command("XRANGE", key, "-", "+", "COUNT", 100)
    return [(entry.decode(), fields[0].decode(), fields[1]) for entry, fields in read]


def pack_messages(messages: Sequence[Data]) -> bytes:
    """The data of a ``messages`` piece: a msgpack array, text as strings."""
    packed: bytes = msgpack.packb(list(messages))
    return packed


def unpack_messages(data: bytes) -> list[Data]:
    """The other way."""
    messages: list[Data] = msgpack.unpackb(data)
    return messages


def pack_accept(subprotocol: str | None, headers: Sequence[tuple[str, str]]) -> bytes:
    """The data of an ``accept`` piece."""
    packed: bytes = msgpack.packb((subprotocol, headers))
    return packed


def unpack_accept(data: bytes) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The other way."""
    subprotocol, headers = msgpack.unpackb(data)
    return subprotocol, tuple((name, value) for name, value in headers)


def pack_close(code: int, reason: str) -> bytes:
    """The data of a ``close`` piece."""
    packed: bytes = msgpack.packb((code, reason))
    return packed


def unpack_close(data: bytes) -> tuple[int, str]:
    """The other way."""
    code, reason = msgpack.unpackb(data)
    return code, reason
