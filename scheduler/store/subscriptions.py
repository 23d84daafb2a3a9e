"""One subscriber connection for a whole process, shared by everyone who listens to channels.

Messages are hints: while the connection is away they are lost, so listeners re-read what matters in ``on_reconnect``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from .connection import PATIENCE, Address, ConnectionLost, Link, pack
from .errors import StoreUnavailable

Listener = Callable[[bytes], None]
#: Seconds between pings; a connection that does not answer one within the reply time-out is reopened.
PING_S = 10.0

_log = logging.getLogger(__name__)


class Subscription:
    """A running subscription; ``close`` ends it."""

    def __init__(
        self, subscriber: Subscriber, channels: Mapping[str, Listener], on_reconnect: Callable[[], None] | None
    ) -> None:
        self._subscriber = subscriber
        self.channels = {name.encode(): listener for name, listener in channels.items()}
        self.on_reconnect = on_reconnect

    async def close(self) -> None:
        """Ends it; twice is fine."""
        await self._subscriber.unsubscribe(self)


class Subscriber:
    """The process' one connection for listening, opened with the first subscription."""

    def __init__(self, address: Address) -> None:
        self._link = Link(address, self._on_push)
        self._link.on_connect.append(self._on_connect)
        self._listeners: dict[bytes, list[Listener]] = {}
        self._subscriptions: list[Subscription] = []
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        self._opened = False
        self._pinging: asyncio.Task[None] | None = None

    async def subscribe(
        self, channels: Mapping[str, Listener], on_reconnect: Callable[[], None] | None = None
    ) -> Subscription:
        """Calls each channel's listener with every message, from the moment this returns.

        Raises:
            StoreUnavailable: Redis did not confirm in time.
        """
        if not self._opened:
            self._opened = True
            await self._link.open()
            self._pinging = asyncio.ensure_future(self._keep_pinging())
        subscription = Subscription(self, channels, on_reconnect)
        self._subscriptions.append(subscription)
        fresh = [channel for channel in subscription.channels if channel not in self._listeners]
        for channel, listener in subscription.channels.items():
            self._listeners.setdefault(channel, []).append(listener)
        try:
            await self._confirm(fresh, [self._confirmed[c] for c in subscription.channels if c in self._confirmed])
        except BaseException:
            await self.unsubscribe(subscription)
            raise
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription; channels that nobody else hears are left."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        idle = []
        for channel, listener in subscription.channels.items():
            listeners = self._listeners[channel]
            listeners.remove(listener)
            if not listeners:
                del self._listeners[channel]
                idle.append(channel)
        if idle and self._link.connection is not None:
            self._send(("UNSUBSCRIBE", *idle))

    async def close(self) -> None:
        """Ends everything."""
        if self._pinging is not None:
            self._pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pinging
        await self._link.close()

    async def _confirm(self, channels: list[bytes], waits: list[asyncio.Future[None]]) -> None:
        loop = asyncio.get_running_loop()
        for channel in channels:
            waits.append(self._confirmed.setdefault(channel, loop.create_future()))
        if channels:
            self._send(("SUBSCRIBE", *channels))
        if waits:
            _, late = await asyncio.wait(waits, timeout=PATIENCE)
            if late:
                raise StoreUnavailable

    def _send(self, command: tuple[str | bytes, ...]) -> None:
        """Subscription commands have no reply of their own: their confirmations come as pushes."""
        connection = self._link.connection
        if connection is not None:
            connection.write(pack(command))

    def _on_connect(self) -> None:
        if self._listeners:
            self._send(("SUBSCRIBE", *self._listeners))
        for subscription in tuple(self._subscriptions):
            if subscription.on_reconnect is not None:
                self._call(subscription.on_reconnect)

    def _on_push(self, reply: Any) -> bool:
        if type(reply) is not list:
            return False
        kind = reply[0]
        if kind == b"message":
            for listener in tuple(self._listeners.get(reply[1], ())):
                self._call(listener, reply[2])
            return True
        if kind == b"subscribe":
            waiter = self._confirmed.pop(reply[1], None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            return True
        # a ping is answered by ["pong", ""] while subscribed and by PONG otherwise
        return bool(kind == b"unsubscribe")

    def _call(self, listener: Callable[..., None], *args: bytes) -> None:
        try:
            listener(*args)
        except Exception:  # noqa: BLE001 one listener's mistake must not deafen the others
            _log.exception("a listener failed")

    async def _keep_pinging(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            connection = self._link.connection
            if connection is not None:
                with contextlib.suppress(ConnectionLost):
                    await connection.send(pack(("PING",)))
