"""What apps print: one stream per app, and one per request for those who wait on it. Old lines are forgotten.

A line may appear twice when the reply to its append was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from . import keys
from .connection import Redis
from .records import LogEntry
from .scripts import SCRIPTS

#: Longest message kept, in characters.
MAX_MESSAGE = 16 * 1024


class Logs:
    """Verbs on logs."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append(self, app: str, entries: Sequence[LogEntry]) -> None:
        """Adds lines (their ``id`` is given here) in order, in one write."""
        await asyncio.gather(
            *(
                SCRIPTS["append_log"](
                    self._redis,
                    app,
                    at=entry.at,
                    level=entry.level,
                    message=_bounded(entry.message),
                    worker_id=entry.worker_id or "",
                    request_id=entry.request_id or "",
                )
                for entry in entries
            )
        )

    async def read(
        self,
        app: str,
        after: str = "0",
        limit: int = 1000,
        request_id: str | None = None,
        worker_id: str | None = None,
    ) -> list[LogEntry]:
        """Lines after the id ``after``, oldest first; of one request or one worker, or of the whole app.

        With ``worker_id``, at most ``limit`` lines are looked at and those of the worker returned.
        """
        key = keys.request_logs(app, request_id) if request_id else keys.logs(app)
        start = "-" if after == "0" else f"({after}"
        entries = [_entry(item) for item in await self._redis.command("XRANGE", key, start, "+", "COUNT", limit)]
        return [entry for entry in entries if worker_id is None or entry.worker_id == worker_id]

    async def tail(self, app: str, limit: int) -> list[LogEntry]:
        """The app's last ``limit`` lines, oldest first."""
        reply = await self._redis.command("XREVRANGE", keys.logs(app), "+", "-", "COUNT", limit)
        return [_entry(item) for item in reversed(reply)]


def _bounded(message: str) -> str:
    text = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "… (cut)"
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored


def _entry(item: tuple[bytes, list[bytes]]) -> LogEntry:
    entry_id, flat = item
    fields = {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}
    return LogEntry(
        id=entry_id.decode(),
        at=float(fields["at"]),
        level=fields["level"],
        message=fields["message"],
        worker_id=fields["worker_id"] or None,
        request_id=fields["request_id"] or None,
    )
