"""Commands beside a runner: they see what it sees, but for its secrets, and end with whoever waits for them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from scheduler.store import keys
from scheduler.store.records import Command, Terminal, WorkerRecord
from tests.envbuilder.builds import command_of
from tests.support.waiting import await_until
from tests.worker.apps import PROBE
from tests.worker.stage import Stage, stage

pytestmark = pytest.mark.anyio


def run(*arguments: str, **options: Any) -> Command:
    return Command(arguments, **options)


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
        done = await said(on, app, await on.store.commands.submit(app, worker.worker_id, run("python", "-c", script)))
        assert done["exit"] == b"0", done
        assert done["stdout"].decode().strip() == f"True None {worker.worker_id}"
        failing = ["sh", "-c", "echo x >&2; exit 3"]
        done = await said(on, app, await on.store.commands.submit(app, worker.worker_id, run(*failing)))
        assert (done["stderr"], done["exit"]) == (b"x\n", b"3")
        done = await said(on, app, await on.store.commands.submit(app, worker.worker_id, run("no-such-command")))
        assert (done["stderr"], done["exit"]) == (b"no-such-command: No such file or directory\n", b"127")


async def test_an_order_that_was_not_heard_comes_again_and_runs_once(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        command = ["sh", "-c", f"echo once >> {tmp_path}/runs"]
        command_id = await on.store.commands.submit(app, worker.worker_id, run(*command))
        for _ in range(5):
            await on.store.commands.renew(app, worker.worker_id, command_id)
        assert (await said(on, app, command_id))["exit"] == b"0"
        assert (tmp_path / "runs").read_text() == "once\n"
        other = await on.store.commands.submit(app, "another-worker", run("true"))
        await on.store._redis.command("PUBLISH", keys.channel_worker(worker.worker_id), f"command {other}")
        assert (await said(on, app, await on.store.commands.submit(app, worker.worker_id, run("true"))))["exit"] == b"0"
        assert await on.store.commands.read(app, other) == []


async def test_a_command_that_nobody_waits_for_is_ended(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        command_id = await on.store.commands.submit(app, worker.worker_id, run("sh", "-c", "sleep 3456 & sleep 3456"))

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
        command_id = await on.store.commands.submit(app, worker.worker_id, run(*command))
        output = keys.command_output(app, command_id)

        async def full() -> bool:
            return bool(await on.store._redis.command("XLEN", output) >= 200)

        await await_until(full, "the output to be held up")
        assert await on.store._redis.command("XLEN", output) <= 202
        assert len((await said(on, app, command_id))["stdout"]) == size


@asynccontextmanager
async def at_a_terminal(
    on: Stage, app: str, worker: WorkerRecord, *arguments: str, terminal: Terminal | None = None
) -> AsyncIterator[Typist]:
    command = run(*arguments, takes_input=True, terminal=terminal or Terminal(40, 120, "vt100"))
    command_id = await on.store.commands.submit(app, worker.worker_id, command)
    try:
        yield Typist(on, app, worker.worker_id, command_id)
    finally:
        await on.store.commands.forget(app, command_id)


@dataclass
class Typist:
    """Somebody who sits at a command's terminal."""

    on: Stage
    app: str
    worker_id: str
    command_id: str
    screen: bytes = b""
    code: int | None = None

    async def type(self, text: str) -> None:
        await self.on.store.commands.say(self.app, self.worker_id, self.command_id, "bytes", text.encode())

    async def resize(self, rows: int, columns: int) -> None:
        size = f"{rows} {columns}".encode()
        await self.on.store.commands.say(self.app, self.worker_id, self.command_id, "size", size)

    async def reads(self, text: str) -> None:
        async def there() -> bool:
            await self._look()
            return text.encode() in self.screen

        await await_until(there, f"{text!r} on the screen, which shows {self.screen!r}", interval=0.02)
        self.screen = self.screen.partition(text.encode())[2]

    async def ends(self) -> int:
        async def over() -> bool:
            await self._look()
            return self.code is not None

        await await_until(over, "the command to end", interval=0.02)
        assert self.code is not None
        return self.code

    async def _look(self) -> None:
        for kind, data in await self.on.store.commands.read(self.app, self.command_id):
            if kind == "exit":
                self.code = int(data)
            else:
                self.screen += data


async def test_a_shell_at_a_terminal(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        async with at_a_terminal(on, app, worker, "sh", "-c", "PS1='ready> ' exec sh -i") as typist:
            await typist.reads("ready> ")
            await typist.type("stty size; tty; echo $TERM $FAL_JOB_ID\n")
            await typist.reads("40 120\r\n/dev/pts/")
            await typist.reads(f"vt100 {worker.worker_id}\r\n")
            await typist.resize(50, 132)
            await typist.type("stty size\n")
            await typist.reads("50 132\r\n")
            # Not the echo of the line: a shell interrupted before it has forked waits for the sleep all the same.
            await typist.type("trap 'echo caught' INT; sh -c 'echo asleep; exec sleep 3457'\n")
            await typist.reads("asleep\r\n")
            await typist.type("\x03")
            await typist.reads("ready> ")
            await typist.type("exit 7\n")
            assert await typist.ends() == 7
        async with at_a_terminal(on, app, worker, "no-such-command") as typist:
            assert await typist.ends() == 127
            assert b"no-such-command: No such file or directory" in typist.screen
        async with at_a_terminal(on, app, worker, "cat") as typist:
            await typist.type("word\n")
            await typist.reads("word\r\nword\r\n")
            await on.store.commands.say(app, worker.worker_id, typist.command_id, "end")
            assert await typist.ends() == 0
        async with at_a_terminal(on, app, worker, "sh", "-c", "sleep 3458 & printf last") as typist:
            assert await typist.ends() == 0
            assert typist.screen == b"last"


async def test_input_without_a_terminal_reaches_the_command_whole(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        say = on.store.commands.say
        command_id = await on.store.commands.submit(app, worker.worker_id, run("sha256sum", takes_input=True))
        for _ in range(300):  # more than may wait at once
            await say(app, worker.worker_id, command_id, "bytes", b"x" * 1000)
        await say(app, worker.worker_id, command_id, "end")
        done = await said(on, app, command_id)
        assert done["stdout"].split()[0].decode() == hashlib.sha256(b"x" * 300_000).hexdigest()


async def test_whoever_leaves_a_terminal_hangs_it_up(redis_url: str, tmp_path: Path) -> None:
    async with beside_a_runner(redis_url, tmp_path) as (on, app, worker):
        async with at_a_terminal(on, app, worker, "sh", "-c", "echo begun; sleep 3459") as typist:
            await typist.reads("begun")

        async def none() -> bool:
            below = psutil.Process(on.supervisors[worker.worker_id].pid).children(recursive=True)
            return not [process for process in below if "3459" in command_of(process)]

        await await_until(none, "it to be ended")
        assert (await on.call(app)).state == "COMPLETED"
