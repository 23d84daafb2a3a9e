"""From a stored request to its stored result, through a real supervisor and a real runner."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

from scheduler.store.records import RequestRecord, RequestState, WorkerState
from tests.support.loop import run
from tests.support.waiting import await_until
from tests.worker.apps import PROBE
from tests.worker.stage import Stage, stage


def answer(record: RequestRecord) -> dict[str, object]:
    assert record.outcome is not None
    content: dict[str, object] = json.loads(record.outcome.body)
    return content


def test_setup_runs_once_and_its_state_stays(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)

            first, second = await on.call(app), await on.call(app)

            assert first.state is RequestState.COMPLETED
            assert first.worker_id == worker.worker_id
            assert first.outcome is not None
            assert first.outcome.inference_seconds is not None
            assert (answer(first)["calls"], answer(second)["calls"]) == (1, 2)
            assert (answer(first)["setups"], answer(second)["setups"]) == (1, 1)
            record = await on.reaches(worker, WorkerState.IDLE)
            assert record.served == 2
            assert {"environment", "spawn", "boot", "import", "setup", "total"} <= record.stages.keys()
            assert record.stages["total"] >= record.stages["boot"]
            revision = await on.store.apps.revision(app, "r1")
            assert revision is not None
            assert '"/slow"' in (revision.openapi or "")

    run(story())


def test_a_request_arrives_and_leaves_as_it_is(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)
            large = bytes(range(256)) * 4096

            echoed = await on.call(app, "/echo", large)
            missing = await on.call(app, "/nowhere")

            assert echoed.outcome is not None
            assert echoed.outcome.body == large
            assert ("x-seen", "application/json") in echoed.outcome.headers
            assert missing.outcome is not None
            assert (missing.state, missing.outcome.status) == (RequestState.ERROR, 404)

    run(story())


def test_user_code_sees_no_secret_and_no_descriptor_of_ours(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            seen = answer(await on.call(app, "/environment"))

            environ = seen["environ"]
            assert isinstance(environ, dict)
            assert not [name for name in environ if name.startswith("KEEPWARM")]
            assert redis_url not in json.dumps(environ)
            assert "PYTHONDONTWRITEBYTECODE" not in environ
            assert str(seen["cwd"]).startswith(str(tmp_path / "bundles"))
            assert isinstance(seen["fds"], int)
            assert seen["fds"] < 15

    run(story())


def test_as_many_at_once_as_the_app_allows(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE, max_multiplexing=4)
            ids = [await on.submit(app, "/slow", b'{"seconds": 0.3}') for _ in range(8)]
            await on.start_ready(app)

            results = [await on.result(app, request_id) for request_id in ids]

            assert [record.state for record in results] == [RequestState.COMPLETED] * 8
            assert max(int(str(answer(record)["most_at_once"])) for record in results) == 4

    run(story())


def test_what_a_request_prints_is_in_its_log_when_its_result_is(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            record = await on.call(app)

            lines = await on.store.logs.read(app, request_id=record.request_id)
            assert [(line.level, line.message) for line in lines] == [("STDOUT", "call 1")]
            assert any(line.message == "setup runs" and line.request_id is None for line in await on.log(app))

    run(story())


def test_a_saved_file_is_in_the_store_before_the_answer_that_names_it(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            url = str(answer(await on.call(app, "/picture"))["url"])

            prefix, _, rest = url.partition("/cdn/files/")
            assert prefix == "http://platform.test:8000"
            stored = on.store.files.open(rest.split("/")[0])
            assert stored is not None
            assert b"".join(on.store.files.blocks(stored, 0, stored.size)) == b"a picture"
            assert (stored.name, stored.content_type) == ("cat.png", "image/png")

    run(story())


def test_a_cancelled_request_frees_its_worker(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)
            slow = await on.submit(app, "/slow", b'{"seconds": 60}')
            await on.reaches(worker, WorkerState.RUNNING)

            assert await on.store.requests.cancel(app, slow) == "cancelled_running"
            after = await on.call(app)

            assert after.state is RequestState.COMPLETED
            assert (await on.result(app, slow)).state is RequestState.CANCELLED

    run(story())


def test_a_queued_streamed_answer_is_gathered(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            record = await on.call(app, "/stream", b'{"pieces": 200}')

            assert record.outcome is not None
            assert record.outcome.body == b"".join(b"%06d" % number for number in range(200))

    run(story())


async def read_stream(on: Stage, app: str, request_id: str) -> list[tuple[str, bytes]]:
    """Everything that a gateway would read of a streamed answer."""
    pieces: list[tuple[str, bytes]] = []
    after = "0"
    async with asyncio.timeout(20):
        while not pieces or pieces[-1][0] != "end":
            for entry, kind, data in await on.store.requests.read_output(app, request_id, after):
                after = entry
                pieces.append((kind, data))
            await asyncio.sleep(0.005)
    return pieces


def test_a_direct_streamed_answer_comes_in_pieces(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            request_id = await on.submit(app, "/stream", b'{"pieces": 5, "pause": 0.05}', "direct")
            pieces = await read_stream(on, app, request_id)

            assert pieces[0][0] == "start"
            assert len([kind for kind, _ in pieces if kind == "chunk"]) >= 3
            assert b"".join(data for kind, data in pieces if kind == "chunk") == b"000000000001000002000003000004"
            assert pieces[-1] == ("end", b"")
            assert (await on.result(app, request_id)).state is RequestState.COMPLETED

    run(story())


def test_a_stream_that_breaks_off_says_so(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            await on.start_ready(app)

            request_id = await on.submit(app, "/stream", b'{"pieces": 2, "fail": true}', "direct")
            pieces = await read_stream(on, app, request_id)
            record = await on.result(app, request_id)

            assert b"half way" in pieces[-1][1]
            assert (record.state, record.error_type) == (RequestState.ERROR, "runner_incomplete_response")

    run(story())


def test_a_slow_reader_holds_the_app_back(redis_url: str, tmp_path: Path) -> None:
    """Without back-pressure the whole answer would pile up in Redis: here 60 MB for a reader that reads nothing."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE, max_multiplexing=2)
            await on.start_ready(app)
            body = json.dumps({"pieces": 600, "size": 100_000}).encode()

            request_id = await on.submit(app, "/stream", body, "direct")
            await asyncio.sleep(1.0)  # the absence of progress can only be seen by waiting for it
            sent = int(str(answer(await on.call(app, "/sent"))["sent"]))
            assert 64 <= sent < 200

            pieces = await read_stream(on, app, request_id)
            assert sum(len(data) for kind, data in pieces if kind == "chunk") == 600 * 100_006

    run(story())


