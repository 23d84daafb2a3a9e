"""What a worker does when its GPU failed under a request. The GPU is played: only its words matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler.store.records import RequestRecord, RequestState, WorkerState
from tests.support.loop import run
from tests.support.waiting import await_until
from tests.worker.stage import Stage, stage

#: Its card fails once for each name of a flag that does not exist yet.
APP = """
import asyncio, os, types, sys

import fal
from fal.exceptions import AppException
from pydantic import BaseModel

ILLEGAL = "CUDA error: an illegal memory access was encountered"
FULL = "CUDA out of memory. Tried to allocate 20.00 GiB"


class Input(BaseModel):
    flag: str = ""
    how: str = ILLEGAL


def fail_once(request):
    if not os.path.exists(request.flag):
        open(request.flag, "w").close()
        raise RuntimeError(request.how)


class Probe(fal.App):
    @fal.endpoint("/")
    def run(self, request: Input) -> dict:
        fail_once(request)
        return {"pid": os.getpid()}

    @fal.endpoint("/hidden")
    def hidden(self, request: Input) -> dict:
        try:
            fail_once(request)
        except RuntimeError:
            raise AppException("sorry", 500)
        return {"pid": os.getpid()}

    @fal.endpoint("/always")
    def always(self, request: Input) -> dict:
        raise RuntimeError(request.how)

    @fal.endpoint("/slow")
    async def slow(self) -> dict:
        await asyncio.sleep(60)
"""


def body(record: RequestRecord) -> dict[str, object]:
    assert record.outcome is not None
    content: dict[str, object] = json.loads(record.outcome.body)
    return content


async def served(on: Stage, app: str, request_id: str) -> RequestRecord:
    """Do the scheduler's part, promoting and replacing, until the request has ended."""

    async def ended() -> RequestRecord | None:
        await on.store.requests.promote(app, epoch=1)
        if not await on.store.workers.list(app):
            await on.start(app)
        record = await on.store.requests.get(app, request_id)
        return record if record is not None and record.state.terminal else None

    record = await await_until(ended, f"{request_id} has ended", interval=0.1)
    assert record is not None
    return record


@pytest.mark.parametrize("path", ["/", "/hidden"])
def test_a_request_whose_gpu_broke_runs_again_on_another_worker(redis_url: str, tmp_path: Path, path: str) -> None:
    """An app that caught the exception answered 500: nothing was tried again, and its process went on failing
    whatever came next."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP, max_multiplexing=2)
            broken = await on.start_ready(app)
            beside = await on.submit(app, "/slow")
            await on.reaches(broken, WorkerState.RUNNING)
            request_id = await on.submit(app, path, json.dumps({"flag": str(tmp_path / "flag")}).encode())

            ended = await on.reaches(broken, WorkerState.TERMINATED)
            assert ended.reason == "the GPU failed: CUDA error: an illegal memory access was encountered"
            assert (await on.store.requests.get(app, beside)).state is RequestState.IN_QUEUE  # type: ignore[union-attr]
            assert await on.store.requests.cancel(app, beside) == "cancelled_queued"
            record = await served(on, app, request_id)

            assert (record.state, record.attempt) == (RequestState.COMPLETED, 2)
            assert record.worker_id != broken.worker_id
            assert "pid" in body(record)

    run(story())


def test_a_direct_caller_hears_what_the_app_said_and_the_worker_goes(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP)
            worker = await on.start_ready(app)

            wanted = json.dumps({"flag": str(tmp_path / "flag")}).encode()
            record = await on.call(app, "/hidden", wanted, mode="direct")

            assert record.outcome is not None
            assert (record.outcome.status, body(record)) == (500, {"detail": "sorry"})
            await on.reaches(worker, WorkerState.TERMINATED)

    run(story())


def test_a_request_that_breaks_the_gpu_of_each_worker_is_stopped(redis_url: str, tmp_path: Path) -> None:
    """The first time accuses the GPU, each later one on another worker the request: three of those are enough."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP)
            await on.start_ready(app)

            record = await served(on, app, await on.submit(app, "/always"))

            assert (record.state, record.error_type, record.attempt) == (RequestState.ERROR, "poison_request", 4)

    run(story())


def test_a_full_gpu_gets_one_more_try_on_an_empty_one(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP)
            first = await on.start_ready(app)
            wanted = json.dumps({"how": "CUDA out of memory. Tried to allocate 20.00 GiB"}).encode()

            record = await served(on, app, await on.submit(app, "/always", wanted))

            assert record.outcome is not None
            assert (record.outcome.status, record.attempt) == (503, 2)
            assert record.worker_id != first.worker_id
            await on.reaches(first, WorkerState.TERMINATED)

    run(story())
