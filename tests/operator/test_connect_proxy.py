"""Where ``keepwarm proxy`` sends connections, and what it says to what it does not understand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from keepwarm.connect_proxy import ConnectProxy


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says back what it hears, and that it was the one."""
    while block := await reader.read(1000):
        writer.write(b"echo " + block)
    writer.close()
    await writer.wait_closed()


def talk(story: Callable[[int, int], Awaitable[None]]) -> None:
    """Runs a story with the ports of a proxy and of the platform that it leads to."""

    async def run() -> None:
        serving: list[asyncio.Task[None]] = []
        platform = await asyncio.start_server(
            lambda reader, writer: serving.append(asyncio.create_task(echo(reader, writer))), "127.0.0.1", 0
        )
        port = platform.sockets[0].getsockname()[1]
        proxy = ConnectProxy(f"https://127.0.0.1:{port}")
        try:
            await story(await proxy.listen(0), port)
        finally:
            await proxy.close()
            await asyncio.gather(*serving)
            platform.close()

    asyncio.run(run())


async def send(port: int, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    return reader, writer


@pytest.mark.parametrize("host", ["fal.run", "queue.fal.run", "rest.fal.ai", "v3.fal.media", "FAL.RUN", "ws.fal.run"])
def test_fals_hosts_lead_to_the_platform(host: str) -> None:
    async def story(port: int, _platform: int) -> None:
        reader, writer = await send(port, f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        writer.write(b"hello")
        assert await reader.read(100) == b"echo hello"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    talk(story)


def test_other_hosts_are_reached_as_without_it() -> None:
    async def story(port: int, platform: int) -> None:
        proxy = ConnectProxy("https://127.0.0.1:1")
        assert proxy.target("example.com", 8443) == ("example.com", 8443)
        assert proxy.target("fal.run.example.com", 443) == ("fal.run.example.com", 443)
        reader, writer = await send(port, f"CONNECT localhost:{platform} HTTP/1.1\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    talk(story)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://fal.run/ HTTP/1.1\r\n\r\n", b"405"),
        (b"CONNECT fal.run HTTP/1.1\r\n\r\n", b"405"),
        (b"CONNECT \xff:443 HTTP/1.1\r\n\r\n", b"405"),
        (b"\x16\x03\x01 not HTTP\r\n\r\n", b"405"),
        (b"CONNECT x:443 HTTP/1.1\r\n" + b"a: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", b"502"),
    ],
)
def test_what_it_does_not_take_is_said(head: bytes, status: bytes) -> None:
    async def story(port: int, _platform: int) -> None:
        reader, writer = await send(port, head)
        assert (await reader.readline()).split()[1] == status
        writer.close()

    talk(story)


def test_a_caller_who_hangs_up_in_the_head_leaves_nothing() -> None:
    async def story(port: int, _platform: int) -> None:
        _, writer = await send(port, b"CONNECT fal.run:4")
        writer.close()
        await writer.wait_closed()
        reader, writer = await send(port, b"CONNECT fal.run:443 HTTP/1.1\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()

    talk(story)
