"""Environments as all processes see them: their state, their build log, and the builds that were asked for.

What an environment is and how it is built is envbuilder's.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from . import keys
from .connection import Arg, Redis
from .errors import NotFound
from .records import BuildRequest, EnvironmentRecord, EnvironmentState
from .scripts import SCRIPTS
from .subscriptions import Subscriber

_WEEK_S = 7 * 86400


class Environments:
    """Verbs on environments and build requests."""

    def __init__(self, redis: Redis, subscriber: Subscriber) -> None:
        self._redis = redis
        self._subscriber = subscriber

    async def get(self, key: str) -> EnvironmentRecord | None:
        """The environment's state, or None when nobody asked for it yet."""
        reply = await self._redis.command("HGETALL", keys.environment(key))
        if not reply:
            return None
        fields = {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}
        return EnvironmentRecord(
            key=key,
            state=EnvironmentState(fields["state"]),
            path=fields["path"] or None,
            error=fields["error"] or None,
            updated_at_ms=int(fields["updated_at"]),
            notes=orjson.loads(fields["notes"]),
        )

    async def put(self, record: EnvironmentRecord) -> None:
        """Stores the state, with Redis' time, and tells those who follow it."""
        rest: list[Arg] = ["state", record.state, "path", record.path or "", "error", record.error or ""]
        rest += ["notes", orjson.dumps(record.notes)]
        await SCRIPTS["put_environment"](self._redis, record.key, key=record.key, rest=rest)

    async def append_log(self, key: str, line: str) -> None:
        """Adds a line to the build log and tells those who follow it."""
        log = keys.environment_log(key)
        text = line[: 16 * 1024].encode("utf-8", "replace")
        await asyncio.gather(
            self._redis.command("XADD", log, "MAXLEN", "~", 20000, "*", "line", text),
            self._redis.command("EXPIRE", log, _WEEK_S),
            self._redis.command("PUBLISH", keys.channel_environment(key), "log"),
        )

    async def read_log(self, key: str, after: str = "0") -> list[tuple[str, str]]:
        """``(id, line)`` of at most 1000 lines of the build log after the id ``after``."""
        start = "-" if after == "0" else f"({after}"
        reply = await self._redis.command("XRANGE", keys.environment_log(key), start, "+", "COUNT", 1000)
        return [(entry.decode(), fields[1].decode()) for entry, fields in reply]

    async def clear_log(self, key: str) -> None:
        """Forgets the build log: a new build begins."""
        await self._redis.command("DEL", keys.environment_log(key))

    # --- builds asked for -----------------------------------------------------------------------------------------

    async def request_build(
        self,
        app: str,
        revision: str,
        *,
        ephemeral: bool = False,
        reset_scale: bool = False,
        recreate: bool = False,
    ) -> None:
        """Asks for the environment of a stored revision; the jobs service takes it from here.

        Asking for one revision again changes nothing while it waits.

        Raises:
            NotFound: no such revision. StoreUnavailable.
        """
        key = await self._redis.command("HGET", keys.revision(app, revision), "environment_key")
        if key is None:
            raise NotFound(f"{app} has no revision {revision}.")
        waiting = keys.environment_waiting(key.decode())
        options = orjson.dumps({"ephemeral": ephemeral, "reset_scale": reset_scale, "recreate": recreate})
        await asyncio.gather(
            self._redis.command("HSET", waiting, f"{app} {revision}", options),
            self._redis.command("EXPIRE", waiting, _WEEK_S),
        )
        await self._redis.command("XADD", keys.builds(), "*", "environment_key", key)
        await self._redis.command("PUBLISH", keys.channel_builds(), key)

    async def take_build_requests(self, block_s: float = 5.0) -> list[tuple[str, str]]:
        """``(ticket, environment key)`` of builds asked for, waiting up to ``block_s`` seconds for the first.

        They come again until ``ack_build_requests``: hand them on first, under the environment key, then acknowledge.
        """
        taken = await self._build_requests()
        if taken or block_s <= 0:
            return taken
        arrived = asyncio.Event()
        subscription = await self._subscriber.subscribe({keys.channel_builds(): lambda _: arrived.set()}, arrived.set)
        try:
            taken = await self._build_requests()
            if not taken:
                try:
                    await asyncio.wait_for(arrived.wait(), block_s)
                except TimeoutError:
                    return []
                taken = await self._build_requests()
            return taken
        finally:
            await subscription.close()

    async def _build_requests(self) -> list[tuple[str, str]]:
        reply = await self._redis.command("XRANGE", keys.builds(), "-", "+", "COUNT", 100)
        return [(ticket.decode(), fields[1].decode()) for ticket, fields in reply]

    async def ack_build_requests(self, tickets: list[str]) -> None:
        """These builds have been handed on."""
        if tickets:
            await self._redis.command("XDEL", keys.builds(), *tickets)

    async def waiting(self, key: str) -> list[BuildRequest]:
        """Revisions that wait for this environment."""
        reply = await self._redis.command("HGETALL", keys.environment_waiting(key))
        found = []
        for i in range(0, len(reply), 2):
            app, _, revision = reply[i].decode().partition(" ")
            options: dict[str, Any] = orjson.loads(reply[i + 1])
            choices = {name: bool(options.get(name)) for name in ("ephemeral", "reset_scale", "recreate")}
            found.append(BuildRequest(app, revision, key, **choices))
        return sorted(found, key=lambda request: (request.app, request.revision))

    async def settled(self, request: BuildRequest) -> None:
        """This revision waits no more: its alias was moved, or its build failed."""
        key = keys.environment_waiting(request.environment_key)
        await self._redis.command("HDEL", key, f"{request.app} {request.revision}")
