"""A real HTTP server on loopback that misbehaves on request, and remembers what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class Received:
    """One request as it came over the wire; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Behaves by the path that is called: ``/500``, ``/410``, ``/301``, ``/silent``, ``/huge``, ``/drip``."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    sent_bytes: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(await self._read(reader), writer)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _read(self, reader: asyncio.StreamReader) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (item.split(": ", 1) for item in rest)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        received = Received(line.split(" ")[1], headers, body)
        self.received.append(received)
        return received

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        kind = request.path.split("?")[0]
        if kind == "/silent":
            await asyncio.Event().wait()
        if kind == "/301":
            await self._send(writer, f"HTTP/1.1 301 Moved\r\nLocation: {self.url('/200')}\r\nContent-Length: 0\r\n\r\n")
        elif kind == "/huge":
            await self._send(writer, "HTTP/1.1 500 Oops\r\nContent-Length: 1000000000\r\n\r\n")
            for _ in range(1000):
                await self._send(writer, "x" * 65536)
        elif kind == "/drip":
            await self._send(writer, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx")
            await asyncio.Event().wait()
        elif kind == "/500":
            await self._send(writer, "HTTP/1.1 500 Oops\r\nContent-Length: 13\r\n\r\nout of order\n")
        elif kind == "/410":
            await self._send(writer, "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
        else:
            await self._send(writer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def _send(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(text.encode())
        self.sent_bytes += len(text)
        await writer.drain()


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens until the block ends."""
    found = Receiver()
    server = await asyncio.start_server(found._serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in list(found._tasks):
            task.cancel()
        await asyncio.gather(*found._tasks, return_exceptions=True)
