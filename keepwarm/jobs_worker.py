"""arq as we use it: msgpack instead of pickle, and a job of a killed process that runs again within seconds.

arq keeps a job marked as running for as long as its longest function may take, an hour for builds. Here the mark is a
short lease that the running process renews.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgpack
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import in_progress_key_prefix
from arq.cron import CronJob
from arq.worker import Function, Worker
from redis.exceptions import RedisError

from keepwarm.jobs_outage import Outage

#: Seconds after which a job whose process is gone runs again, and between renewals of a living one's mark.
LEASE_S = 6.0
RENEW_S = 1.5
#: Seconds between two looks for due jobs; those enqueued in this process are looked at at once.
POLL_S = 0.5


def pack(job: dict[str, Any]) -> bytes:
    """A job as bytes; exceptions in failed jobs' records become their text."""
    packed: bytes = msgpack.packb(job, default=repr)
    return packed


def unpack(raw: bytes) -> dict[str, Any]:
    """The reverse of ``pack``."""
    job: dict[str, Any] = msgpack.unpackb(raw, strict_map_key=True)
    return job


async def connect(redis_url: str) -> ArqRedis:
    """A pool to the platform's Redis, unix sockets included.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    return await create_pool(
        RedisSettings.from_dsn(redis_url), job_serializer=pack, job_deserializer=unpack, default_queue_name="kw:arq"
    )


class LeasedWorker(Worker):
    """An arq worker over one queue whose marks of running jobs are leases.

    Args:
        pool: shared with whoever enqueues.
        queue_name: jobs of one kind have a queue of their own, so that long ones never hold up short ones.
        max_jobs: jobs at once.
        timeout_s: longest run of one job.
        outage: is told when Redis does not answer.
    """

    def __init__(
        self,
        pool: ArqRedis,
        queue_name: str,
        functions: Sequence[Function],
        *,
        max_jobs: int,
        timeout_s: float,
        cron_jobs: Sequence[CronJob] = (),
        outage: Outage | None = None,
    ) -> None:
        super().__init__(
            functions,
            queue_name=queue_name,
            cron_jobs=list(cron_jobs),
            redis_pool=pool,
            handle_signals=False,
            max_jobs=max_jobs,
            job_timeout=timeout_s,
            keep_result=0,
            poll_delay=POLL_S,
            max_tries=1000,
            job_serializer=pack,
            job_deserializer=unpack,
            log_results=False,
        )
        self.in_progress_timeout_s = LEASE_S
        self._nudged = asyncio.Event()
        self._outage = outage or Outage()

    def nudge(self) -> None:
        """A job was enqueued: look now instead of at the next poll."""
        self._nudged.set()

    async def main(self) -> None:
        """arq's loop, which sleeps between polls whatever happens, with an end to the sleep."""
        while True:
            self._nudged.clear()
            await self._poll_iteration()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), self.poll_delay_s)

    async def work(self) -> None:
        """Run jobs until cancelled; a Redis that goes away is waited for."""
        renewing = asyncio.create_task(self._renew())
        try:
            while True:
                try:
                    await self.main()
                except (RedisError, OSError) as error:
                    self._outage.noticed(error)
                    await asyncio.sleep(0.5)
                    await self._recount()
        finally:
            renewing.cancel()

    async def drain(self, grace: float) -> None:
        """Take no more jobs, give those under way ``grace`` seconds, then cancel them: they run again later."""
        self.allow_pick_jobs = False
        tasks = [task for task in self.tasks.values() if not task.done()]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _recount(self) -> None:
        """Count jobs under way afresh: arq takes a slot before it asks Redis and does not give it back when Redis
        fails then, so that after a few outages a worker would take nothing any more."""
        running = [task for task in self.tasks.values() if not task.done()]
        self.tasks = {job_id: task for job_id, task in self.tasks.items() if not task.done()}
        self.job_counter = len(running)
        self.sem = asyncio.BoundedSemaphore(self.max_jobs + 1)
        for _ in running:
            await self.sem.acquire()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(RedisError, OSError):
                for job_id in list(self.tasks):
                    await self.pool.pexpire(in_progress_key_prefix + job_id, round(LEASE_S * 1000))
