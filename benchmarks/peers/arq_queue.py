"""arq, a queue on a sorted set: its worker polls for jobs and its callers poll for results.

``poll_delay``, half a second by default on both sides, is what its round trip is made of; ARQ_POLL_DELAY sets both. At
0 neither side ever sleeps: each takes a core and asks Redis all the time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import callers
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

_POLL_DELAY = float(os.environ.get("ARQ_POLL_DELAY", "0.5"))


async def same(context: dict[Any, Any], number: int) -> int:
    return number


class Arq:
    @asynccontextmanager
    async def calling(self, url: str) -> AsyncIterator[callers.Call]:
        redis = await create_pool(RedisSettings.from_dsn(url))

        async def call(number: int) -> int:
            job = await redis.enqueue_job("same", number, _job_id=uuid.uuid4().hex)
            assert job is not None
            result: int = await job.result(poll_delay=_POLL_DELAY)
            return result

        try:
            yield call
        finally:
            await redis.aclose()

    async def work(self, url: str, slots: int) -> None:
        settings = RedisSettings.from_dsn(url)
        worker = Worker(
            [func(same)], redis_settings=settings, max_jobs=slots, poll_delay=_POLL_DELAY, handle_signals=False
        )
        await worker.async_run()


if __name__ == "__main__":
    callers.main(Arq())
