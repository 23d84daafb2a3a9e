"""One connection at the gateway: its caller's websocket on one side, the store's pieces on the other.

Nothing is read from the caller while the worker has not taken enough, and nothing from the store while the caller takes
nothing. Codes and reasons of a close pass through in both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from scheduler.store import Lane, Store
from scheduler.store.errors import StoreError, StoreFull
from scheduler.store.pieces import PieceKind, unpack_accept, unpack_close, unpack_messages
from scheduler.store.records import RequestRecord, RequestState

from . import answers
from .asgi import Headers, Message, Receive, Scope, Send
from .errors import CallerGone, Refusal
from .results import Waiter
from .settings import Settings
from .socket_protocol import LOST

log = structlog.get_logger("gateway.connection")

#: Seconds that an app has to wind up after its caller has left; then its code is cancelled.
LEAVE_SECONDS = 5.0
#: Bytes of a close frame's reason.
_MOST_REASON = 123
#: Codes that stand for "no close frame came" and must not be sent.
_NEVER_SENT = frozenset({1004, 1005, 1006, 1015})


class Connection:
    """One caller's connection.

    Args:
        waiter: of the request that it is; submitted right after this was made.
        cut_off: sees to its being cancelled once the store is back, and says what the caller hears meanwhile.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        waiter: Waiter,
        cut_off: Callable[[Waiter], Refusal],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._store = store
        self._cut_off = cut_off
        self._waiter = waiter
        self._receive = receive
        self._send = send
        self._write_timeout = settings.write_timeout
        self._accept_after = settings.accept_after
        self._lost: asyncio.Event = scope["extensions"][LOST]
        self._offers = bool(scope["subprotocols"])
        self._open = False  # for the caller
        self._accepted = False  # by the app
        self._closed = False
        self._late = False
        self._broken: tuple[int, str] | None = None
        self._sequence = 0
        self._lane = Lane(self._append, self._unread)
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve it until it is over.

        Raises:
            Refusal: before it was opened.
        """
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._listen()))
        early = loop.call_later(self._accept_after, self._hurry)
        try:
            await self._forward()
        except CallerGone:
            await self.cancel()
        except StoreError as error:
            self._waiter.cut_off = self._waiter.cut_off or str(error)
            await self._end(self._cut_off(self._waiter), 1011)
        finally:
            early.cancel()
            self._lane.stop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cancel(self) -> None:
        """Nobody is there any more: the app's code is told to stop."""
        try:
            await self._store.requests.cancel(
                self._waiter.app, self._waiter.request_id, error_type="client_disconnected"
            )
        except StoreError as error:
            log.warning("a connection was not cancelled", request_id=self._waiter.request_id, error=str(error))

    # --- from the caller ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Everything that the caller says, from before it may say anything until it leaves."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._left(message)
                return
            data = message.get("bytes")
            self._lane.add(message["text"] if data is None else data)
            if self._lane.full and not await self._room():
                self._left({"type": "websocket.disconnect", "code": 1005})
                return

    async def _room(self) -> bool:
        """Until the caller may say more; False when it has gone, which would only be heard behind what it has said."""
        room, lost = asyncio.ensure_future(self._lane.room()), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((room, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
            lost.cancel()
        return not self._lost.is_set()

    def _left(self, message: Message) -> None:
        code, reason = message.get("code", 1005), message.get("reason")
        if code == 1005 and reason is None:
            code = 1006  # uvicorn's word for a connection that broke without a close
        self._lane.close(code, reason or "")
        self._waiter.gone = True
        self._waiter.wake()

    async def _append(self, kind: PieceKind, data: bytes) -> int:
        self._sequence += 1
        waiter = self._waiter
        return await self._store.connections.append_input(waiter.app, waiter.request_id, self._sequence, kind, data)

    async def _unread(self) -> int:
        return await self._store.connections.unread_input(self._waiter.app, self._waiter.request_id)

    async def _feed(self) -> None:
        """Input on its way to the worker, once there is one."""
        try:
            await self._lane.run()
        except StoreFull:
            self._broken = 1013, "The platform's memory is full. Try again in a moment."
            self._look_again()
        except StoreError as error:
            self._waiter.cut_off = str(error)
            self._look_again()

    # --- from the app -------------------------------------------------------------------------------------------------

    async def _forward(self) -> None:
        waiter, after = self._waiter, "0"
        while not self._closed:
            ended = waiter.record is not None
            if not (waiter.cut_off and not ended):
                waiter.output = False
                pieces = await self._store.requests.read_output(waiter.app, waiter.request_id, after)
                for piece_id, kind, data in pieces:
                    after = piece_id
                    await self._pass_on(kind, data)
                if pieces:
                    continue
            if await self._over(ended):
                return
            if self._late:
                await self._open_early()
            await waiter.wait()

    def _hurry(self) -> None:
        self._late = True
        self._look_again()

    def _look_again(self) -> None:
        self._waiter.output = True
        self._waiter.wake()

    async def _pass_on(self, kind: str, data: bytes) -> None:
        if self._closed or self._waiter.gone:
            return
        if kind == "accept":
            self._accepted = True
            self._waiter.deadline = float("inf")
            await self._open_with(*unpack_accept(data))
            self._tasks.append(asyncio.get_running_loop().create_task(self._feed()))
        elif kind == "close":
            await self._close(*unpack_close(data))
        elif kind == "messages":
            for message in unpack_messages(data):
                name = "text" if isinstance(message, str) else "bytes"
                await self._say({"type": "websocket.send", name: message})

    async def _open_with(self, subprotocol: str | None, headers: tuple[tuple[str, str], ...]) -> None:
        if self._open:
            return
        self._open = True
        own: Headers = [(b"x-fal-request-id", self._waiter.request_id.encode("ascii"))]
        passed = [pair for pair in answers.passed_headers(headers, 101) if not pair[0].startswith(b"sec-websocket-")]
        await self._say({"type": "websocket.accept", "subprotocol": subprotocol, "headers": passed + own})

    async def _open_early(self) -> None:
        """Clients give up a handshake that takes long, and an app may have to start first. One who offers subprotocols
        must wait, as only the app can choose."""
        if not self._open and not self._offers and not self._waiter.gone:
            await self._open_with(None, ())

    async def _say(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._send(message)
        except TimeoutError:
            raise CallerGone from None
        except (OSError, RuntimeError):
            # uvicorn: the caller has left, or did not answer a ping and was cut off. The reader hears of it.
            await asyncio.sleep(0)

    async def _close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            code = 1000 if code in _NEVER_SENT or not 1000 <= code <= 4999 else code
            text = reason.encode("utf-8", "replace")[:_MOST_REASON].decode("utf-8", "ignore")
            await self._say({"type": "websocket.close", "code": code, "reason": text})

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _over(self, ended: bool) -> bool:
        """Whether there is nothing more to wait for; says so to the caller."""
        waiter = self._waiter
        if ended and waiter.record is not None:
            await self._say_why(waiter.record)
        elif waiter.gone:
            await self._wind_up()
        elif self._broken is not None:
            await self.cancel()
            await self._close(*self._broken)
        elif waiter.lost:
            await self._end(Refusal(404, "The app was deleted.", "client_cancelled"), 1001)
        elif waiter.expired:
            await self.cancel()
            await self._end(Refusal(504, "The app did not take the connection in time.", "request_timeout"), 1013)
        elif waiter.cut_off:
            await self._end(self._cut_off(waiter), 1011)
        else:
            return False
        return True

    async def _say_why(self, record: RequestRecord) -> None:
        """The request has ended and the app had not closed the connection."""
        status, headers, body = answers.final(record)
        if not self._open:
            headers.append((b"x-fal-request-id", record.request_id.encode("ascii")))
            await self._say({"type": "websocket.http.response.start", "status": status, "headers": headers})
            await self._say({"type": "websocket.http.response.body", "body": body})
            self._closed = True
            return
        error_type = record.error_type or (record.outcome.error_type if record.outcome else None)
        if record.state is RequestState.CANCELLED:
            await self._close(1001, "The connection was cancelled.")
        else:
            await self._close(1011, f"{error_type or status}: {answers.detail(body)}")

    async def _end(self, refusal: Refusal, code: int) -> None:
        if not self._open:
            raise refusal
        await self._close(code, refusal.detail)

    async def _wind_up(self) -> None:
        """The caller has left: the app hears so and gets a moment for what it has to put away."""
        waiter = self._waiter
        if self._accepted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await waiter.until(lambda: waiter.record is not None or waiter.lost)
        if waiter.record is None:
            await self.cancel()
