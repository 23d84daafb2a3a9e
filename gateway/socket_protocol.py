"""uvicorn's websockets, bounded: messages limited in size, handshakes that cannot be read answered in one line.

Leaves what is said over a websocket to the app. Reading stops while the app takes nothing; see ``connection``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from . import wire

#: Seconds between pings, and for their answer: a caller who vanished is noticed, and proxies see traffic.
PING_SECONDS = 20.0
LOST = "keepwarm.lost"
_QUIET = logging.getLogger("gateway.websockets")
_QUIET.setLevel(logging.CRITICAL + 1)


class SocketProtocol(WebSocketsSansIOProtocol):
    """One caller's websocket. The app finds an event below ``LOST`` in its extensions, set when the caller has gone:
    the message that says so may stand behind others that it does not take."""

    async def run_asgi(self) -> None:
        self._lost = asyncio.Event()
        self.scope["extensions"][LOST] = self._lost  # type: ignore[assignment]
        await super().run_asgi()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._lost is not None:
            self._lost.set()

    _lost: asyncio.Event | None = None

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # else uvicorn writes an error into the log for each caller who is refused

    def keepalive_timeout(self) -> None:
        if self.read_paused:
            # The answer may lie unread behind messages that the app does not take: that is not the caller's fault.
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse()

    def _refuse(self) -> None:
        body = wire.error_body("This is not a websocket's handshake.", "bad_request")
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
            b"%d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()

    def handle_parser_exception(self) -> None:
        """Say why, and throw away what still comes until the caller has read it: to close at once would reset the
        connection under it."""
        if self.close_sent:
            return
        closing = self.conn.close_sent
        assert closing is not None
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closing.code, "reason": closing.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def send_receive_event_to_app(self) -> None:
        logger, self.logger = self.logger, _QUIET  # no traceback for each caller whose text is not UTF-8
        try:
            super().send_receive_event_to_app()
        finally:
            self.logger = logger
