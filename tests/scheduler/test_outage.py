"""Redis is killed and comes back, several times: scheduler and jobs go on as if it had only been slow."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arq.worker import func

from keepwarm import redis_server as embedded
from keepwarm.jobs_worker import LeasedWorker, connect
from scheduler.control.service import Scheduler, Settings
from scheduler.store import Store
from scheduler.store.records import RevisionState
from tests.scheduler.stub_host import deploy, ended, platform, submit
from tests.scheduler.test_jobs_builds import Builder, jobs, register, state
from tests.support.loop import run
from tests.support.waiting import wait_until


class OwnRedis:
    """A server of this test's own, which it may kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{embedded.socket_path(folder)}"
        self.process = embedded.start(folder, "everysec")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.process = embedded.start(self.folder, "everysec")


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    server = OwnRedis(folder)
    yield server
    server.process.terminate()
    server.process.wait(20)
    shutil.rmtree(folder, ignore_errors=True)


def test_builds_and_deliveries_go_on_after_outages(
    own_redis: OwnRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """arq loses one slot with every outage that hits it between taking the slot and asking Redis. Two builds at once
    means that the third outage was the end of all builds."""
    builder = Builder(monkeypatch)

    async def scenario() -> None:
        async with jobs(own_redis.url, tmp_path) as store:
            for number in range(4):
                await asyncio.to_thread(own_redis.restart)
                app = f"o/app{number}"
                await register(store, "r1", app, key=f"{number}" * 64)
                await store.environments.request_build(app, "r1")
                assert (await state(store, "r1", app)).state is RevisionState.READY
            assert len(builder.built) >= 4

    run(scenario())


def test_an_outage_is_one_line_and_its_end_another(own_redis: OwnRedis, tmp_path: Path) -> None:
    """Every duty of the jobs service told of every try that failed: four lines a second for as long as Redis was away,
    and none when it was back."""
    log = tmp_path / "jobs.log"
    environ = {**os.environ, "KEEPWARM_REDIS_URL": own_redis.url, "KEEPWARM_DATA": str(tmp_path)}

    def said(words: str) -> int:
        return log.read_text().count(words)

    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-P", "-m", "keepwarm.jobs"], env=environ, stderr=stream)
    try:
        wait_until(lambda: said("ready"), "the jobs service to be ready", 30)
        own_redis.kill()
        gone = time.monotonic()
        wait_until(lambda: said("does not answer"), "the outage to be noticed", 30)
        wait_until(lambda: time.monotonic() > gone + 4, "eight tries to have failed", 10)
        assert said("\n") == said("ready") + 1, log.read_text()
        own_redis.restart()
        wait_until(lambda: said("answers again"), "the end of the outage to be noticed", 30)
    finally:
        process.terminate()
        process.wait(20)
    assert said("does not answer") == said("answers again") == 1


class Watched(LeasedWorker):
    """Says when it has counted its slots afresh."""

    recounted: asyncio.Event

    async def _recount(self) -> None:
        await super()._recount()
        self.recounted.set()


def test_slots_that_an_outage_swallowed_come_back(own_redis: OwnRedis) -> None:
    async def scenario() -> None:
        ran = asyncio.Event()

        async def job(ctx: dict[str, Any]) -> None:
            ran.set()

        pool = await connect(own_redis.url)
        worker = Watched(pool, "kw:arq:test", [func(job, name="job")], max_jobs=2, timeout_s=10)
        worker.recounted = asyncio.Event()
        worker.job_counter = 1  # what an outage at the wrong moment leaves behind
        await pool.enqueue_job("job", _queue_name="kw:arq:test")
        own_redis.kill()
        working = asyncio.create_task(worker.work())
        await asyncio.wait_for(worker.recounted.wait(), 20)
        assert worker.job_counter == 0
        await asyncio.to_thread(own_redis.restart)
        await asyncio.wait_for(ran.wait(), 20)
        await worker.drain(1)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await pool.aclose()

    run(scenario())


def test_a_build_under_way_outlives_an_outage(
    own_redis: OwnRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(monkeypatch)

    async def scenario() -> None:
        async with jobs(own_redis.url, tmp_path) as store:
            builder.go.clear()
            await register(store, "r1")
            await store.environments.request_build("o/app", "r1")
            while not builder.running:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_redis.restart)
            builder.go.set()
            assert (await state(store, "r1")).state is RevisionState.READY

    run(scenario())


def test_the_scheduler_leads_on_after_an_outage(own_redis: OwnRedis, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(own_redis.url, tmp_path) as (store, _):
            scheduler = Scheduler(store, Settings(own_redis.url, tmp_path, pass_interval=0.2))
            running = asyncio.create_task(scheduler.run())
            await deploy(store)
            await submit(store, "q1")
            await ended(store, "q1")
            await asyncio.to_thread(own_redis.restart)
            await submit(store, "q2")
            await ended(store, "q2")
            await deploy(store, "o/other")
            await submit(store, "q3", app="o/other")
            await ended(store, "q3", app="o/other")
            scheduler.stop()
            await running

    run(scenario())


def test_a_leader_stops_soon_when_redis_is_gone(own_redis: OwnRedis, tmp_path: Path) -> None:
    """The platform was killed, its Redis with it; the scheduler was told to end and tried for ten seconds to hand its
    lead over to nobody."""

    async def scenario() -> None:
        store = await Store.connect(own_redis.url, tmp_path)
        scheduler = Scheduler(store, Settings(own_redis.url, tmp_path))
        running = asyncio.create_task(scheduler.run())
        while not scheduler.leads:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(own_redis.kill)
        scheduler.stop()
        await asyncio.wait_for(running, 8)
        await store.close()

    run(scenario())
