"""Load on one HTTP server: N keep-alive connections, each sending its next POST as soon as the last is answered.

Written on a bare asyncio protocol so that the client's own time stays small beside the servers'. Run as a process:
``python load.py URL --clients N --seconds S --body JSON`` prints one JSON object. Times in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from typing import cast
from urllib.parse import urlsplit

import uvloop

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_PATIENCE = 30.0


class BadAnswer(Exception):
    """The server answered with something that is no 200 with a Content-Length."""


class Caller(asyncio.Protocol):
    """One connection; repeats its request until told to stop."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request = request
        self._until = until
        self._buffer = b""
        self._wanted: int | None = None  # bytes of the answer that is coming in; None until its head is whole
        self._sent_at = 0.0
        self.latencies: list[float] = []
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not derive from it
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        try:
            whole = self._is_whole()
        except BadAnswer as error:
            self._fail(error)
            return
        if not whole:
            return
        now = time.perf_counter()
        self.latencies.append(now - self._sent_at)
        self._buffer, self._wanted = b"", None
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def _is_whole(self) -> bool:
        if self._wanted is None:
            end = self._buffer.find(_END_OF_HEAD)
            if end < 0:
                return False
            head = self._buffer[: end + 2].lower()
            start = head.find(_LENGTH)
            if b" 200 " not in head[:16] or start < 0:
                raise BadAnswer(self._buffer[:300].decode(errors="replace"))
            length = int(head[start + len(_LENGTH) : head.index(b"\r\n", start)])
            self._wanted = end + len(_END_OF_HEAD) + length
        return len(self._buffer) >= self._wanted

    def connection_lost(self, error: Exception | None) -> None:
        if not self.finished.done():
            if time.perf_counter() < self._until:
                self._fail(error or BadAnswer("the server closed the connection"))
            else:
                self.finished.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.finished.done():
            self.finished.set_exception(error)
        self._transport.close()


async def measure(url: str, clients: int, seconds: float, body: bytes) -> dict[str, float]:
    """Requests a second and latencies in milliseconds.

    Raises:
        BadAnswer: any answer other than a 200.
        TimeoutError: an answer did not come within half a minute.
        OSError: no connection.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    request = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()
    gc.disable()
    started = time.perf_counter()
    callers = []
    for _ in range(clients):
        _, caller = await loop.create_connection(
            lambda: Caller(request, started + seconds), parts.hostname, parts.port or 80
        )
        callers.append(caller)
    async with asyncio.timeout(seconds + _PATIENCE):
        await asyncio.gather(*(caller.finished for caller in callers))
    took = time.perf_counter() - started
    times = sorted(1000 * latency for caller in callers for latency in caller.latencies)
    return {
        "requests": len(times),
        "per_second": len(times) / took,
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[int(len(times) * 0.99)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--body", default='{"x":1}')
    options = parser.parse_args()
    print(json.dumps(uvloop.run(measure(options.url, options.clients, options.seconds, options.body.encode()))))


if __name__ == "__main__":
    main()
