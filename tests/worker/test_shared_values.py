"""``KVStore``: values that the apps of one owner share, without a token, through the runner's own socket."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from keepwarm import redis_server as embedded
from scheduler.store import Store, keys
from tests.support.loop import run
from tests.support.waiting import await_until
from tests.worker.stage import Stage, stage

APP = """
import threading
from pathlib import Path

import fal
from fal.toolkit import KVStore, KVStoreException
from pydantic import BaseModel

at_import = KVStore("shared").get("nothing")


class Input(BaseModel):
    key: str = "k"
    value: str | None = None
    ttl: int | None = None
    db: str = "shared"
    size: int = 0


class Probe(fal.App, max_multiplexing=8):
    def setup(self):
        self.kv = KVStore("shared")
        self.kv.set("set up", "by setup", ttl=3600)

    @fal.endpoint("/get")
    def get(self, input: Input) -> dict:
        return {"value": KVStore(input.db).get(input.key), "at_import": at_import}

    @fal.endpoint("/get-on-the-loop")
    async def get_on_the_loop(self, input: Input) -> dict:
        return {"value": self.kv.get(input.key)}

    @fal.endpoint("/set")
    def set(self, input: Input) -> dict:
        try:
            KVStore(input.db).set(input.key, input.value if input.value is not None else "x" * input.size, input.ttl)
        except KVStoreException as error:
            return {"error": str(error)}
        return {}

    @fal.endpoint("/delete")
    def delete(self, input: Input) -> dict:
        self.kv.delete(input.key)
        self.kv.delete(input.key)
        return {}

    @fal.endpoint("/go-on")
    def go_on(self) -> dict:
        def work():
            while True:
                try:
                    self.kv.set("k", "v")
                except KVStoreException as error:
                    Path("/data/failure.txt").write_text(str(error))
                    return
        threading.Thread(target=work, daemon=True).start()
        return {}

    @fal.endpoint("/crowd")
    def crowd(self) -> dict:
        found = []
        def work(number):
            for turn in range(20):
                self.kv.set(f"crowd-{number}", f"{number}.{turn}")
                found.append(self.kv.get(f"crowd-{number}") == f"{number}.{turn}")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return {"right": found.count(True), "wrong": found.count(False)}
"""


async def ask(on: Stage, app: str, path: str, **body: Any) -> dict[str, Any]:
    record = await on.call(app, path, json.dumps(body).encode())
    assert record.outcome is not None
    assert record.outcome.status == 200, record.outcome.body
    answer: dict[str, Any] = json.loads(record.outcome.body)
    return answer


async def lifetime_ms(store: Store, key: str) -> int:
    left: int = await store.values._redis.command("PTTL", keys.value("tester", "shared", key))
    return left


def test_values_are_shared_by_the_apps_of_one_owner(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            first, second = await on.deploy(APP), await on.deploy(APP)
            await on.start_ready(first)
            await on.start_ready(second)

            assert await ask(on, first, "/get") == {"value": None, "at_import": None}
            assert await ask(on, first, "/set", value='{"ü": 1}') == {}
            assert (await ask(on, second, "/get"))["value"] == '{"ü": 1}'
            assert (await ask(on, second, "/get-on-the-loop", key="set up"))["value"] == "by setup"
            assert (await ask(on, second, "/get", db="another"))["value"] is None
            assert await ask(on, second, "/delete") == {}
            assert (await ask(on, first, "/get"))["value"] is None
            assert await on.store.values.get("somebody else", "shared", "set up") is None

    run(story())


def test_a_value_lives_as_long_as_it_was_given(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP)
            await on.start_ready(app)

            assert await ask(on, app, "/set", key="minute", value="v", ttl=60) == {}
            assert await ask(on, app, "/set", key="month", value="v") == {}
            assert 0 < await lifetime_ms(on.store, "minute") <= 60_000
            assert 29 * 86_400_000 < await lifetime_ms(on.store, "month") <= 30 * 86_400_000
            for ttl in (59, 30 * 86_400 + 1, 0, -1):
                refused = await ask(on, app, "/set", key="never", value="v", ttl=ttl)
                assert "60 to 2592000" in refused["error"]
            assert (await ask(on, app, "/get", key="never"))["value"] is None

    run(story())


def test_what_does_not_fit_is_refused_with_the_reason(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP)
            await on.start_ready(app)

            assert await ask(on, app, "/set", size=1024 * 1024) == {}
            large = await ask(on, app, "/set", size=1024 * 1024 + 1)
            assert "1048577 bytes; the limit is 1048576" in large["error"]
            assert "1 to 512 bytes" in (await ask(on, app, "/set", key="k" * 513, value="v"))["error"]
            assert "1 to 255 characters" in (await ask(on, app, "/set", db="", value="v"))["error"]

    run(story())


def test_many_threads_and_the_loop_ask_at_once(redis_url: str, tmp_path: Path) -> None:
    """The answers arrive on the socket that requests arrive on: none may be lost, and none may go to another thread."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(APP, max_multiplexing=8)
            await on.start_ready(app)

            crowd = await on.submit(app, "/crowd")
            for _ in range(20):
                await ask(on, app, "/get-on-the-loop", key="set up")
            record = await on.result(app, crowd)

            assert record.outcome is not None
            assert json.loads(record.outcome.body) == {"right": 320, "wrong": 0}

    run(story())


def test_a_store_that_is_away_is_an_exception_and_no_wait_for_ever(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    process = embedded.start(folder, "everysec")
    failure = tmp_path / "data" / "failure.txt"

    async def story() -> None:
        async with stage(f"unix://{embedded.socket_path(folder)}", tmp_path) as on:
            app = await on.deploy(APP)
            await on.start_ready(app)
            await ask(on, app, "/go-on")
            process.kill()
            process.wait(20)

            async def failed() -> bool:
                return failure.exists() and failure.read_text() != ""

            await await_until(failed, "the app has been told")

    try:
        run(story())
    finally:
        process.kill()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
    assert failure.read_text() == (
        "cannot set 'k' in 'shared': the platform's store does not answer; try again in a moment"
    )


@pytest.mark.anyio
async def test_names_cannot_reach_into_another_database(redis_url: str, tmp_path: Path) -> None:
    async with stage(redis_url, tmp_path) as on:
        values = on.store.values
        await values.set("alice", "a", "x}:k", b"1", 60)
        assert await values.get("alice", "a}:x", "k") is None
