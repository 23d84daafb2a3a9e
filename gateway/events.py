"""Server-sent events: one sender with signs of life, back-pressure and an ear for the caller's hanging up.

Leaves what is sent to the modules that have something to tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.responses import Response

from . import wire
from .asgi import Headers, Receive, Scope, Send, start, until_hang_up
from .errors import CallerGone
from .limits import Limits

#: Clients take half a minute without a byte for a broken connection.
SIGN_OF_LIFE_SECONDS = 5.0

_HEAD: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Events:
    """One caller's stream of events, given to the function that tells the story.

    Args:
        stall: seconds for which the caller may take nothing before it counts as gone.
    """

    def __init__(self, receive: Receive, send: Send, stall: float) -> None:
        self._receive = receive
        self._send = send
        self._stall = stall
        self._news = asyncio.Event()
        self._last_sent = time.monotonic()
        self.gone = False
        self.stopping = False

    async def send(self, event: bytes) -> None:
        """One event or comment, as it goes on the wire.

        Raises:
            CallerGone: the caller takes nothing any more.
        """
        self._last_sent = time.monotonic()
        try:
            async with asyncio.timeout(self._stall):
                await self._send({"type": "http.response.body", "body": event, "more_body": True})
        except TimeoutError:
            self.gone = True
            raise CallerGone from None

    def note(self, _payload: bytes = b"") -> None:
        """There may be news; fits as the callback of a subscription."""
        self._news.set()

    async def wait(self, at_most: float) -> bool:
        """Until news, or for ``at_most`` seconds, because notes can be lost. False when the story must end: the caller
        has hung up (``gone``) or this gateway stops."""
        try:
            async with asyncio.timeout(at_most):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        if not self.gone and time.monotonic() - self._last_sent > SIGN_OF_LIFE_SECONDS:
            await self.send(wire.KEEP_ALIVE)
        return not (self.gone or self.stopping)

    async def listen(self) -> None:
        """Notices the hang-up; runs beside the story."""
        await until_hang_up(self._receive)
        self.gone = True
        self._news.set()


Story = Callable[[Events], Awaitable[None]]


class EventStreams:
    """All event streams of one gateway process.

    Args:
        stall: seconds for which a caller may take nothing before it counts as gone.
    """

    def __init__(self, limits: Limits, stall: float) -> None:
        self._limits = limits
        self._stall = stall
        self._open: set[Events] = set()
        self._stopping = False

    async def tell(self, story: Story, receive: Receive, send: Send, extra: Headers) -> None:
        """Answer with the events of ``story`` until it returns.

        Raises:
            Refusal: 503 when too many callers wait already; nothing was sent then.
            CallerGone: the caller takes nothing any more.
        """
        self._limits.enter()
        events = Events(receive, send, self._stall)
        events.stopping = self._stopping
        self._open.add(events)
        listening = asyncio.get_running_loop().create_task(events.listen())
        try:
            await start(send, 200, [*_HEAD, *extra])
            await story(events)
            await send({"type": "http.response.body", "body": b""})
        finally:
            listening.cancel()
            self._open.discard(events)
            self._limits.leave()

    def answer(self, story: Story) -> Response:
        """A story as the answer of a Starlette route."""
        return _EventResponse(story, self)

    def stop(self) -> None:
        """Ends every stream at its next pause: callers come back to a gateway that stays."""
        self._stopping = True
        for events in self._open:
            events.stopping = True
            events.note()


class _EventResponse(Response):
    def __init__(self, story: Story, streams: EventStreams) -> None:
        super().__init__(None, 200)
        self._story = story
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._streams.tell(self._story, receive, send, [])
