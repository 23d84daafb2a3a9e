"""Which zygotes there are, and that every doubt about one means a plain start."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gpu_worker import lessons
from gpu_worker.assignment import Assignment
from gpu_worker.leftovers import supervisor_command
from gpu_worker.preparation import prepare
from gpu_worker.settings import AgentSettings, ZygoteLimits
from gpu_worker.zygote_process import ZygoteProcess
from gpu_worker.zygotes import Zygotes
from scheduler.store.records import WorkerState
from tests.support.loop import run
from tests.support.waiting import await_until, wait_until
from tests.worker.apps import PROBE
from tests.worker.births import FACTS, answer, forked, leaves, package, placed, ready_for, spawned
from tests.worker.stage import stage

REFUSED = {
    "a process": "import subprocess\nprocess = subprocess.Popen(['sleep', '60'])\n",
    "a socket": "import socket\nkept = socket.socket()\n",
    "CUDA": "import sys\nsys.modules['torch'] = sys.modules[__name__]\nimport os\n"
    "class cuda:\n    touched = False\n    _is_in_bad_fork = classmethod(lambda cls: cls.touched)\n"
    "    is_initialized = classmethod(lambda cls: False)\n"
    "os.register_at_fork(after_in_child=lambda: setattr(cuda, 'touched', True))\n",
    "a death": "import os\nos.register_at_fork(after_in_child=lambda: os._exit(9))\n",
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_environment_that_cannot_be_forked_is_remembered(redis_url: str, tmp_path: Path, what: str) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(
                tmp_path, "unforkable", f"if 'zygote' in __import__('sys').orig_argv[-3]:\n{_indented(REFUSED[what])}"
            )
            app = await on.deploy(PROBE)
            assignment = await placed(on, app, "unforkable")
            file = assignment.lessons_file

            async def refused() -> bool:
                on.zygotes.look([assignment])
                return lessons.read(file).no_zygote is not None

            await await_until(refused, "the refusal is remembered", interval=0.02)

            assert on.zygotes.pids() == set()
            on.zygotes.look([assignment])
            assert on.zygotes.pids() == set()
            assert await on.zygotes.bear(assignment, ["unused"], {}) is None
            assert (await spawned(on, app)).start_kind == "spawn"

    run(story())


def test_a_package_that_starts_threads_is_left_out(redis_url: str, tmp_path: Path) -> None:
    """onnxruntime starts one at its import: without it, and whoever imports it, the rest can still be forked."""
    threaded = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "quiet")
            package(tmp_path, "outer", "import threaded\n")
            package(tmp_path, "threaded", threaded)
            app = await on.deploy(FACTS.replace("{module}", "quiet, outer"))
            worker = await on.place(app)
            assignment = await prepare(on.store, worker, on.settings, on.builds, on.held)
            await on.launch_from_zygote(assignment, "outer", "threaded", "quiet")
            ready = await on.reaches(worker, WorkerState.IDLE)

            assert ready.start_kind == "zygote"
            known = lessons.read(assignment.lessons_file)
            assert (known.left_out, known.no_zygote) == (("outer", "threaded"), None)

    run(story())


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_zygote_that_does_not_answer_costs_a_plain_start(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            assignment = await placed(on, app)
            await ready_for(on.zygotes, assignment)
            (pid,) = on.zygotes.pids()
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the zygote has stopped")

            command = supervisor_command(on.settings, assignment.worker_id)
            assert await on.zygotes.bear(assignment, command, dict(os.environ)) is None

            on.zygotes.look([])
            assert on.zygotes.pids() == set()
            assert lessons.read(assignment.lessons_file).no_zygote is None

    run(story())


def test_one_that_knows_another_platform_is_not_used(redis_url: str, tmp_path: Path) -> None:
    """A client that is imported ahead reads at its import where it will go."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            assignment = await placed(on, await on.deploy(PROBE))
            await ready_for(on.zygotes, assignment)
            moved = replace(assignment, platform_environ={"FAL_RUN_HOST": "gpu.example/run"})
            command = supervisor_command(on.settings, assignment.worker_id)

            assert await on.zygotes.bear(moved, command, dict(os.environ)) is None
            assert on.zygotes.pids() == set()
            assert lessons.read(assignment.lessons_file).no_zygote is None

    run(story())


