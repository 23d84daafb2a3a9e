"""Workers that are born to a zygote: they are what plainly started ones are, and every doubt means a plain start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpu_worker import lessons, process_tree
from gpu_worker.assignment import Assignment
from gpu_worker.leftovers import supervisor_command
from gpu_worker.preparation import prepare
from gpu_worker.settings import AgentSettings, ZygoteLimits
from gpu_worker.zygote_process import ZygoteProcess
from gpu_worker.zygotes import Zygotes
from scheduler.store.records import WorkerRecord, WorkerState
from tests.support.loop import run
from tests.support.waiting import await_until, wait_until
from tests.worker.apps import PROBE
from tests.worker.stage import ENVIRONMENT_KEY, Stage, agent, stage
from tests.worker.test_app_data import AS_A_USER

#: What a process can find out about itself, but for what must differ.
FACTS = (
    """
import ctypes, json, os, random, resource, signal, sys, threading

import fal
"""
    + "import {module}\n"
    + """

def facts():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))
    return {
        "environ": {name: value for name, value in os.environ.items() if name != "FAL_JOB_ID"},
        "cwd": os.getcwd(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "dies_with_parent": number.value,
        "leads_its_group": os.getpgid(0) == os.getpid(),
        "in_parents_session": os.getsid(0) == os.getppid(),
        "argv": sys.argv,
        "path": sys.path,
        "main": sys.modules["__main__"].__spec__.name,
        "executable": sys.executable,
        "flags": list(sys.flags),
        "signals": [str(signal.getsignal(n)).partition(" object at ")[0] for n in (1, 2, 3, 13, 15, 17)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "limits": [resource.getrlimit(n) for n in range(10)],
        "oom": open("/proc/self/oom_score_adj").read(),
        "umask": open("/proc/self/status").read().partition("Umask:")[2].split()[0],
        "capabilities": open("/proc/self/status").read().partition("CapEff:")[2].split()[0],
        "stdin": os.readlink("/proc/self/fd/0"),
        "data": os.stat("/data").st_ino if os.path.exists("/data") else None,
        "own_mounts": os.readlink("/proc/self/ns/mnt") == os.readlink(f"/proc/{os.getppid()}/ns/mnt"),
        "encodings": [sys.getfilesystemencoding(), sys.__stdout__.encoding, sys.__stderr__.errors],
    }


class Probe(fal.App):
    @fal.endpoint("/")
    def all(self) -> dict:
        return facts()

    @fal.endpoint("/random")
    def numbers(self) -> dict:
        import numpy.random
        return {"random": random.random(), "numpy": numpy.random.value, "pid": os.getpid()}
"""
)

#: A stand-in for numpy: its global generator is seeded at import, which a fork would repeat.
NUMPY = """
import os

def seed():
    global value
    value = int.from_bytes(os.urandom(8), "big")

seed()
"""


def package(folder: Path, name: str, text: str = "", **modules: str) -> None:
    """Install a package into the stage's environment."""
    site = next((folder / "environments" / ENVIRONMENT_KEY / "venv" / "lib").glob("*/site-packages"))
    (site / name).mkdir()
    (site / name / "__init__.py").write_text(text)
    for module, source in modules.items():
        (site / name / f"{module}.py").write_text(source)


async def forked(on: Stage, app: str, *modules: str) -> WorkerRecord:
    """A ready worker that a zygote with ``modules`` gave birth to."""
    worker = await on.place(app)
    assignment = await prepare(on.store, worker, on.settings, on.builds, on.held)
    await on.launch_from_zygote(assignment, *modules)
    return await on.reaches(worker, WorkerState.IDLE)


async def spawned(on: Stage, app: str) -> WorkerRecord:
    worker = await on.place(app)
    assignment = await prepare(on.store, worker, on.settings, on.builds, on.held)
    on._launch(worker.worker_id, assignment.to_json())
    return await on.reaches(worker, WorkerState.IDLE)


async def answer(on: Stage, app: str, path: str = "/") -> Any:
    record = await on.call(app, path)
    assert record.outcome is not None
    return json.loads(record.outcome.body)


async def leaves(on: Stage, worker: WorkerRecord) -> None:
    await on.store.workers.request_stop(worker.app, worker.worker_id, "drain", "test")
    await on.reaches(worker, WorkerState.TERMINATED)


def zygote_pids(on: Stage) -> set[int]:
    return on.zygotes.pids()


def test_a_forked_runner_is_what_a_started_one_is(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "heavy", "import heavy.part\n", part="")
            app = await on.deploy(FACTS.replace("{module}", "heavy"))

            first = await spawned(on, app)
            expected = await answer(on, app)
            await leaves(on, first)
            second = await forked(on, app, "heavy.part")

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
                worker = await forked(on, app, "numpy.random")
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
            (pid,) = zygote_pids(on)
            assert not Path(f"/proc/{pid}/root/left-behind-by-a-test").exists()
            assert not Path("/left-behind-by-a-test").exists()

    run(story())


def test_a_zygote_knows_no_secret_and_no_bundle(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(
            redis_url, tmp_path, files={"KEEPWARM_FILES_URL": "s3://a/b", "AWS_SECRET_ACCESS_KEY": "s3cret"}
        ) as on:
            await _ready(on.zygotes, await _assignment(on, await on.deploy(PROBE)))
            (pid,) = zygote_pids(on)
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
            assignment = await _assignment(on, app, "unforkable")
            file = assignment.lessons_file

            async def refused() -> bool:
                on.zygotes.look([assignment])
                return lessons.read(file).no_zygote is not None

            await await_until(refused, "the refusal is remembered", interval=0.02)

            assert zygote_pids(on) == set()
            on.zygotes.look([assignment])
            assert zygote_pids(on) == set()
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


async def _assignment(on: Stage, app: str, *modules: str) -> Assignment:
    """Of a worker that is placed and not started, its lessons being ``modules``."""
    worker = await on.place(app)
    assignment = await prepare(on.store, worker, on.settings, on.builds, on.held)
    assert assignment.lessons_file is not None
    lessons.write(assignment.lessons_file, lessons.Lessons(modules=("fastapi", *modules)))
    return assignment


async def _ready(zygotes: Zygotes, assignment: Assignment) -> None:
    async def ready() -> bool:
        zygotes.look([assignment])
        return zygotes.can_bear(assignment)

    await await_until(ready, "the zygote is ready", interval=0.02)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_zygote_that_does_not_answer_costs_a_plain_start(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            assignment = await _assignment(on, app)
            await _ready(on.zygotes, assignment)
            (pid,) = zygote_pids(on)
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the zygote has stopped")

            command = supervisor_command(on.settings, assignment.worker_id)
            assert await on.zygotes.bear(assignment, command, dict(os.environ)) is None

            on.zygotes.look([])
            assert zygote_pids(on) == set()
            assert lessons.read(assignment.lessons_file).no_zygote is None

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
            assignment = await _assignment(on, app, "impostor")
            await _ready(on.zygotes, assignment)

            command = supervisor_command(on.settings, assignment.worker_id)
            assert await on.zygotes.bear(assignment, command, dict(os.environ)) is None

            assert zygote_pids(on) == set()
            caught = tmp_path / "caught"
            await asyncio.to_thread(
                wait_until, lambda: not children_with(str(caught)), "the impostor has seen the end of it"
            )
            assert not caught.exists() or caught.read_bytes() == b""

    run(story())


def children_with(word: str, pid: int | None = None) -> list[psutil.Process]:
    """Living children, ours or those of ``pid``, with ``word`` in their command line."""
    found = []
    for process in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            found += [process] if word in " ".join(process.cmdline()) else []
    return found


def test_number_memory_and_age_are_bounded(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            one = await _assignment(on, app)
            others = [replace(one, lessons_file=f"{one.lessons_file}-{number}") for number in range(2)]
            for other in others:
                assert other.lessons_file is not None
                lessons.write(other.lessons_file, lessons.Lessons(modules=("fastapi",)))
            two, three = others
            zygotes = Zygotes(ZygoteLimits(count=2), on.builds)
            try:
                for assignment in (one, two):
                    await _ready(zygotes, assignment)
                await zygotes.bear(one, ["/bin/true"], {})  # no supervisor, and so its end
                await _ready(zygotes, three)
                assert [zygotes.can_bear(a) for a in (one, two, three)] == [False, True, True]

                zygotes._limits = ZygoteLimits(count=2, memory=1)
                zygotes._bounds_at = 0.0
                zygotes.look([])
                assert zygotes.pids() == set()
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
    await _ready(zygotes, assignment)


def test_no_zygotes_at_all(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            assignment = await _assignment(on, app)
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


# --- with the host's agent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_front", [(), AS_A_USER], ids=["root", "user"])
def test_the_second_start_comes_from_a_zygote(redis_url: str, tmp_path: Path, in_front: tuple[str, ...]) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            package(tmp_path, "heavy", part="")
            app = await on.deploy(PROBE.replace("import fal\n", "import fal\nimport heavy.part\n"))
            with agent(on, *in_front) as process:
                first = await on.reaches(await on.place(app), WorkerState.IDLE)
                second = await _forked_by_agent(on, app)
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


async def _forked_by_agent(on: Stage, app: str) -> WorkerRecord:
    """Place workers until one comes from a zygote."""

    async def from_zygote() -> WorkerRecord | None:
        worker = await on.reaches(await on.place(app), WorkerState.IDLE)
        if worker.start_kind == "zygote":
            return worker
        await leaves(on, worker)
        return None

    found = await await_until(from_zygote, "a worker from a zygote", interval=0.2)
    assert found is not None
    return found


def test_a_killed_supervisor_takes_its_forked_runner_along(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            app = await on.deploy(PROBE)
            with agent(on) as process:
                plain = await on.reaches(await on.place(app), WorkerState.IDLE)
                worker = await _forked_by_agent(on, app)
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


def test_a_failing_start_says_nothing_about_forking(redis_url: str, tmp_path: Path) -> None:
    known = lessons.Lessons(modules=("a",), doubted=True)
    after = lessons.after_start(known, ["b"], [], cpu_fallback_for=None, forked=True)
    assert (after.modules, after.no_zygote, after.doubted) == (("a", "b"), None, False)


def test_its_process_is_known_to_be_gone(redis_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with stage(redis_url, tmp_path) as on:
            assignment = await _assignment(on, await on.deploy(PROBE))
            await _ready(on.zygotes, assignment)
            (zygote,) = on.zygotes._zygotes.values()
            assert isinstance(zygote, ZygoteProcess)
            assert zygote.memory() > 1024 * 1024
            zygote.end()
            zygote.hear()
            assert zygote.refusal is not None
            assert not zygote.lasting
            on.zygotes._zygotes.clear()

    run(story())
