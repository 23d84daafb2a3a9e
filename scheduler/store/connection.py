"""One connection to Redis for a whole process: what is sent in one turn of the event loop travels as one write.

Owns the socket, time-outs, reconnecting with full jitter, resending after a lost reply and the mapping of Redis'
refusals to our errors. Resending is safe because every verb of ours is idempotent by request, attempt or token.
Knows nothing of keys or records.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from .errors import (
    IdempotencyConflict,
    NotFound,
    QueueFull,
    StaleLeader,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

Arg = str | bytes | int | float
#: Seconds without any answer after which a connection with commands under way counts as dead.
REPLY_TIMEOUT = 5.0
#: Seconds that a call waits for a connection to come back before it gives up.
PATIENCE = 10.0
_MORE = object()
#: Refusals by our own scripts.
_OURS: dict[str, type[StoreError]] = {
    "STALE": StaleLeader,
    "CONFLICT": IdempotencyConflict,
    "NOTFOUND": NotFound,
    "QUEUEFULL": QueueFull,
}
#: Refusals that pass by themselves: the server is starting, saving, failing over or its disk is full.
_PASSING = ("LOADING", "BUSY ", "TRYAGAIN", "MASTERDOWN")


class ConnectionLost(Exception):
    """The connection ended before the reply came; whether the command ran is unknown."""


class Address:
    """Where Redis is: ``unix:///path[?db=N&password=P]`` or ``redis[s]://[[user]:password@]host[:port][/db]``.

    Raises:
        ValueError: the URL has another form.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self.url = url
        self.path = ""
        self.host, self.port = parts.hostname or "localhost", parts.port or 6379
        self.username = unquote(parts.username or query.get("username", [""])[0])
        self.password = unquote(parts.password or query.get("password", [""])[0])
        self.tls = parts.scheme == "rediss"
        database = query.get("db", ["0"])[0]
        if parts.scheme == "unix":
            self.path = unquote(parts.path)
        elif parts.scheme in ("redis", "rediss"):
            database = parts.path.strip("/") or database
        else:
            raise ValueError(f"{url!r} is no Redis address; write redis://host:port/0 or unix:///path/to/redis.sock")
        if not database.isdigit():
            raise ValueError(f"{url!r}: the database must be a number")
        self.database = int(database)

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"{self.host}:{self.port}"

    def greeting(self) -> list[tuple[Arg, ...]]:
        """The commands that a fresh connection sends first; the last one finds out whether the data is loaded."""
        commands: list[tuple[Arg, ...]] = []
        if self.password:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        commands.append(("PING",))
        return commands

    async def open(self, protocol: Callable[[], Connection]) -> Connection:
        """A connected and greeted connection.

        Raises:
            OSError, StoreError, ConnectionLost: refused, wrong password, still loading.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(REPLY_TIMEOUT):
            if self.path:
                _, connection = await loop.create_unix_connection(protocol, self.path)
            else:
                context = ssl.create_default_context() if self.tls else None
                _, connection = await loop.create_connection(protocol, self.host, self.port, ssl=context)
            try:
                for reply in await asyncio.gather(*(connection.send(pack(c)) for c in self.greeting())):
                    if isinstance(reply, hiredis.ReplyError):
                        raise refusal(str(reply))
            except BaseException:
                connection.abort()
                raise
        return connection


def pack(command: tuple[Arg, ...]) -> bytes:
    """A command as Redis reads it; lone surrogates, which user code's messages may hold, become question marks."""
    try:
        packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type] # its stub knows only 1-tuples
    except UnicodeEncodeError:
        encoded = (arg.encode("utf-8", "replace") if isinstance(arg, str) else arg for arg in command)
        packed = hiredis.pack_command(tuple(encoded))  # type: ignore[arg-type]
    return packed


def refusal(text: str) -> StoreError:
    """Redis' error reply as one of ours."""
    if text.startswith("OOM"):
        return StoreFull()
    word, _, rest = text.partition(" ")
    if word in _OURS:
        return _OURS[word](rest.rpartition(" (script")[0] or rest)
    if text.startswith(("MISCONF", "READONLY", "NOREPLICAS", "CLUSTERDOWN", *_PASSING)):
        return StoreUnavailable(f"Redis refuses to work for now: {text}")
    return StoreError(f"Redis refused: {text}")


