"""What endpoints do when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import Request


@asynccontextmanager
async def cancel_on_disconnect(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the caller has gone; the handler goes on after it, to clean up or to say how it ended.

    Without it the platform cancels the whole handler.
    """
    task = asyncio.current_task()
    assert task is not None
    watcher = asyncio.ensure_future(_caller_gone(request))
    inside = True

    def end_block(watched: asyncio.Task[None]) -> None:
        if inside and not watched.cancelled() and watched.exception() is None:
            task.cancel()

    watcher.add_done_callback(end_block)
    try:
        yield
    except asyncio.CancelledError:
        inside = False
        await asyncio.sleep(0)  # the platform cancels by itself, and may do so before the watcher has had its turn
        if not watcher.done():
            raise
        if hasattr(task, "uncancel"):  # Python 3.11: a cancellation that was dealt with must be taken back
            while task.cancelling():
                task.uncancel()
    finally:
        inside = False
        watcher.cancel()


async def _caller_gone(request: Request) -> None:
    await request.body()  # kept by the request, so that the handler can still read it
    while (await request.receive())["type"] != "http.disconnect":
        pass
