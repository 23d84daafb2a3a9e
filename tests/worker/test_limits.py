"""F06: a runner that forks, threads or eats without end meets the limits of its control group; everybody else works on.

Where the tests may not make control groups they prove the other half: runners run without, and the log says so.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from fal._spec import ScalingSpec

from gpu_worker import cgroups
from gpu_worker.runner_group import MEMORY, TASKS, RunnerGroup
from gpu_worker.settings import AgentSettings, runner_limits
from scheduler.store.records import RequestState, WorkerRecord, WorkerState
from tests.support.loop import run
from tests.support.processes import command_of
from tests.support.waiting import wait_until
from tests.worker.apps import PROBE
from tests.worker.stage import Stage, agent, stage
from tests.worker.test_agent import below, stopped
from tests.worker.test_failures import answer, failed_start, has_ended
from tests.worker.test_letters import ends

#: Each ends by itself after a while, should nothing else end it.
BOMBS = """
import os, threading, time
import fal

UNTIL = time.monotonic() + 15


class Probe(fal.App):
    @fal.endpoint("/forks")
    def forks(self) -> dict:
        while time.monotonic() < UNTIL:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                time.sleep(0.05)
        os._exit(1)

    @fal.endpoint("/threads")
    def threads(self) -> dict:
        enough = threading.Event()
        try:
            for number in range(1000):
                threading.Thread(target=enough.wait).start()
        except RuntimeError as error:
            return {"refused": str(error), "pid": os.getpid()}
        finally:
            enough.set()

    @fal.endpoint("/memory")
    def memory(self) -> dict:
        eat()
"""
EAT = """

def eat():
    eaten = [b"x" * 2**24 for _ in range(40)]  # 640 MB
    raise RuntimeError("it was not ended")
"""
EATS_IN_SETUP = (
    """
import fal


class Probe(fal.App):
    def setup(self):
        eat()

    @fal.endpoint("/")
    def nothing(self) -> dict: ...
"""
    + EAT
)
TASKS_LIMIT, MEMORY_LIMIT = 64, 256 * 1024**2
#: A host that has no control groups to write to.
WITHOUT_GROUPS = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t tmpfs none /sys/fs/cgroup && mount -o remount,ro /sys/fs/cgroup && exec "$@"',
    "sh",
)


def groups_of(supervisor: int) -> dict[str, Path]:
    """The folders of the group that a supervisor has made, by controller."""
    found = {}
    for controller in (TASKS, MEMORY):
        for folder in cgroups.find(controller).folder.glob(f"keepwarm-*-{supervisor}-*"):
            found[controller] = folder
    return found


def limited_here() -> str | None:
    """Why groups with limits cannot be made in this process's own group, or None."""
    try:
        for controller in (TASKS, MEMORY):
            if not cgroups.check(controller).enabled(controller):
                return f"{controller} is not enabled"
    except cgroups.CannotLimit as reason:
        return str(reason)
    return None


@asynccontextmanager
async def bombs_and_neighbour(
    redis_url: str, tmp_path: Path, request_timeout: float = 60.0
) -> AsyncIterator[tuple[Stage, str, str]]:
    """A stage with limits, an app of bombs, and an app of another worker that must not notice."""
    async with stage(redis_url, tmp_path, runner_tasks=TASKS_LIMIT, runner_memory=MEMORY_LIMIT) as on:
        bombs, neighbour = (
            await on.deploy(BOMBS + EAT, scaling=ScalingSpec(request_timeout=request_timeout)),
            await on.deploy(PROBE),
        )
        await on.start_ready(neighbour)
        yield on, bombs, neighbour


async def start_limited(on: Stage, app: str) -> tuple[WorkerRecord, dict[str, Path]] | None:
    """A worker and its group, which is looked at before any bomb goes off; None where there are no groups."""
    worker = await on.start_ready(app)
    if (why := limited_here()) is not None:
        assert (await on.call(app, "/threads")).state is RequestState.ERROR, why  # a thousand are no harm
        return None
    runner, groups = on.runner_of(worker), groups_of(on.supervisors[worker.worker_id].pid)
    assert set(groups) == {TASKS, MEMORY}
    assert all(cgroups.pids(folder) == {runner.pid} for folder in groups.values())
    assert (groups[TASKS] / "pids.max").read_text() == f"{TASKS_LIMIT}\n"
    return worker, groups


