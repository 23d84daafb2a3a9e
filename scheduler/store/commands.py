"""Commands that an owner runs beside a runner: asked for by a gateway, taken by the worker's supervisor, and what is
said to them and by them on its way.

Somebody has to wait for a command: what nobody asks about any more is forgotten, and ended by the worker.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Literal

import orjson

from . import keys
from .connection import Redis
from .records import Command, Terminal

Kind = Literal["started", "stdout", "stderr", "exit"]
#: Bytes; a terminal's new size as ``rows columns``; no more bytes will come.
InputKind = Literal["bytes", "size", "end"]
#: Seconds for which a command is wanted after its caller was last heard of.
WANTED_S = 30
_KEEP_PIECES_S = 60
#: Pieces that may wait for the other side; whoever says more is held up at that point.
_MOST_PIECES = 200
_PAUSE_S = 0.05


class Commands:
    """Verbs on commands."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    # --- the caller's side ------------------------------------------------------------------------------------------

    async def submit(self, app: str, worker_id: str, command: Command) -> str:
        """Asks a worker to run it; returns the command's id. The caller then renews and reads."""
        command_id = uuid.uuid4().hex
        key = keys.command(app, command_id)
        await self._redis.command("HSET", key, "worker_id", worker_id, "command", orjson.dumps(command))
        await self.renew(app, worker_id, command_id)
        return command_id

    async def renew(self, app: str, worker_id: str, command_id: str) -> None:
        """Somebody still waits; a worker that has not heard of the command hears of it again."""
        await asyncio.gather(
            self._redis.command("EXPIRE", keys.command(app, command_id), WANTED_S),
            self._redis.command("PUBLISH", keys.channel_worker(worker_id), f"command {command_id}"),
        )

    async def read(self, app: str, command_id: str) -> list[tuple[Kind, bytes]]:
        """Output that has come, each piece once."""
        return await self._take_pieces(keys.command_output(app, command_id))

    async def say(self, app: str, worker_id: str, command_id: str, kind: InputKind, data: bytes = b"") -> None:
        """Something for the command to read; waits until it has taken what was said earlier. A lost reply says it
        twice."""
        key = keys.command_input(app, command_id)
        await self._append(app, command_id, key, kind, data)
        await asyncio.gather(
            self._redis.command("EXPIRE", key, _KEEP_PIECES_S),
            self._redis.command("PUBLISH", keys.channel_worker(worker_id), f"command {command_id}"),
        )

    async def forget(self, app: str, command_id: str) -> None:
        """Nobody waits any more."""
        pieces = keys.command_output(app, command_id), keys.command_input(app, command_id)
        await self._redis.command("DEL", keys.command(app, command_id), *pieces)

    # --- the worker's side ------------------------------------------------------------------------------------------

    async def take(self, app: str, worker_id: str, command_id: str) -> Command | None:
        """What it is, for the worker that was asked; None when it is not wanted any more."""
        asked, command = await self._redis.command("HMGET", keys.command(app, command_id), "worker_id", "command")
        return _command(orjson.loads(command)) if asked == worker_id.encode() else None

    async def heard(self, app: str, command_id: str) -> list[tuple[InputKind, bytes]]:
        """Input that has come, each piece once."""
        return await self._take_pieces(keys.command_input(app, command_id))

    async def wanted(self, app: str, command_id: str) -> bool:
        """Whether somebody waits for it."""
        return bool(await self._redis.command("EXISTS", keys.command(app, command_id)))

    async def write(self, app: str, command_id: str, kind: Kind, data: bytes) -> None:
        """A piece of output; waits until the caller has taken earlier ones. A lost reply writes it twice: rather that
        than losing it."""
        key = keys.command_output(app, command_id)
        await self._append(app, command_id, key, kind, data)
        await asyncio.gather(
            self._redis.command("EXPIRE", key, _KEEP_PIECES_S),
            self._redis.command("PUBLISH", keys.channel_command(command_id), kind),
        )

    # --- both ---------------------------------------------------------------------------------------------------------

    async def _append(self, app: str, command_id: str, key: str, kind: str, data: bytes) -> None:
        while await self._redis.command("XLEN", key) >= _MOST_PIECES and await self.wanted(app, command_id):
            await asyncio.sleep(_PAUSE_S)
        await self._redis.command("XADD", key, "*", "kind", kind, "data", data)

    async def _take_pieces(self, key: str) -> list[tuple[Any, bytes]]:
        reply = await self._redis.command("XRANGE", key, "-", "+", "COUNT", 100)
        if reply:
            await self._redis.command("XDEL", key, *(entry for entry, _ in reply))
        return [(fields[1].decode(), fields[3]) for _, fields in reply]


def _command(stored: dict[str, Any]) -> Command:
    terminal = stored["terminal"]
    return Command(tuple(stored["arguments"]), stored["takes_input"], Terminal(**terminal) if terminal else None)