class Connection(asyncio.Protocol):
    """One socket. Replies come in the order of the commands; pushed messages go to ``on_push``."""

    def __init__(self, on_lost: Callable[[Connection], None], on_push: Callable[[Any], bool] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._out: list[bytes] = []
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._on_lost = on_lost
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._replies = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """Queues a command for this turn's write; the future yields the reply, an error reply as an object.

        Raises (from the future):
            ConnectionLost: no reply came.
        """
        future = self._loop.create_future()
        if not self.alive:
            future.set_exception(ConnectionLost())
            return future
        self.write(packed)
        self._pending.append(future)
        if self._watch is None:
            self._watch = self._loop.call_later(REPLY_TIMEOUT, self._check, self._replies)
        return future

    @property
    def alive(self) -> bool:
        """Whether commands can still be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, packed: bytes) -> None:
        """Queues a command that has no reply of its own."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)

    def abort(self) -> None:
        """Drops the socket at once; everything under way fails with ConnectionLost."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Writes what is queued, then closes."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._transport.write(data)

    def _check(self, replies_then: int) -> None:
        self._watch = None
        if not self._pending:
            return
        if self._replies == replies_then:
            self.abort()
        else:
            self._watch = self._loop.call_later(REPLY_TIMEOUT, self._check, self._replies)

    def data_received(self, data: bytes) -> None:
        reader, pending, on_push = self._reader, self._pending, self._on_push
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _MORE:
                self._replies += 1
                if on_push is not None and on_push(reply):
                    continue
                future = pending.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort()  # what comes is not Redis' protocol, or answers nothing we asked: start afresh

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        if self._watch is not None:
            self._watch.cancel()
        while self._pending:
            future = self._pending.popleft()
            if not future.done():
                future.set_exception(ConnectionLost())
        self._on_lost(self)


class Link:
    """A connection that is kept alive: reopened with full jitter whenever it is lost, until ``close``."""

    def __init__(self, address: Address, on_push: Callable[[Any], bool] | None = None) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.on_connect: list[Callable[[], None]] = []
        self._on_push = on_push
        self._closed = False
        self._reopening: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._last_error = ""
        self._refused = False

    async def open(self, patience: float = PATIENCE) -> None:
        """Connects, trying for ``patience`` seconds.

        Raises:
            StoreUnavailable: Redis does not answer. StoreError: it refuses us, for example for a wrong password.
        """
        self._reopening = asyncio.ensure_future(self._reopen())
        await self.wait(patience)

    async def wait(self, patience: float) -> Connection:
        """The open connection, waiting at most ``patience`` seconds for it.

        Raises:
            StoreUnavailable: it did not come back in time, or the link is closed.
            StoreError: Redis answers, but does not let us in.
        """
        if self.connection is None and not self._closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), patience)
        if self.connection is None:
            if self._refused:
                raise StoreError(f"Redis at {self.address} does not let us in: {self._last_error}")
            why = f" ({self._last_error})" if self._last_error else ""
            raise StoreUnavailable(f"Redis at {self.address} does not answer{why}; try again in a moment.")
        return self.connection

    async def close(self) -> None:
        """Ends the connection and the attempts to get it back."""
        self._closed = True
        self._arrived.set()
        if self._reopening is not None:
            self._reopening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reopening
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            await asyncio.sleep(0)  # let the transport say good-bye before the loop may end

    async def _reopen(self) -> None:
        delay = 0.02
        while not self._closed:
            try:
                connection = await self.address.open(lambda: Connection(self._lost, self._on_push))
            except (OSError, TimeoutError, ConnectionLost, StoreError) as error:
                self._last_error = str(error)
                self._refused = isinstance(error, StoreError) and not isinstance(error, StoreUnavailable)
                if self._refused:
                    self._arrived.set()  # nobody waits for a wrong password to get better
                else:
                    self._arrived.clear()
                await asyncio.sleep(random.uniform(0, delay))
                delay = min(delay * 2, 2.0)
                continue
            if not connection.alive:  # lost again before we got to see it
                continue
            self.connection, self._refused, self._last_error = connection, False, ""
            self._arrived.set()
            for callback in self.on_connect:
                callback()
            return

    def _lost(self, connection: Connection) -> None:
        if connection is self.connection:
            self.connection = None
            self._arrived.clear()
            if not self._closed:
                self._reopening = asyncio.ensure_future(self._reopen())


class Redis:
    """Commands and scripts over one kept-alive connection."""

    def __init__(self, address: Address) -> None:
        self.link = Link(address)

    async def command(self, *args: Arg, patience: float = PATIENCE) -> Any:
        """Runs one command and gives its reply (bytes, int, list or None); sent again if its reply was lost.

        Raises:
            StoreUnavailable: no connection within ``patience`` seconds. StoreFull: out of memory. StoreError: refused.
        """
        reply = await self.exchange(pack(args), patience)
        if isinstance(reply, hiredis.ReplyError):
            raise refusal(str(reply))
        return reply

    async def exchange(self, packed: bytes, patience: float) -> Any:
        """As ``command``, for a packed command; a final error reply is returned as an object."""
        deadline = None
        while True:
            connection = self.link.connection
            try:
                if connection is None:
                    left = patience if deadline is None else deadline - asyncio.get_running_loop().time()
                    connection = await self.link.wait(max(left, 0))
                reply = await connection.send(packed)
            except ConnectionLost:
                now = asyncio.get_running_loop().time()
                deadline = deadline or now + patience
                if now >= deadline:
                    raise StoreUnavailable from None
                await asyncio.sleep(0)  # the link has yet to notice
                continue
            if type(reply) is hiredis.ReplyError and str(reply).startswith(_PASSING):
                now = asyncio.get_running_loop().time()
                deadline = deadline or now + patience
                if now < deadline:
                    await asyncio.sleep(0.05)
                    continue
            return reply