def test_number_memory_and_age_are_bounded(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            one = await placed(on, app)
            others = [replace(one, lessons_file=f"{one.lessons_file}-{number}") for number in range(2)]
            for other in others:
                assert other.lessons_file is not None
                lessons.write(other.lessons_file, lessons.Lessons(modules=("fastapi",)))
            two, three = others
            zygotes = Zygotes(ZygoteLimits(count=2), on.builds)
            try:
                for assignment in (one, two):
                    await ready_for(zygotes, assignment)
                await zygotes.bear(one, ["/bin/true"], {})  # no supervisor, and so its end
                await ready_for(zygotes, three)
                assert [zygotes.can_bear(a) for a in (one, two, three)] == [False, True, True]

                zygotes._limits = ZygoteLimits(count=2, memory=1)
                zygotes._bounds_at = 0.0
                zygotes.look([])
                assert zygotes.pids() == set()
                zygotes._limits = ZygoteLimits(count=2)
                zygotes._seen.clear()
                zygotes.look([two, three])
                (started,) = zygotes._zygotes
                assert [started] == [two.lessons_file], "the last one exceeded the limit by itself"
            finally:
                zygotes.close()

            idle = Zygotes(ZygoteLimits(idle_seconds=0.0), on.builds)
            try:
                await _ready_or_gone(idle, one)
                idle._bounds_at = 0.0
                idle.look([one])
                assert idle.pids() == set()
                idle.look([one])
                assert idle.pids() == set(), "it comes back with the next start, not by itself"
            finally:
                idle.close()

    run(story())


async def _ready_or_gone(zygotes: Zygotes, assignment: Assignment) -> None:
    zygotes._bounds_at = float("inf")
    await ready_for(zygotes, assignment)


def test_no_zygotes_at_all(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            assignment = await placed(on, app)
            off = Zygotes(ZygoteLimits(count=0), on.builds)
            off.look([assignment])
            assert off.pids() == set()

    run(story())


def test_bounds_are_settings() -> None:
    needed = {"KEEPWARM_REDIS_URL": "unix:///r"}
    given = {"KEEPWARM_ZYGOTES": "2", "KEEPWARM_ZYGOTES_MAX_BYTES": "1000", "KEEPWARM_ZYGOTE_IDLE_SECONDS": "60"}
    assert AgentSettings.from_env(needed | given).zygotes == ZygoteLimits(2, 1000, 60.0)
    assert AgentSettings.from_env(needed | {"KEEPWARM_ZYGOTES": "0"}).zygotes.count == 0
    assert AgentSettings.from_env(needed).zygotes.memory < psutil.virtual_memory().total
    with pytest.raises(ValueError, match="KEEPWARM_ZYGOTES='many' is not a whole number"):
        AgentSettings.from_env(needed | {"KEEPWARM_ZYGOTES": "many"})


def test_a_start_that_fails_only_when_forked_is_not_tried_twice(redis_url: str, tmp_path: Path) -> None:
    only_forked = (
        "    def setup(self):\n        if '--zygote' in sys.orig_argv: raise RuntimeError('a lock is held for ever')\n"
    )

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE.replace("    def setup(self):\n", only_forked, 1))
            worker = await on.place(app)
            assignment = await prepare(on.store, worker, on.settings, on.builds, on.held)
            await on.launch_from_zygote(assignment)
            await on.reaches(worker, WorkerState.TERMINATED)

            assert lessons.read(assignment.lessons_file).doubted
            assert await on.zygotes.bear(assignment, ["unused"], {}) is None
            await spawned(on, app)

            def settled() -> bool:
                return lessons.read(assignment.lessons_file).no_zygote is not None

            await asyncio.to_thread(wait_until, settled, "the environment is not forked any more")

    run(story())


def test_a_forked_start_says_nothing_about_modules_and_a_plain_one_replaces_them() -> None:
    known = lessons.Lessons(modules=("a",), files=("/data/a",), doubted=True)
    forked = lessons.after_start(known, ["a", "b"], ["/data/b"], cpu_fallback_for=None, forked=True)
    assert (forked.modules, forked.files, forked.no_zygote, forked.doubted) == (("a",), ("/data/b",), None, False)
    plain = lessons.after_start(
        replace(known, doubted=False), ["b", "x" * 1000], [], cpu_fallback_for=None, forked=False
    )
    assert (plain.modules, plain.no_zygote) == (("b",), None)


def test_what_is_imported_after_the_app_set_a_variable_is_not_imported_ahead(redis_url: str, tmp_path: Path) -> None:
    """Libraries read HF_HOME and its like once, at their import: in a zygote that would be before the app set it."""
    reads = "import os\nSEEN = os.environ.get('SETTING')\n"
    source = """
import os
import fal, quiet, sets
os.environ["SETTING"] = "the app's"
import reads


class Probe(fal.App):
    @fal.endpoint("/")
    def run(self) -> dict:
        return {"seen": reads.SEEN}
"""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "quiet")
            package(tmp_path, "sets", "import os\nos.environ['OF_A_LIBRARY'] = '1'\n")
            package(tmp_path, "reads", reads)
            app = await on.deploy(source)
            first = await spawned(on, app)
            expected = await answer(on, app)

            def learned() -> set[str]:
                return {name for file in (tmp_path / "starts").glob("*.json") for name in lessons.read(file).modules}

            known = await asyncio.to_thread(wait_until, learned, "the start has taught something")
            await leaves(on, first)
            second = await forked(on, app)

            assert second.start_kind == "zygote"
            assert expected == await answer(on, app) == {"seen": "the app's"}
            assert {"quiet", "sets"} <= known
            assert "reads" not in known

    run(story())


