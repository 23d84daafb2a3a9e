"""One websocket to the web server of a function: the client's side of RFC 6455 over an ``Upstream``.

Standard library only. No extensions are offered, so that frames are plain. Leaves what callers see to ``port_proxy``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from collections.abc import Iterable

from fal._runner.protocol import MAX_MESSAGE_BYTES, Headers
from fal._runner.upstream import Answer, BadAnswer, Upstream, head_of, passed

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
#: Codes that no frame may carry; they stand for an end without one.
_NOT_SENT = frozenset({1005, 1006, 1015})
_OWN_HEADERS = (b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-accept")


class Closed(Exception):
    """The server has closed the connection, with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class UpstreamSocket:
    """One websocket.

    Args:
        upstream: a connection that was opened for it.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def open(self, path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Answer:
        """Ask for the upgrade; with another status than 101 the answer is an ordinary one, whose body is to come.

        Raises:
            BadAnswer: what came back is no answer to a handshake.
        """
        key = base64.b64encode(os.urandom(16))
        own = [
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-key", key),
            (b"sec-websocket-version", b"13"),
        ]
        theirs = [pair for pair in passed(headers) if pair[0].lower() not in _OWN_HEADERS]
        self._upstream.writer.write(head_of("GET", path, query, [*theirs, *own]))
        answer = await self._upstream.answer("GET")
        if answer.status == 101:
            wanted = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
            if _of(answer.headers, b"sec-websocket-accept") != wanted:
                raise BadAnswer("did not accept the websocket's key")
        return answer

    async def receive(self) -> str | bytes:
        """The next message; pings are answered on the way.

        Raises:
            Closed: no more will come.
        """
        kind, parts, size = 0, [], 0
        while True:
            final, opcode, data = await self._frame()
            if opcode == _PING:
                self._write(_PONG, data)
            elif opcode == _CLOSE:
                raise Closed(*_close_of(data))
            elif opcode in (_TEXT, _BINARY, _CONTINUATION):
                if (opcode == _CONTINUATION) == (kind == 0):
                    raise Closed(1002, "the app's web server sent frames out of order")
                kind = opcode or kind
                parts.append(data)
                size += len(data)
                if size > MAX_MESSAGE_BYTES:
                    raise Closed(1009, f"a message of the app is over {MAX_MESSAGE_BYTES >> 20} MiB")
                if final:
                    whole = b"".join(parts)
                    return whole.decode("utf-8", "replace") if kind == _TEXT else whole
            elif opcode != _PONG:
                raise Closed(1002, "the app's web server sent a frame of an unknown kind")

    async def send(self, data: str | bytes) -> None:
        """Send a message, and wait while the server takes nothing."""
        if isinstance(data, str):
            self._write(_TEXT, data.encode("utf-8", "replace"))
        else:
            self._write(_BINARY, data)
        await self._upstream.writer.drain()

    def close(self, code: int, reason: str) -> None:
        """Say that no more will come; the connection itself stays until it is closed."""
        data = b"" if code in _NOT_SENT else struct.pack(">H", code) + reason.encode()[:123]
        self._write(_CLOSE, data)

    async def _frame(self) -> tuple[bool, int, bytes]:
        reader = self._upstream.reader
        try:
            first, second = await reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", await reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", await reader.readexactly(8))
            if size > MAX_MESSAGE_BYTES:
                raise Closed(1009, f"a message of the app is over {MAX_MESSAGE_BYTES >> 20} MiB")
            mask = await reader.readexactly(4) if second & 0x80 else b""
            data = await reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Closed(1011, "the app's web server closed the connection without a reason") from None
        return bool(first & 0x80), first & 0x0F, _masked(data, mask) if mask else data

    def _write(self, opcode: int, data: bytes) -> None:
        size = len(data)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 1 << 16:
            head += struct.pack(">BH", 0x80 | 126, size)
        else:
            head += struct.pack(">BQ", 0x80 | 127, size)
        mask = os.urandom(4)
        self._upstream.writer.write(head + mask + _masked(data, mask))


def answered_headers(answer: Answer) -> tuple[str | None, Headers]:
    """Of an upgrade: the subprotocol that was chosen, and the headers that are not the handshake's own."""
    chosen = _of(answer.headers, b"sec-websocket-protocol")
    own = (*_OWN_HEADERS, b"sec-websocket-protocol")
    headers = [pair for pair in passed(answer.headers) if pair[0] not in own]
    return (chosen.decode("latin-1") if chosen is not None else None), headers


def _of(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def _close_of(data: bytes) -> tuple[int, str]:
    if len(data) < 2:
        return 1000, ""
    return struct.unpack(">H", data[:2])[0], data[2:].decode("utf-8", "replace")


def _masked(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
