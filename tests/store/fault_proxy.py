"""A small proxy between a store and its server: it loses replies, drops connections, goes silent, dawdles, stutters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class FaultProxy:
    """Forwards bytes until told otherwise.

    ``silent``: nothing arrives, and nobody hears of it (a blackhole). Bytes are held, never thrown away: TCP has no
    holes, and what a healed network delivers late may be written after its sender has given up.
    ``latency_s``: each way, for each piece that was read.
    ``piece_bytes``: most bytes of one write.
    ``bytes_per_s``: of each direction of each connection.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose_replies_to: bytes | None = None
        self.silent = False
        self.latency_s = 0.0
        self.piece_bytes = 0
        self.bytes_per_s = 0
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
                await self._pass_on(data, writer)
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                if losing.is_set():
                    self.lost += 1
                    break
                await self._pass_on(data, writer)
        writer.close()

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while self.silent:
            await asyncio.sleep(0.01)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        while data:
            size = self.piece_bytes or self.bytes_per_s // 20 or len(data)
            piece, data = data[:size], data[size:]
            writer.write(piece)
            await writer.drain()
            if self.bytes_per_s:
                await asyncio.sleep(len(piece) / self.bytes_per_s)

    def heal(self) -> None:
        """As a new proxy; what was lost stays so."""
        self.lose_replies_to = None
        self.silent = False
        self.latency_s = self.piece_bytes = self.bytes_per_s = 0

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