async def all_is_well(on: Stage, neighbour: str) -> None:
    assert (await on.call(neighbour)).state is RequestState.COMPLETED


def test_a_fork_bomb_meets_its_limit_and_is_cleared_away(redis_url: str, tmp_path: Path) -> None:
    """What forks faster than anybody counts took the machine's 32,768 process numbers: nothing else could start."""

    async def story() -> None:
        async with bombs_and_neighbour(redis_url, tmp_path, request_timeout=3.0) as (on, bombs, neighbour):
            if (limited := await start_limited(on, bombs)) is None:
                return
            worker, groups = limited
            request_id = await on.submit(bombs, "/forks")

            def full() -> bool:
                return cgroups.counter(groups[TASKS] / "pids.events", "max") > 0

            await asyncio.to_thread(wait_until, full, "the bomb has met its limit")
            there = cgroups.pids(groups[TASKS])
            assert len(there) > 10
            await all_is_well(on, neighbour)

            record = await on.result(bombs, request_id)
            assert record.error_type in ("request_timeout", "runner_connection_timeout")
            await on.reaches(worker, WorkerState.TERMINATED)
            assert await asyncio.to_thread(on.ended, worker) == 0
            assert not any(folder.exists() for folder in groups.values())
            await on.logged(bombs, f"may have {TASKS_LIMIT} processes and threads (KEEPWARM_RUNNER_TASKS)")
            await all_is_well(on, neighbour)
            await on.start_ready(bombs)

    run(story())


