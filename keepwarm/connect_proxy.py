"""``keepwarm proxy``: a CONNECT proxy on loopback that sends connections for fal's hosts to the platform.

Reads nothing of what it carries: clients speak TLS with the platform, which has certificates for those names. Other
hosts are reached as if there were no proxy, so that a whole shell can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from gateway.addresses import HOSTS

#: Seconds for the caller to say where to, and for the other side to be reached.
PATIENCE = 10.0
_MOST_HEAD = 8192
_BLOCK = 65536
_CONNECT = re.compile(rb"CONNECT (?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5}) HTTP/1\.[01]")


class ConnectProxy:
    """One listening proxy.

    Args:
        platform_url: where connections for fal's hosts end.
    """

    def __init__(self, platform_url: str) -> None:
        parts = urlsplit(platform_url)
        self._platform = (parts.hostname or "127.0.0.1", parts.port or 443)
        self._tunnels: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> int:
        """Listen on loopback; returns the port.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_MOST_HEAD)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and cut off what is being carried."""
        if self._server is not None:
            self._server.close()
        for tunnel in self._tunnels:
            tunnel.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)

    def target(self, host: str, port: int) -> tuple[str, int]:
        """Where a connection for ``host`` goes."""
        return self._platform if host.lower().encode("ascii") in HOSTS else (host, port)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnel = asyncio.get_running_loop().create_task(self._carry_all(reader, writer))
        self._tunnels.add(tunnel)
        tunnel.add_done_callback(self._tunnels.discard)

    async def _carry_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with _closing(writer):
                await self._tunnel(reader, writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return await _refuse(writer, b"431 Request Header Fields Too Large", b"The head is too long.")
        match = _CONNECT.match(head)
        if match is None:
            return await _refuse(writer, b"405 Method Not Allowed", b"This proxy takes CONNECT (https) only.")
        address = self.target((match[1] or match[2]).decode("ascii"), min(int(match[3]), 65535))
        try:
            async with asyncio.timeout(PATIENCE):
                far_reader, far_writer = await asyncio.open_connection(*address)
        except (OSError, TimeoutError) as error:
            said = f"{address[0]}:{address[1]} cannot be reached: {error}".encode("ascii", "replace")
            return await _refuse(writer, b"502 Bad Gateway", said)
        async with _closing(far_writer):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            # A side that takes nothing more may still have said something: each direction has its own end.
            await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer), return_exceptions=True)


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, until its sender has said everything."""
    while block := await reader.read(_BLOCK):
        writer.write(block)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _refuse(writer: asyncio.StreamWriter, status: bytes, detail: bytes) -> None:
    length = b"content-length: %d\r\n" % len(detail)
    writer.write(b"HTTP/1.1 " + status + b"\r\n" + length + b"content-type: text/plain\r\n\r\n" + detail)
    await writer.drain()


async def _serve_until_signal(platform_url: str, port: int) -> None:
    leave = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    proxy = ConnectProxy(platform_url)
    print(f"HTTPS_PROXY=http://127.0.0.1:{await proxy.listen(port)}", flush=True)
    await leave.wait()
    await proxy.close()


def run(platform_url: str, port: int) -> int:
    """Serve until Ctrl-C; returns the exit status."""
    try:
        asyncio.run(_serve_until_signal(platform_url, port))
    except OSError as error:
        print(f"keepwarm proxy: cannot listen on 127.0.0.1:{port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
