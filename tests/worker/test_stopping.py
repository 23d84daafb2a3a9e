"""How a worker leaves: what it has is finished or given back, and nothing of it stays."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from scheduler.store.records import RequestState, WorkerState
from tests.support.loop import run
from tests.worker.apps import HANGS_IN_SETUP, PROBE
from tests.worker.stage import stage


def test_draining_finishes_what_runs_and_takes_nothing_new(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            running = await on.submit(app, "/slow", b'{"seconds": 1.5}')
            await on.reaches(worker, WorkerState.RUNNING)
            waiting = await on.submit(app)

            await on.store.workers.request_stop(app, worker.worker_id, "drain", "scaled down after 60 s idle")

            await on.reaches(worker, WorkerState.DRAINING)
            assert (await on.result(app, running)).state is RequestState.COMPLETED
            ended = await on.reaches(worker, WorkerState.TERMINATED)
            assert ended.reason == "scaled down after 60 s idle"
            assert await on.store.requests.state(app, waiting) is RequestState.IN_QUEUE
            lines = [entry.message for entry in await on.log(app)]
            assert lines.index("asked to leave") < lines.index("teardown runs")
            assert await asyncio.to_thread(on.ended, worker) == 0
            assert not (tmp_path / "incoming" / worker.worker_id).exists()

    run(story())


def test_what_does_not_finish_within_the_grace_is_given_back_without_blame(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE, termination_grace_period_seconds=1.2)
            worker = await on.start_ready(app)
            request_id = await on.submit(app, "/slow", b'{"seconds": 60}')
            await on.reaches(worker, WorkerState.RUNNING)

            on.supervisors[worker.worker_id].send_signal(signal.SIGTERM)

            await on.reaches(worker, WorkerState.TERMINATED)
            # In the queue at once, not after a back-off or when its lease runs out.
            assert await on.store.requests.state(app, request_id) is RequestState.IN_QUEUE
            assert await on.store.requests.queue_size(app) == 1

    run(story())


def test_a_killed_worker_gives_back_at_once(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            queued = await on.submit(app, "/slow", b'{"seconds": 60}')
            await on.reaches(worker, WorkerState.RUNNING)

            await on.store.workers.request_stop(app, worker.worker_id, "kill", "stopped by hand")

            ended = await on.reaches(worker, WorkerState.TERMINATED)
            assert ended.reason == "stopped by hand"
            assert await on.store.requests.state(app, queued) is RequestState.IN_QUEUE

    run(story())


def test_an_idle_worker_leaves_only_while_it_is_idle(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            running = await on.submit(app, "/slow", b'{"seconds": 0.5}')
            await on.reaches(worker, WorkerState.RUNNING)

            assert not await on.store.workers.request_stop(app, worker.worker_id, "idle", "idle")
            await on.result(app, running)
            await on.reaches(worker, WorkerState.IDLE)
            assert await on.store.workers.request_stop(app, worker.worker_id, "idle", "idle for 60 s")
            ended = await on.reaches(worker, WorkerState.TERMINATED)
            assert ended.reason == "idle for 60 s"

    run(story())


def test_a_worker_that_is_still_starting_can_be_stopped(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(HANGS_IN_SETUP)
            worker = await on.start(app)
            await on.logged(app, "loading for ever")

            await on.store.workers.request_stop(app, worker.worker_id, "drain", "not needed any more")

            await on.reaches(worker, WorkerState.TERMINATED)
            revision = await on.store.apps.revision(app, "r1")
            assert revision is not None
            assert revision.startup_failures == 0

    run(story())


def test_a_worker_without_a_record_ends(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.place(app)
            await on.store.workers.remove(app, worker.worker_id, "never mind")
            await on.launch(worker)

            assert await asyncio.to_thread(on.ended, worker) == 0

    run(story())
