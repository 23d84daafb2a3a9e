"""Commands beside a runner: they see what it sees, but for its secrets, and end with whoever waits for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from scheduler.store import keys
from scheduler.store.records import WorkerRecord
from tests.envbuilder.builds import command_of
from tests.support.waiting import await_until
from tests.worker.apps import PROBE
from tests.worker.stage import Stage, stage

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def beside_a_runner(redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[Stage, str, WorkerRecord]]:
    async with stage(redis_url, tmp_path) as on:
        await on.store.secrets.set("tester", "main", {"TOKEN": "0123456789"}, exposed=True)
        app = await on.deploy(PROBE)
        yield on, app, await on.start_ready(app)


async def said(on: Stage, app: str, command_id: str) -> dict[str, bytes]:
    """All that a command says until its exit, by kind."""
    found: dict[str, bytes] = {}

    async def over() -> bool:
        for kind, data in await on.store.commands.read(app, command_id):
            found[kind] = found.get(kind, b"") + data
        return "exit" in found

    await await_until(over, "the command to end", timeout=60, interval=0.02)
    await on.store.commands.forget(app, command_id)
    return found


async def test_a_command_sees_the_app_its_python_and_no_secret(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        script = "import os, fal; print(os.path.exists('app.py'), os.environ.get('TOKEN'), os.environ['FAL_JOB_ID'])"
        done = await said(on, app, await on.store.commands.submit(app, worker.worker_id, ["python", "-c", script]))
        assert done["exit"] == b"0", done
        assert done["stdout"].decode().strip() == f"True None {worker.worker_id}"
        failing = ["sh", "-c", "echo x >&2; exit 3"]
        done = await said(on, app, await on.store.commands.submit(app, worker.worker_id, failing))
        assert (done["stderr"], done["exit"]) == (b"x\n", b"3")
        done = await said(on, app, await on.store.commands.submit(app, worker.worker_id, ["no-such-command"]))
        assert (done["stderr"], done["exit"]) == (b"no-such-command: No such file or directory\n", b"127")


async def test_an_order_that_was_not_heard_comes_again_and_runs_once(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        command = ["sh", "-c", f"echo once >> {tmp_path}/runs"]
        command_id = await on.store.commands.submit(app, worker.worker_id, command)
        for _ in range(5):
            await on.store.commands.renew(app, worker.worker_id, command_id)
        assert (await said(on, app, command_id))["exit"] == b"0"
        assert (tmp_path / "runs").read_text() == "once\n"
        other = await on.store.commands.submit(app, "another-worker", ["true"])
        await on.store._redis.command("PUBLISH", keys.channel_worker(worker.worker_id), f"command {other}")
        assert (await said(on, app, await on.store.commands.submit(app, worker.worker_id, ["true"])))["exit"] == b"0"
        assert await on.store.commands.read(app, other) == []


async def test_a_command_that_nobody_waits_for_is_ended(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        command_id = await on.store.commands.submit(app, worker.worker_id, ["sh", "-c", "sleep 3456 & sleep 3456"])

        def sleepers() -> list[psutil.Process]:
            below = psutil.Process(on.supervisors[worker.worker_id].pid).children(recursive=True)
            return [process for process in below if command_of(process) == "sleep 3456"]

        async def both() -> bool:
            return len(sleepers()) == 2

        await await_until(both, "the command to run")
        await on.store.commands.forget(app, command_id)

        async def none() -> bool:
            return not sleepers()

        await await_until(none, "it to be ended")
        assert (await on.call(app)).state == "COMPLETED"


async def test_much_output_waits_for_its_reader(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        size = 8_000_000  # pieces have 32 KiB at most: more than may wait at once
        command = ["python", "-c", f"print('x' * {size}, end='')"]
        command_id = await on.store.commands.submit(app, worker.worker_id, command)
        output = keys.command_output(app, command_id)

        async def full() -> bool:
            return bool(await on.store._redis.command("XLEN", output) >= 200)

        await await_until(full, "the output to be held up")
        assert await on.store._redis.command("XLEN", output) <= 202
        assert len((await said(on, app, command_id))["stdout"]) == size