def test_a_package_that_the_app_finds_elsewhere_is_not_imported_ahead(redis_url: str, tmp_path: Path) -> None:
    """`sys.modules["flash"] = None` before an import, or a path in front: what looks for it then finds another one."""

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "flash")
            package(tmp_path, "looks", "try:\n    import flash\nexcept ImportError:\n    flash = None\n")
            assignment = await placed(on, await on.deploy(PROBE), "looks")

            async def refused() -> bool:
                on.zygotes.look([assignment])
                return lessons.read(assignment.lessons_file).no_zygote is not None

            await await_until(refused, "the refusal is remembered", interval=0.02)
            assert "importing ahead loads flash" in (lessons.read(assignment.lessons_file).no_zygote or "")

    run(story())


def test_a_zygote_that_speaks_nonsense_is_not_believed(redis_url: str, tmp_path: Path) -> None:
    nonsense = (
        "import os, sys\nfor line in (b'[]', b'{', b'\\xff'):\n"
        "    if '--zygote' in sys.orig_argv: os.write(int(sys.orig_argv[-2]), line)\n"
    )

    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "nonsense", nonsense)
            assignment = await placed(on, await on.deploy(PROBE), "nonsense")

            async def refused() -> bool:
                on.zygotes.look([assignment])
                return lessons.read(assignment.lessons_file).no_zygote is not None

            await await_until(refused, "the refusal is remembered", interval=0.02)
            assert on.zygotes.pids() == set()

    run(story())


def test_its_process_is_known_to_be_gone(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            assignment = await placed(on, await on.deploy(PROBE))
            await ready_for(on.zygotes, assignment)
            (zygote,) = on.zygotes._zygotes.values()
            assert isinstance(zygote, ZygoteProcess)
            assert zygote.memory() > 1024 * 1024
            zygote.end()
            zygote.hear()
            assert zygote.refusal is not None
            assert not zygote.lasting
            on.zygotes._zygotes.clear()

    run(story())
