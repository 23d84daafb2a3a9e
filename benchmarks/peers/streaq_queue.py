"""streaq, a queue on Redis streams: its worker blocks in XREADGROUP and publishes results.

Its own ``Task.result()`` opens a subscription for each job, and coredis takes 0.1 s to close one, so that no caller
can see more than ten results a second. STREAQ_RESULTS=one hears all results by one subscription instead, as ours does:
code of this file, not streaq's, for a fair look at the queue behind it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import callers
from streaq import Worker
from streaq.task import AsyncRegisteredTask

_ONE_SUBSCRIPTION = os.environ.get("STREAQ_RESULTS") == "one"
_CHANNELS = "streaq:default:channels:"


def _worker(url: str, slots: int) -> tuple[Worker[None], AsyncRegisteredTask[[int], int]]:
    # each waiting result() holds a connection, and with coredis' 64 the callers block each other for good
    worker: Worker[None] = Worker(
        redis_url=url, redis_kwargs={"max_connections": 256}, concurrency=slots, handle_signals=False
    )

    @worker.task(silent=True)
    async def same(number: int) -> int:
        return number

    return worker, same


class Streaq:
    @asynccontextmanager
    async def calling(self, url: str) -> AsyncIterator[callers.Call]:
        worker, same = _worker(url, 1)
        waiting: dict[str, asyncio.Future[Any]] = {}

        async def call(number: int) -> int:
            task = await same.enqueue(number)
            return (await task.result()).result

        async def call_listening(number: int) -> int:
            task = same.enqueue(number)
            result = waiting[task.id] = asyncio.get_running_loop().create_future()
            await task
            return (await worker.deserialize(await result))["r"]

        async def listen() -> None:
            async with worker.redis.pubsub(patterns=[f"{_CHANNELS}*"], ignore_subscribe_messages=True) as results:
                async for message in results:
                    waiting.pop(message["channel"].removeprefix(_CHANNELS)).set_result(message["data"])

        async with worker:
            if not _ONE_SUBSCRIPTION:
                yield call
                return
            listening = asyncio.create_task(listen())
            await asyncio.sleep(0.2)  # the subscription says nothing when it is there
            yield call_listening
            listening.cancel()

    async def work(self, url: str, slots: int) -> None:
        await _worker(url, slots)[0].run_async()


if __name__ == "__main__":
    callers.main(Streaq())
