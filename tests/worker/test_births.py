"""Workers that are born to a zygote are what plainly started ones are, and share nothing with each other."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gpu_worker import lessons, process_tree
from gpu_worker.leftovers import supervisor_command
from gpu_worker.preparation import prepare
from scheduler.store.records import WorkerState
from tests.support.loop import run
from tests.support.waiting import wait_until
from tests.worker.apps import PROBE
from tests.worker.births import (
    FACTS,
    NUMPY,
    answer,
    children_with,
    forked,
    forked_by_agent,
    leaves,
    package,
    placed,
    ready_for,
    spawned,
)
from tests.worker.stage import agent, stage
from tests.worker.test_app_data import AS_A_USER


def test_a_forked_runner_is_what_a_started_one_is(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "heavy", "import heavy.part\n", part="")
            app = await on.deploy(FACTS.replace("{module}", "heavy"))

            first = await spawned(on, app)
            expected = await answer(on, app)
            await leaves(on, first)
            second = await forked(on, app, "heavy", "heavy.part")

            assert (first.start_kind, second.start_kind) == ("spawn", "zygote")
            assert await answer(on, app) == expected
            supervisor = psutil.Process(on.supervisors[second.worker_id].pid)
            assert [child.pid for child in supervisor.children()] == [on.runner_of(second).pid]
            assert supervisor.ppid() == os.getpid()

    run(story())


def test_runners_of_one_zygote_draw_different_numbers(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "numpy", random=NUMPY)
            app = await on.deploy(FACTS.replace("{module}", "numpy.random"))
            drawn = []
            for _ in range(2):
                worker = await forked(on, app, "numpy", "numpy.random")
                drawn.append(await answer(on, app, "/random"))
                await leaves(on, worker)

            one, other = drawn
            assert one["pid"] != other["pid"]
            assert one["random"] != other["random"]
            assert one["numpy"] != other["numpy"]

    run(story())


def test_what_a_worker_writes_into_the_root_goes_with_it(redis_url: str, tmp_path: Path) -> None:
    """The zygote sees /data through mounts of its own; two workers that shared them would read each other's files."""
    write = "open('/left-behind-by-a-test', 'w').close()"

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE.replace("os._exit(66)", f"{write}; return {{}}"))
            await forked(on, app)
            assert await answer(on, app, "/die") == {}
            await forked(on, app)
            seen = [Path(f"/proc/{on.runner_of(w).pid}/root") for w in await on.store.workers.list(app)]

            assert sorted((root / "left-behind-by-a-test").exists() for root in seen) == [False, True]
            (pid,) = on.zygotes.pids()
            assert not Path(f"/proc/{pid}/root/left-behind-by-a-test").exists()
            assert not Path("/left-behind-by-a-test").exists()

    run(story())


def test_a_zygote_knows_no_secret_and_no_bundle(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(
            redis_url, tmp_path, files={"KEEPWARM_FILES_URL": "s3://a/b", "AWS_SECRET_ACCESS_KEY": "s3cret"}
        ) as on:
            await ready_for(on.zygotes, await placed(on, await on.deploy(PROBE)))
            (pid,) = on.zygotes.pids()
            zygote = psutil.Process(pid)
            seen = json.dumps([zygote.environ(), zygote.cmdline(), zygote.cwd()])
            assert redis_url not in seen
            assert "s3cret" not in seen
            assert "bundles" not in seen
            assert not {"FAL_JOB_ID", "FAL_REVISION", "FAL_APP_NAME"} & zygote.environ().keys()
            assert zygote.num_threads() == 1
            assert {os.path.basename(file.path) for file in zygote.open_files()} <= {"null"}

    run(story())


def test_a_module_of_the_bundle_comes_before_one_imported_ahead(redis_url: str, tmp_path: Path) -> None:
    """The app's own `tools.py` is first on its path; a zygote that had imported the environment's would win."""
    source = PROBE.replace("import asyncio, os", "import asyncio, tools, os").replace(
        "os._exit(66)", "return tools.WHOSE"
    )

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "tools", "WHOSE = {'whose': 'the environment'}\n")
            app = await on.deploy(source)
            first = await forked(on, app, "tools")
            assert await answer(on, app, "/die") == {"whose": "the environment"}

            worker = await on.place(app)
            assignment = await prepare(on.store, worker, on.settings, on.builds, on.held)
            own = Path(assignment.bundle_dir).parent / "with-tools"
            own.mkdir()
            (own / "app.py").write_text(source)
            (own / "tools.py").write_text("WHOSE = {'whose': 'the app'}\n")
            await on.launch_from_zygote(replace(assignment, bundle_dir=str(own)))
            second = await on.reaches(worker, WorkerState.IDLE)

            assert second.start_kind == "spawn"
            await leaves(on, first)
            assert await answer(on, app, "/die") == {"whose": "the app"}

    run(story())


