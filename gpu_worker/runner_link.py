"""The socket to the runner as a stream of messages: frames in and out, bounded, nothing interpreted.

An ``asyncio.Protocol``, because readers and writers of asyncio.streams cost several times as much per message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from fal._runner.protocol import FrameBuffer, Message, ProtocolError, encode

from gpu_worker.runner_process import RunnerProcess


class RunnerLink(asyncio.Protocol):
    """Messages to and from one runner.

    Args:
        receive: called with each message, in order, on the event loop; must not block or raise.
        lost: called once when nothing more will come, with the reason, or None for a plain end of file.
    """

    def __init__(self, receive: Callable[[Message], None], lost: Callable[[str | None], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._frames = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self._complaint: str | None = None

    @classmethod
    async def connect(
        cls, runner: RunnerProcess, receive: Callable[[Message], None], lost: Callable[[str | None], None]
    ) -> RunnerLink:
        """Attach to a started runner's socket."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(receive, lost), sock=runner.control)
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._receive(message)
        except ProtocolError as error:
            # Nothing after an unreadable frame can be trusted, and a flood must not go on being buffered.
            self._complaint = str(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost(self._complaint)

    def send(self, message: Message) -> None:
        """Send ``message``; silently dropped once the runner is gone (``lost`` has said so).

        Raises:
            ProtocolError: the message is larger than a frame may be.
        """
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        """Stop listening and talking; safe to call twice."""
        if self._transport is not None:
            self._transport.abort()
