"""A real HTTP server on loopback that misbehaves on request, and remembers what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

_ANSWERS = {
    "/500": "HTTP/1.1 500 Oops\r\nContent-Length: 13\r\n\r\nout of order\n",
    "/410": "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
    "/429": "HTTP/1.1 429 Slow Down\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n",
    "/429-date": "HTTP/1.1 429 Slow Down\r\nRetry-After: Fri, 01 Jan 2100 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
    "/429-soon": "HTTP/1.1 429 Slow Down\r\nRetry-After: soon\r\nContent-Length: 0\r\n\r\n",
    "/cut-off": "HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf of it",
    "/no-http": "220 mail.example ESMTP\r\n",
}


@dataclass
class Received:
    """One request as it came over the wire; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Behaves by the path that is called, see ``_ANSWERS`` and ``_answer``; ``/200`` and anything unknown is fine.

    ``healthy``: while False, every path answers 500. ``before_answer``: what happens first when a call has come in.
    """

    scheme: str = "http"
    port: int = 0
    received: list[Received] = field(default_factory=list)
    sent_bytes: int = 0
    healthy: bool = True
    before_answer: Callable[[], Awaitable[object]] | None = None
    answered: int = 0
    at_once: int = 0
    most_at_once: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                request = await self._read(reader)
                if self.before_answer is not None:
                    await self.before_answer()
                await self._answer(request, writer)
                self.answered += 1
        finally:
            self.at_once -= 1
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
        kind = request.path.split("?")[0] if self.healthy else "/500"
        if kind == "/silent":
            await asyncio.Event().wait()
        elif kind == "/301":
            await self._send(writer, f"HTTP/1.1 301 Moved\r\nLocation: {self.url('/200')}\r\nContent-Length: 0\r\n\r\n")
        elif kind == "/huge":
            await self._send(writer, "HTTP/1.1 500 Oops\r\nContent-Length: 1000000000\r\n\r\n")
            for _ in range(1000):
                await self._send(writer, "x" * 65536)
        elif kind == "/bomb":
            bomb = gzip.compress(bytes(50_000_000))
            head = f"HTTP/1.1 500 Oops\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
            await self._send(writer, head)
            writer.write(bomb)
        elif kind == "/drip":
            await self._send(writer, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx")
            await asyncio.Event().wait()
        elif kind == "/slow":
            for letter in "HTTP/1.1 200 OK\r\nX-Slow: " + "z" * 10_000:
                await self._send(writer, letter)
                await asyncio.sleep(0.02)
        else:
            await self._send(writer, _ANSWERS.get(kind, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))

    async def _send(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(text.encode())
        self.sent_bytes += len(text)
        await writer.drain()


@contextlib.asynccontextmanager
async def receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver that listens until the block ends."""
    found = Receiver(scheme="http" if tls is None else "https")
    server = await asyncio.start_server(found._serve, "127.0.0.1", 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in list(found._tasks):
            task.cancel()
        await asyncio.gather(*found._tasks, return_exceptions=True)