async def scripts_run(on: Stage) -> int:
    """How many scripts Redis has run so far."""
    stats = await on.store._redis.command("INFO", "commandstats")
    found = re.search(rb"cmdstat_evalsha:calls=(\d+)", stats)
    return int(found[1]) if found else 0


def test_a_busy_worker_needs_one_round_trip_per_request(redis_url: str, tmp_path: Path) -> None:
    """``finish`` hands out the next claim: with requests waiting, the worker asks Redis nothing else."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            ids = [await on.submit(app, "/echo") for _ in range(300)]
            before = await scripts_run(on)
            await on.start_ready(app)

            async def all_done() -> bool:
                return await on.store.requests.state(app, ids[-1]) is RequestState.COMPLETED

            await await_until(all_done, "the last request is done", interval=0.02)
            assert 300 <= await scripts_run(on) - before < 325

    run(story())


def test_a_request_that_cannot_be_passed_on_ends_alone(redis_url: str, tmp_path: Path) -> None:
    """A header with a Chinese word could not be encoded for the runner; the error left the slot, and the worker ended
    with everything that it held."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            worker = await on.start_ready(app)

            bad = await on.submit(app, "/", headers=(("x-fal-endpoint", "me/app/你好"),))
            refused = await on.result(app, bad)
            served = await on.call(app, "/item/你好")
            as_it_is = await on.call(app, "/item/%41 100%")

            assert refused.outcome is not None
            assert (refused.outcome.status, refused.error_type, refused.attempt) == (400, "bad_request", 1)
            assert answer(served) == {"name": "你好"}
            assert answer(as_it_is) == {"name": "%41 100%"}
            assert served.worker_id == worker.worker_id

    run(story())


LARGE = """
import fal
import fastapi
from pydantic import BaseModel

class Input(BaseModel):
    size: int = 0

class Probe(fal.App):
    @fal.endpoint("/")
    def run(self, request: Input) -> dict:
        return {"text": "x" * request.size}

    @fal.endpoint("/busy-once")
    def busy_once(self, request: Input, response: fastapi.Response) -> dict:
        response.status_code = 200 if hasattr(self, "asked") else 503
        self.asked = True
        response.headers["x-fal-stop-runner"] = "false"
        return {"text": "x" * (request.size if response.status_code == 503 else 1)}
"""


def test_a_result_that_finds_no_room_ends_its_request(redis_url: str, tmp_path: Path) -> None:
    """The disk was full when a large result came: nothing caught it, the lease was renewed for ever, and the caller
    waited for ever. (A file in the folder's place refuses every write, also for root.)"""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(LARGE)
            worker = await on.start_ready(app)
            blobs = on.settings.data_dir / "blobs"
            if blobs.exists():
                shutil.rmtree(blobs)
            blobs.write_text("no folder")

            lost = await on.call(app, body=b'{"size": 400000}')
            served = await on.call(app, body=b'{"size": 10}')

            assert lost.outcome is not None
            assert (lost.outcome.status, lost.error_type) == (507, "internal_error")
            assert b"could not be stored" in lost.outcome.body
            assert answer(served) == {"text": "x" * 10}
            assert served.worker_id == worker.worker_id
            asked = await on.submit(app, "/busy-once", b'{"size": 400000}')
            await on.promoted(app, asked)
            tried_again = await on.result(app, asked)
            assert (answer(tried_again), tried_again.attempt) == ({"text": "x"}, 2)

    run(story())
