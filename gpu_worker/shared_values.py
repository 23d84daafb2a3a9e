"""Answers a runner's calls for values that its owner's apps share. The runner names the database; the owner is ours.

Leaves limits of names and sizes to ``scheduler.store.values``; here only the number of calls at once is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fal._runner.protocol import Message, ValueCall, ValueReply

from scheduler.store.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from scheduler.store import Store

#: Calls of one runner that may wait for the store. Each occupies a thread of the app, so honest ones stay far below.
MOST_WAITING = 256


class SharedValues:
    """The values of one runner's owner.

    Args:
        owner: whose they are.
        send: takes the answers.
    """

    def __init__(self, owner: str, send: Callable[[Message], None]) -> None:
        self._owner = owner
        self._send = send
        self._store: asyncio.Future[Store] = asyncio.get_running_loop().create_future()
        self._waiting: set[asyncio.Task[None]] = set()

    def attach(self, store: Store) -> None:
        """Calls that came before are answered now."""
        if not self._store.done():
            self._store.set_result(store)

    def called(self, call: ValueCall) -> None:
        """Take a call; its answer is sent later."""
        if len(self._waiting) >= MOST_WAITING:
            self._send(ValueReply(call.n, error=f"{MOST_WAITING} calls are waiting already; make fewer at once"))
            return
        task = asyncio.get_running_loop().create_task(self._answer(call))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _answer(self, call: ValueCall) -> None:
        try:
            reply = ValueReply(call.n, await self._do(await asyncio.shield(self._store), call))
        except StoreUnavailable:
            reply = ValueReply(call.n, error="the platform's store does not answer; try again in a moment")
        except (StoreError, ValueError) as error:
            reply = ValueReply(call.n, error=str(error))
        self._send(reply)

    async def _do(self, store: Store, call: ValueCall) -> str | None:
        values, owner = store.values, self._owner
        if call.verb == "get":
            found = await values.get(owner, call.database, call.key)
            return None if found is None else found.decode()
        if call.verb == "set" and call.value is not None and call.ttl_seconds is not None:
            await values.set(owner, call.database, call.key, call.value.encode(), call.ttl_seconds)
        elif call.verb == "delete":
            await values.delete(owner, call.database, call.key)
        else:
            raise ValueError(f"{call.verb!r} without what it needs")
        return None
