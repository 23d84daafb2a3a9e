"""uvicorn, bounded: heads limited in size and time, malformed HTTP answered in one line, one listening socket.

Leaves what is inside a request to the app; bodies are bounded in ``limits``.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from typing import Any

import uvicorn
from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from . import wire
from .addresses import takes_files
from .asgi import Message
from .certificate import Certificate, bounded_handshakes
from .settings import Settings
from .socket_protocol import PING_SECONDS, SocketProtocol

#: Tenths of a second between looks at the certificate's file.
_CERTIFICATE_TICKS = 10
#: Bytes a second that a body must bring on average.
_SLOWEST_BODY = 16 * 1024

_VERSIONS = frozenset({"1.0", "1.1"})
#: Headers of answers that change how the connection goes on.
_UNUSUAL = frozenset({b"connection", b"transfer-encoding", b"content-length"})


class _HeadTooLarge(Exception):
    """The request line and headers are over the limit."""


class _Corked:
    """Collects what is written to a transport until ``uncork``."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._closed = False

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def close(self) -> None:
        self._closed = True

    def uncork(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
        if self._closed:
            self._transport.close()


class _WholeAnswers(RequestResponseCycle):
    """Sends the head of an answer together with the first piece of its body: one system call instead of two, and
    callers wake up once. An app that wants its head to go ahead sends an empty piece after it."""

    _head: Message | None = None

    async def send(self, message: Message) -> None:  # type: ignore[override]
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = message
            return
        head, self._head = self._head, None
        if head is None:
            await super().send(message)  # type: ignore[arg-type]
            return
        if self._send_whole(head, message):
            return
        transport = self.transport
        corked = _Corked(transport)
        self.transport = corked  # type: ignore[assignment]
        try:
            await super().send(head)  # type: ignore[arg-type]
            await super().send(message)  # type: ignore[arg-type]
        finally:
            self.transport = transport
            corked.uncork()

    def _send_whole(self, head: Message, message: Message) -> bool:
        """The usual answer, of known length on a connection that stays open, without the detours for the others.

        False when it is not of that kind; nothing was sent then.
        """
        body: bytes = message.get("body", b"")
        status: int = head["status"]
        usual = self.keep_alive and not (message.get("more_body") or self.access_log or status in (204, 304))
        if not usual or self.disconnected or self.flow.write_paused or self.scope["method"] == "HEAD":
            return False
        parts = [STATUS_LINE[status]]
        length = b""
        for name, value in (*self.default_headers, *head["headers"]):
            if name == b"content-length" and not length:
                length = value
            elif name in _UNUSUAL or HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                return False
            parts += (name, b": ", value, b"\r\n")
        if length != b"%d" % len(body):
            return False
        parts += (b"\r\n", body)
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(b"".join(parts))
        self.message_event.set()
        self.on_response()
        return True


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on heads and on the time for bodies. Sizes in bytes, times in seconds.

    uvicorn itself waits for ever for the end of a head and takes hundreds of kilobytes of it.
    """

    max_head = 16 * 1024
    max_body_wire = 128 * 1024 * 1024  # framing included
    max_file_wire = 2048 * 1024 * 1024  # of a file, which is never held in memory
    head_timeout = 10.0
    body_timeout = 30.0

    _in_head = False
    _in_body = False
    _head_parsed = 0  # bytes of the head that the parser has handed out
    _wire = 0  # bytes received for the current part of the message, while that part did not end
    _timer: asyncio.TimerHandle | None = None  # armed while a head or a body is incomplete
    _body_began = 0.0
    _most_wire = max_body_wire
    _too_large = False
    _upgraded = False
    _idle_since = 0.0
    _idle_timer: asyncio.TimerHandle | None = None  # armed once for many requests

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_timeout, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self.transport.is_closing():
            return
        was_in_body = self._in_body
        super().data_received(data)
        if self._upgraded:
            return
        if not (self._in_head or self._in_body):
            if self._timer is not None:
                self._stop_timer()
            if not self._is_idle():
                return  # the usual request came in one piece and costs no timer
        if self._in_body:
            self._body_goes_on(len(data), was_in_body)
            return
        if self._in_head and not was_in_body:
            # A header that never ends is not handed out by the parser, so that it must be counted here.
            self._check_wire(len(data), self.max_head)
        if self._timer is None or was_in_body:
            self._stop_timer()
            self._timer = self.loop.call_later(self.head_timeout, self._head_too_slow)

    def _body_goes_on(self, size: int, was_in_body: bool) -> None:
        if not was_in_body:
            self._stop_timer()
            self._body_began = self.loop.time()
            self._timer = self.loop.call_later(self.body_timeout, self._body_too_slow)
            is_file = takes_files(self.scope["path"], self.headers)
            self._most_wire = self.max_file_wire if is_file else self.max_body_wire
        self._check_wire(size, self._most_wire)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_parsed = self._wire = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_parsed = parsed = self._head_parsed + len(name) + len(value) + 4
        if parsed > self.max_head:
            self._count_head(0)
        if not self._in_head:
            return  # trailers of a chunked body are counted and thrown away
        name = name.lower()
        if name == b"expect":
            super().on_header(name, value)
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in _VERSIONS:
            # The parser takes 0.9, whose answers have no head, and 2.0, which is another protocol.
            raise HttpParserError("neither HTTP/1.1 nor HTTP/1.0")
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            # uvicorn names its class in the middle of this method; its task has not begun to run yet.
            self.cycle.__class__ = _WholeAnswers
        self._in_head = False
        self._in_body = True
        self._wire = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False

    def on_response_complete(self) -> None:
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def _look_if_idle(self) -> None:
        self._idle_timer = None
        if not self._is_idle() or self._in_head or self._in_body or self.transport.is_closing():
            return  # the next answer arms it again; heads and bodies have bounds of their own
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._look_if_idle)
        else:
            self.transport.close()

    def _count_head(self, size: int) -> None:
        self._head_parsed += size
        if self._head_parsed > self.max_head:
            self._too_large = True
            raise _HeadTooLarge

    def _check_wire(self, size: int, limit: int) -> None:
        self._wire += size
        if self._wire > limit and not self.transport.is_closing():
            self._too_large = not self._in_body
            self.send_400_response("")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_too_slow(self) -> None:
        self._timer = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()

    def _body_too_slow(self) -> None:
        self._timer = None
        if self._in_body and not self.transport.is_closing():
            if self._wire < _SLOWEST_BODY * (self.loop.time() - self._body_began):
                self._refuse(400, "The body did not arrive in time.")
            else:
                self._timer = self.loop.call_later(self.body_timeout, self._body_too_slow)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for HTTP that it cannot read."""
        if self._too_large:
            self._refuse(431, f"The request line and headers are over the limit of {self.max_head} bytes.")
        else:
            self._refuse(400, "This is not valid HTTP/1.1.")

    def _refuse(self, status: int, detail: str) -> None:
        # In the middle of an answer there is no place for another.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_plain_answer(status, detail))
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        self._upgraded = True
        self._stop_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().handle_websocket_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """No line in the log for each caller that asks for an upgrade."""


def bounded_protocol(settings: Settings) -> type[BoundedProtocol]:
    """The protocol class with the bounds of ``settings``."""
    bounds = {
        "max_head": settings.max_header_bytes,
        "max_body_wire": 2 * settings.max_body_bytes + 65536,
        "max_file_wire": 2 * max(settings.max_object_bytes, settings.max_file_bytes) + 65536,
        "head_timeout": settings.header_timeout,
        "body_timeout": settings.body_timeout,
    }
    return type("BoundedProtocol", (BoundedProtocol,), bounds)


def _plain_answer(status: int, detail: str) -> bytes:
    body = wire.error_body(detail, "bad_request")
    return b"".join(
        (
            STATUS_LINE[status],
            b"content-type: application/json\r\nx-fal-error-type: bad_request\r\nx-fal-request-id: ",
            str(uuid.uuid4()).encode(),
            b"\r\naccess-control-allow-origin: *\r\nconnection: close\r\ncontent-length: ",
            b"%d\r\n\r\n" % len(body),
            body,
        )
    )


def listening_socket(settings: Settings) -> socket.socket:
    """The inherited socket, else a new one; ``SO_REUSEPORT`` lets several gateways share an address."""
    if settings.listen_fd is not None:
        return socket.socket(fileno=settings.listen_fd)
    family = socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if settings.bind_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((settings.bind_host, settings.bind_port))
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """uvicorn that tells the app when it begins to stop (the ASGI lifespan says so only when everything has ended) and
    goes on with a certificate that was renewed, without a restart."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None], handshake_timeout: float) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._handshake_timeout = handshake_timeout
        self._certificate = Certificate(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with bounded_handshakes(self._handshake_timeout):
            await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % _CERTIFICATE_TICKS == 0:
            self._certificate.look()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)


def server(app: Any, settings: Settings, on_stop: Callable[[], None]) -> Server:
    """A server for ``app``; run it with ``serve(sockets=[listening_socket(settings)])``."""
    return Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=bounded_protocol(settings),
            ws=SocketProtocol,
            ws_max_size=settings.max_message_bytes,
            # What apps and callers send is compressed already, and deflating it would hold up everybody else.
            ws_per_message_deflate=False,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            interface="asgi3",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            backlog=2048,
            timeout_keep_alive=int(settings.idle_timeout),
            timeout_graceful_shutdown=int(settings.stop_grace),
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        ),
        on_stop,
        settings.header_timeout,
    )
