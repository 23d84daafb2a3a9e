"""What a runner said last reaches the dead letter of the request that it died of."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.store.records import RequestState, WorkerState
from tests.support.loop import run
from tests.support.waiting import await_until
from tests.worker.stage import Stage, stage

APP = """
import ctypes
import os
import sys

import fal
from fastapi import Response


class Probe(fal.App):
    @fal.endpoint("/crash")
    def crash(self) -> dict:
        print("step 3 of 9")
        os.write(2, b"native code: cannot allocate a tile\\n")
        ctypes.string_at(0)

    @fal.endpoint("/leave")
    def leave(self) -> dict:
        print("no card left", file=sys.stderr)
        os._exit(66)

    @fal.endpoint("/busy")
    def busy(self) -> Response:
        return Response('{"detail": "all tiles are taken"}', 503)
"""


async def ends(on: Stage, app: str, request_id: str) -> None:
    """Give the app workers, one after the other, and do the scheduler's part until the request has ended."""

    async def done() -> bool:
        await on.store.requests.promote(app, epoch=1)
        workers = await on.store.workers.list(app)
        if not any(worker.state is not WorkerState.TERMINATED for worker in workers):
            await on.start(app)
        state = await on.store.requests.state(app, request_id)
        return state is not None and state.terminal

    await await_until(done, f"{request_id} has ended", interval=0.1)


@pytest.mark.parametrize(
    ("path", "exit_code", "said"),
    [("/crash", -11, "native code: cannot allocate a tile"), ("/leave", 66, "no card left")],
)
def test_three_dead_runners_leave_their_last_words(
    redis_url: str, tmp_path: Path, path: str, exit_code: int, said: str
) -> None:
    """All that was known of a poisonous request was that it had "crashed three runners"; its input and what the runner
    had written before it died were gone."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP)
            request_id = await on.submit(app, path, b'{"tile": 9}')
            await ends(on, app, request_id)
            letter = await on.store.letters.get(app, request_id)
            assert letter is not None
            assert (letter.error_type, letter.attempts, letter.crashes) == ("poison_request", 3, 3)
            assert (letter.exit_code, letter.host) == (exit_code, on.settings.host_id)
            assert await on.store.letters.body(letter) == b'{"tile": 9}'
            heard = letter.words + "\n".join(line.message for line in letter.log)
            assert said in heard
            if path == "/crash":
                assert "Fatal Python error: Segmentation fault" in letter.words, "with the Python stack"
                assert "in crash" in letter.words
                assert "step 3 of 9" in [line.message for line in letter.log]

    run(story())


def test_an_app_that_keeps_answering_503_leaves_its_answer(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP)
            request_id = await on.submit(app, "/busy", max_attempts=2)
            await ends(on, app, request_id)
            letter = await on.store.letters.get(app, request_id)
            assert letter is not None
            assert (letter.request_id, letter.error_type, letter.attempts) == (request_id, None, 2)
            assert (letter.error, letter.words) == ("the app answered 503", '{"detail": "all tiles are taken"}')
            assert await on.store.requests.state(app, request_id) is RequestState.ERROR

    run(story())