@pytest.mark.parametrize("in_front", [(), AS_A_USER], ids=["root", "user"])
def test_the_second_start_comes_from_a_zygote(redis_url: str, tmp_path: Path, in_front: tuple[str, ...]) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "heavy", part="")
            app = await on.deploy(PROBE.replace("import fal\n", "import fal\nimport heavy.part\n"))
            with agent(on, *in_front) as process:
                first = await on.reaches(await on.place(app), WorkerState.IDLE)
                second = await forked_by_agent(on, app)
                assert (first.start_kind, second.start_kind) == ("spawn", "zygote")
                assert {"environment", "spawn", "boot", "import", "setup", "total"} <= second.stages.keys()
                (file,) = (tmp_path / "starts").glob("*.json")
                assert {"heavy", "heavy.part"} <= set(lessons.read(file).modules)
                assert "app" not in lessons.read(file).modules

                # Each worker sees /data through mounts of its own, which no other one and no zygote shares.
                (zygote,) = children_with("--zygote", process.pid)
                supervisors = children_with("gpu_worker.supervisor", process.pid)
                views = [process_tree.namespaces(p.pid) for p in supervisors]
                assert views == [process_tree.namespaces(p.children()[0].pid) for p in supervisors]
                assert len({view["mnt"] for view in (*views, process_tree.namespaces(zygote.pid))}) == 3
                assert not [entry for entry in await on.log(app) if "cannot be shown" in entry.message]

                await leaves(on, first)
                record = await on.call(app, "/die", mode="direct")
                assert record.outcome is not None
                assert b"exit status 66" in record.outcome.body

                below = children_with("--zygote", process.pid)
                process.kill()
                await asyncio.to_thread(process.wait, 30)
                await asyncio.to_thread(psutil.wait_procs, below, 10)
                assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    run(story())


def test_a_killed_supervisor_takes_its_forked_runner_along(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as process:
                plain = await on.reaches(await on.place(app), WorkerState.IDLE)
                worker = await forked_by_agent(on, app)
                await on.store.workers.request_stop(app, plain.worker_id, "kill", "test")
                await on.reaches(plain, WorkerState.TERMINATED)
                await on.call(app, "/orphan")
                (supervisor,) = children_with(worker.worker_id, process.pid)
                below = supervisor.children(recursive=True)
                assert len(below) == 2

                supervisor.kill()

                ended = await on.reaches(worker, WorkerState.TERMINATED)
                assert "signal SIGKILL" in (ended.reason or "")
                await asyncio.to_thread(psutil.wait_procs, below, 10)
                assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    run(story())


def test_a_process_that_is_no_supervisor_is_told_nothing(redis_url: str, tmp_path: Path) -> None:
    """Imported packages run in the zygote: one that replaces exec would be handed the store's address."""
    impostor = (
        "import os\ntrue_exec = os.execve\n"
        "os.execve = lambda path, command, environ: true_exec('/bin/sh', ['sh', '-c', 'cat > {0}'], environ)\n"
    )

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "impostor", impostor.replace("{0}", str(tmp_path / "caught")))
            app = await on.deploy(PROBE)
            assignment = await placed(on, app, "impostor")
            await ready_for(on.zygotes, assignment)

            command = supervisor_command(on.settings, assignment.worker_id)
            assert await on.zygotes.bear(assignment, command, dict(os.environ)) is None

            assert on.zygotes.pids() == set()
            caught = tmp_path / "caught"
            await asyncio.to_thread(
                wait_until, lambda: not children_with(str(caught)), "the impostor has seen the end of it"
            )
            assert not caught.exists() or caught.read_bytes() == b""

    run(story())