def test_a_thread_bomb_meets_its_limit_and_the_runner_serves_on(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with bombs_and_neighbour(redis_url, tmp_path) as (on, bombs, neighbour):
            if await start_limited(on, bombs) is None:
                return

            first = answer(await on.call(bombs, "/threads"))

            assert first["refused"] == "can't start new thread"
            assert answer(await on.call(bombs, "/threads")) == first, "of the same process"
            await on.logged(bombs, f"may have {TASKS_LIMIT} processes and threads (KEEPWARM_RUNNER_TASKS)")
            await all_is_well(on, neighbour)

    run(story())


def test_a_memory_bomb_is_a_crash_that_says_why(redis_url: str, tmp_path: Path) -> None:
    """All that was known was "signal SIGKILL (out of memory?)", and the kernel chose among everybody's processes."""
    why = "out of memory: the runner reached its limit of 0.25 GB"

    async def story() -> None:
        async with bombs_and_neighbour(redis_url, tmp_path) as (on, bombs, neighbour):
            if (limited := await start_limited(on, bombs)) is None:
                return
            worker, groups = limited

            record = await on.call(bombs, "/memory", mode="direct")

            assert record.error_type == "runner_disconnected"
            assert answer(record)["detail"] == f"The runner ended before it answered: {why}."
            assert (await on.reaches(worker, WorkerState.TERMINATED)).reason == why
            assert await asyncio.to_thread(on.ended, worker) == 0
            assert not any(folder.exists() for folder in groups.values())
            await on.logged(bombs, f"A process was ended: {why} (KEEPWARM_RUNNER_MEMORY_GB).")

            request_id = await on.submit(bombs, "/memory")
            await ends(on, bombs, request_id)
            letter = await on.store.letters.get(bombs, request_id)
            assert letter is not None
            assert (letter.error_type, letter.crashes, letter.exit_code) == ("poison_request", 3, -9)
            assert why in letter.error
            await all_is_well(on, neighbour)

    run(story())


def test_a_start_that_takes_too_much_memory_says_so(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path, runner_memory=MEMORY_LIMIT) as on:
            app = await on.deploy(EATS_IN_SETUP)

            _, error = await failed_start(on, app)

            limited = "out of memory: the runner reached its limit of 0.25 GB during setup()"
            assert error == (limited if limited_here() is None else "setup() failed: RuntimeError: it was not ended")

    run(story())


@dataclass
class Remains:
    """What there is of a worker once its supervisor is killed."""

    supervisor: psutil.Process
    processes: list[psutil.Process]
    groups: dict[str, Path]

    def gone(self) -> bool:
        return not any(folder.exists() for folder in self.groups.values()) and all(map(has_ended, self.processes))


async def served_with_an_orphan(on: Stage, app: str, process: subprocess.Popen[bytes]) -> Remains:
    worker = await on.place(app)
    await on.reaches(worker, WorkerState.IDLE)
    await on.call(app, "/orphan")
    supervisor = next(one for one in below(process) if "gpu_worker.supervisor" in command_of(one))
    processes = supervisor.children(recursive=True)
    assert len(processes) >= 2
    groups = groups_of(supervisor.pid)
    assert bool(groups) == (limited_here() is None)
    return Remains(supervisor, processes, groups)


def test_an_agent_clears_away_what_a_dead_supervisor_leaves(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as process:
                remains = await served_with_an_orphan(on, app, process)

                remains.supervisor.kill()

                await asyncio.to_thread(wait_until, remains.gone, "the runner, its orphan and the group have gone")

    run(story())


def test_the_next_agent_clears_away_what_the_last_one_and_its_supervisors_leave(redis_url: str, tmp_path: Path) -> None:
    """Whoever detached itself from a runner lived on when everybody who knew of it was killed at once."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as process:
                remains = await served_with_an_orphan(on, app, process)
                remains.supervisor.suspend()  # or it would clear up
                process.kill()
                await stopped(process)
                remains.supervisor.kill()
                if limited_here() is not None:
                    return
                assert all(folder.exists() for folder in remains.groups.values())
            with agent(on):
                await asyncio.to_thread(wait_until, remains.gone, "the runner, its orphan and the group have gone")

    run(story())


def test_a_host_without_control_groups_says_so_and_runs_apps_all_the_same(
    redis_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on, *WITHOUT_GROUPS, KEEPWARM_RUNNER_MEMORY_GB="0.25") as process:
                await on.place(app)
                assert (await on.call(app)).state is RequestState.COMPLETED
                process.terminate()
                assert await stopped(process) == 0
            assert [entry.message for entry in await on.log(app) if "limits" in entry.message] == []

    run(story())
    said = [line for line in capfd.readouterr().err.splitlines() if "nothing limits" in line]
    assert [line.partition(":")[0] for line in said] == ["WARNING gpu_worker.agent"] * 2
    assert "nothing limits the processes and threads of runners: " in said[0]
    assert "nothing limits the memory of runners: " in said[1]


def test_limits_are_settings() -> None:
    given = {"KEEPWARM_RUNNER_TASKS": "500", "KEEPWARM_RUNNER_MEMORY_GB": "1.5"}
    settings = AgentSettings.from_env({"KEEPWARM_REDIS_URL": "redis://x"} | given)
    assert (settings.runner_tasks, settings.runner_memory) == (500, 1536 * 1024**2)
    assert runner_limits({}) == (8192, 0)
    assert runner_limits({"KEEPWARM_RUNNER_TASKS": "0", "KEEPWARM_RUNNER_MEMORY_GB": "0"}) == (0, 0)
    for tasks in ("many", "7"):
        with pytest.raises(ValueError, match="KEEPWARM_RUNNER_TASKS"):
            runner_limits({"KEEPWARM_RUNNER_TASKS": tasks})
    for memory in ("much", "nan", "inf", "-1", "0.01"):
        with pytest.raises(ValueError, match="KEEPWARM_RUNNER_MEMORY_GB"):
            runner_limits({"KEEPWARM_RUNNER_MEMORY_GB": memory})


def test_what_is_refused_because_all_ends_is_no_complaint() -> None:
    """An app that started processes while its worker was ended was told that it had too many."""
    if (group := RunnerGroup.make("w-ended", {TASKS: 100})) is None:
        assert limited_here() is not None
        return
    starts = "import os, sys, time; sys.stdin.read(); [os.fork() for _ in range(9)]"
    with subprocess.Popen([sys.executable, "-c", starts], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as popen:
        group.kill()
        group.add(popen.pid)  # in the middle of it, as far as the kernel is concerned
        assert popen.stdin is not None
        popen.stdin.close()
        assert popen.wait(20) == 1, "it was refused"
    assert group.complaints() == []
    assert group.remove()
