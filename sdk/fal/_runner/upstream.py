"""One HTTP/1.1 request to the web server of a function, on a connection of its own over loopback.

Standard library only: the user's environment need not have an HTTP client. Leaves what callers see to ``port_proxy``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

from fal._runner.protocol import Headers

#: Bytes of the head of an answer.
MOST_HEAD_BYTES = 256 * 1024
#: Bytes of a body that are passed on in one piece.
PIECE_BYTES = 256 * 1024
#: Seconds for the server to take a connection.
CONNECT_SECONDS = 10.0
_HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"te", b"trailer", b"upgrade",
        b"content-length", b"expect",
    }
)  # fmt: skip
_BODILESS = frozenset({204, 304})


class NotListening(OSError):
    """Nothing takes connections on the port."""


class BadAnswer(Exception):
    """What came back is no HTTP, or ended in the middle; the message is a clause about the server."""


@dataclass
class Answer:
    """Head of an answer; its body is still to come. ``length``: bytes of it, None where only its end will tell."""

    status: int
    headers: Headers
    length: int | None
    chunked: bool


class Upstream:
    """One connection.

    Args:
        host, port: where the server listens.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def reader(self) -> asyncio.StreamReader:
        """What the server says."""
        assert self._reader is not None
        return self._reader

    @property
    def writer(self) -> asyncio.StreamWriter:
        """What it is told."""
        assert self._writer is not None
        return self._writer

    async def connect(self) -> None:
        """Open the connection.

        Raises:
            NotListening: nobody takes it.
        """
        try:
            opening = asyncio.open_connection(self._host, self._port, limit=MOST_HEAD_BYTES)
            self._reader, self._writer = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise NotListening(str(error) or f"none within {CONNECT_SECONDS:g} s") from error

    def close(self) -> None:
        """Close it at once; a server that is still working sees that nobody waits."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def request(
        self, method: str, path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """Send a whole request."""
        own = [(b"connection", b"close")]
        if body or method in ("POST", "PUT", "PATCH"):
            own.append((b"content-length", b"%d" % len(body)))
        self.writer.write(head_of(method, path, query, [*passed(headers), *own]))
        self.writer.write(body)
        with suppress(ConnectionError):  # it may have answered without reading all of it
            await self.writer.drain()

    async def answer(self, method: str) -> Answer:
        """The head of the answer; those of status 1xx are passed over.

        Raises:
            BadAnswer.
        """
        while True:
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                what = "in the middle of its answer" if error.partial else "without an answer"
                raise BadAnswer(f"closed the connection {what}") from None
            except asyncio.LimitOverrunError:
                raise BadAnswer(f"sent headers of more than {MOST_HEAD_BYTES >> 10} KiB") from None
            except ConnectionError:
                raise BadAnswer("closed the connection without an answer") from None
            answer = _parsed(head)
            if answer.status == 101 or answer.status >= 200:
                break
        if method == "HEAD" or answer.status in _BODILESS:
            answer.length, answer.chunked = 0, False
        return answer

    async def body(self, answer: Answer) -> AsyncIterator[bytes]:
        """The pieces of the body as they come.

        Raises:
            BadAnswer: it ended before its end.
        """
        try:
            if answer.chunked:
                async for piece in self._chunks():
                    yield piece
            elif answer.length is None:
                while piece := await self.reader.read(PIECE_BYTES):
                    yield piece
            else:
                left = answer.length
                while left:
                    piece = await self.reader.read(min(left, PIECE_BYTES))
                    if not piece:
                        raise BadAnswer("closed the connection in the middle of its answer")
                    left -= len(piece)
                    yield piece
        except (asyncio.IncompleteReadError, ConnectionError):
            raise BadAnswer("closed the connection in the middle of its answer") from None
        except (ValueError, asyncio.LimitOverrunError):
            raise BadAnswer("sent a body that is no HTTP") from None

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await self.reader.readuntil(b"\r\n")
            left = int(line.partition(b";")[0].strip(), 16)
            if left < 0:
                raise ValueError(left)
            if left == 0:
                while await self.reader.readuntil(b"\r\n") != b"\r\n":
                    pass  # trailers, which no caller of an app ever sees
                return
            while left:
                piece = await self.reader.read(min(left, PIECE_BYTES))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(piece)
                yield piece
            await self.reader.readexactly(2)


def passed(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers of either side that the other may see."""
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


def head_of(method: str, path: str, query: bytes, headers: Headers) -> bytes:
    """A request's head."""
    target = quote(path, safe="/:@!$&'()*+,;=~") + (f"?{quote(query, safe='/:@!$&()*+,;=~?%[]|')}" if query else "")
    lines = [f"{method} {target} HTTP/1.1".encode("ascii")]
    # Whatever a caller managed to send must not become a request of its own.
    lines += [
        b"%b: %b" % pair for pair in headers if not any(c in part for part in pair for c in (b"\r", b"\n", b"\0"))
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _parsed(head: bytes) -> Answer:
    first, *lines = head[:-4].split(b"\r\n")
    version, _, rest = first.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit() or rest[3:4] not in (b"", b" "):
        raise BadAnswer("does not speak HTTP/1.1")
    headers: Headers = []
    length: int | None = None
    chunked = False
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.strip().lower(), value.strip()
        if not colon or not name:
            raise BadAnswer("sent a header that is no HTTP")
        if name == b"content-length":
            if not value.isdigit():
                raise BadAnswer("sent a Content-Length that is no number")
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = value.lower().endswith(b"chunked")
        headers.append((name, value))
    return Answer(int(status), headers, None if chunked else length, chunked)
