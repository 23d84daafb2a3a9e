"""A small proxy between a store and its server that loses replies, drops connections or goes silent on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class FaultProxy:
    """Forwards bytes until told otherwise."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose_replies_to: bytes | None = None
        self.silent = False
        self.lost = 0
        self.writes: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection."""
        server_reader, server_writer = await asyncio.open_unix_connection(self._target)
        self._pairs.append((writer, server_writer))
        losing = asyncio.Event()
        for coroutine in (self._up(reader, server_writer, losing), self._down(server_reader, writer, losing)):
            task = asyncio.ensure_future(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                self.writes.append(data)
                if self.lose_replies_to is not None and self.lose_replies_to in data:
                    self.lose_replies_to = None
                    losing.set()
                if not self.silent:
                    writer.write(data)
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                if losing.is_set():
                    self.lost += 1
                    break
                if not self.silent:
                    writer.write(data)
        writer.close()

    def drop_all(self) -> None:
        """Cuts every connection there is."""
        for pair in self._pairs:
            for writer in pair:
                writer.close()
        self._pairs.clear()


@asynccontextmanager
async def fault_proxy(redis_url: str, folder: Path) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy in front of the server, and the URL to use instead."""
    proxy = FaultProxy(redis_url.removeprefix("unix://"))
    path = folder / "p.sock"
    server = await asyncio.start_unix_server(proxy.serve, str(path))
    try:
        yield proxy, f"unix://{path}"
    finally:
        server.close()
        proxy.drop_all()
        for task in list(proxy._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
