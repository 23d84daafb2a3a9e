"""SAQ, a queue on Redis lists: its worker blocks in BLMOVE and its callers hear results by one subscription.

``Job.refresh(until_complete=...)`` is used, which listens; ``Queue.apply`` polls twice a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import callers
from saq import Worker
from saq.queue.redis import RedisQueue


async def same(context: dict[Any, Any], *, number: int) -> int:
    return number


class Saq:
    @asynccontextmanager
    async def calling(self, url: str) -> AsyncIterator[callers.Call]:
        queue = RedisQueue.from_url(url, max_concurrent_ops=64)
        await queue.connect()

        async def call(number: int) -> int:
            job = await queue.enqueue("same", number=number)
            assert job is not None
            while not job.completed:
                with contextlib.suppress(asyncio.TimeoutError):  # it ended between refresh's look and its listening
                    await job.refresh(until_complete=0.2)
            result: int = job.result
            return result

        try:
            yield call
        finally:
            await queue.disconnect()

    async def work(self, url: str, slots: int) -> None:
        queue = RedisQueue.from_url(url, max_concurrent_ops=64)
        await queue.connect()
        worker = Worker(queue, [same], concurrency=slots)
        worker.SIGNALS = []
        await worker.start()


if __name__ == "__main__":
    callers.main(Saq())
