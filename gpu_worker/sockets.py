"""One connection at the runner: what the app sends goes to the store, what its caller sends comes from there.

Bounded both ways: the runner sends no more than its window allows and gets no more than its app has taken. Leaves when
the attempt ends, and how, to ``serving``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from fal._runner.protocol import Cancel, Credit, Message, SocketAccept, SocketClose, SocketMessage, SocketTaken, Window

from gpu_worker.streams import StreamBroken
from scheduler.store import Lane, Store
from scheduler.store.errors import StoreError
from scheduler.store.pieces import pack_accept, unpack_close, unpack_messages
from scheduler.store.records import Claimed

#: Seconds between looks for input whose announcement was lost, and after a store that did not answer.
LOOK_SECONDS = 2.0
STORE_AWAY_SECONDS = 0.5
#: Seconds between looks whether the caller's gateway is there, and how many in a row must miss it.
GATEWAY_SECONDS = 5.0
GATEWAY_LOOKS = 3
#: Seconds that an app has to wind up a connection whose gateway has gone; then its code is cancelled.
LEAVE_SECONDS = 5.0
#: Seconds after which unread input is kept for longer, while the app takes nothing.
KEEP_SECONDS = 60.0

#: What the app answers that ended a connection well; nobody sees it but the request's record.
SWITCHED = 101


class Socket:
    """One attempt at serving a connection.

    Args:
        claim: the attempt. send: tells the runner.
    """

    def __init__(self, claim: Claimed, store: Store, send: Callable[[Message], None]) -> None:
        self._claim = claim
        self._store = store
        self._send = send
        self._from_app = Window()
        self._to_app = Window()
        self._more = asyncio.Event()  # input may be there, or the app has taken some
        self._left = False
        self._ending: tuple[int, str] | None = None
        self._duties: list[asyncio.Task[None]] = []
        requests, app, request_id = store.requests, claim.app, claim.request_id
        self._lane = Lane(
            partial(requests.append_output, claim), partial(requests.unread_output, app, request_id), self._stored
        )
        self._accepted: asyncio.Future[SocketAccept | None] = asyncio.get_running_loop().create_future()

    # --- from the runner ----------------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take what the app says.

        Raises:
            StreamBroken: more than the window allows; nothing would bound our memory.
        """
        kind = type(message)
        if kind is SocketMessage:
            assert isinstance(message, SocketMessage)
            if not self._from_app.open:
                raise StreamBroken("the runner sent more of a connection than it may")
            self._from_app.sent(message.data)
            self._lane.add(message.data)
        elif kind is SocketTaken:
            assert isinstance(message, SocketTaken)
            self._to_app.taken(message.messages)
            self._more.set()
        elif kind is SocketAccept:
            assert isinstance(message, SocketAccept)
            if not self._accepted.done():
                self._accepted.set_result(message)
        elif kind is SocketClose:
            assert isinstance(message, SocketClose)
            self._lane.close(message.code, message.reason)

    def _stored(self, messages: int) -> None:
        self._from_app.taken(messages)
        self._send(Credit(self._claim.request_id, messages))

    # --- from the platform --------------------------------------------------------------------------------------------

    def heard(self) -> None:
        """The caller has sent something."""
        self._more.set()

    def end(self, code: int, reason: str) -> None:
        """The platform ends the connection: its caller and the app hear it, the app as if the caller had left.

        One that is not open yet ends as soon as it is, as only then its caller can be told a code.
        """
        self._ending = self._ending or (code, reason)
        if self._accepted.done():
            self._lane.close(code, reason)
            self._leave(code, reason)

    def stop(self) -> None:
        """The attempt has ended; what the app sent before that still goes out."""
        if not self._accepted.done():
            self._accepted.set_result(None)
        self._lane.stop()

    async def run(self) -> None:
        """Serve the connection until it is closed or stopped."""
        accept = await self._accepted
        if accept is None:
            return
        try:
            decoded = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in accept.headers]
            head = pack_accept(accept.subprotocol, decoded)
            if await self._store.requests.append_output(self._claim, "accept", head) >= 0:
                self._duties += [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]
                if self._ending is not None:
                    self.end(*self._ending)
                await self._lane.run()
        except StoreError:
            self._leave(1006, "the platform's store is not available")
        finally:
            await self._hang_up()

    async def _hang_up(self) -> None:
        self._lane.stop()
        for duty in self._duties:
            duty.cancel()
        await asyncio.gather(*self._duties, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._store.connections.drop_input(self._claim.app, self._claim.request_id)

    # --- input --------------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        after = "0"
        while not self._left:
            self._more.clear()
            try:
                pieces = await self._store.connections.read_input(self._claim.app, self._claim.request_id, after)
            except StoreError:
                await asyncio.sleep(STORE_AWAY_SECONDS)
                continue
            for piece_id, kind, data in pieces:
                after = piece_id
                if kind == "close":
                    self._leave(*unpack_close(data))
                    return
                for message in unpack_messages(data):
                    await self._pass_on(message)
            if not pieces:
                await self._more_within(LOOK_SECONDS)

    async def _pass_on(self, data: str | bytes) -> None:
        claim = self._claim
        while not self._to_app.open:
            self._more.clear()
            if not await self._more_within(KEEP_SECONDS):
                with contextlib.suppress(StoreError):
                    await self._store.connections.keep_input(claim.app, claim.request_id)
        if not self._left:
            self._to_app.sent(data)
            self._send(SocketMessage(claim.request_id, claim.attempt, data))

    async def _watch(self) -> None:
        """A gateway that died took its callers along and could tell nobody."""
        gateway, missed = self._claim.gateway, 0
        while gateway is not None and missed < GATEWAY_LOOKS:
            await asyncio.sleep(GATEWAY_SECONDS)
            try:
                missed = 0 if await self._store.connections.gateway_listens(gateway) else missed + 1
            except StoreError:
                missed = 0
        if gateway is not None:
            self._leave(1006, "")
            await asyncio.sleep(LEAVE_SECONDS)
            self._send(Cancel(self._claim.request_id))

    async def _more_within(self, seconds: float) -> bool:
        # Not wait_for(): before Python 3.12 that swallows a cancellation which comes together with the news.
        try:
            async with asyncio.timeout(seconds):
                await self._more.wait()
        except TimeoutError:
            return False
        return True

    def _leave(self, code: int, reason: str) -> None:
        """The app hears no more of its caller."""
        if not self._left:
            self._left = True
            self._send(SocketClose(self._claim.request_id, self._claim.attempt, code, reason))
