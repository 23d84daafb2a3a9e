"""A small stage for worker tests: a store, one app made of source text, real supervisors and runners, no gateway.

Environments are prepared by hand: a venv folder whose interpreter is the tests' own, so that no test needs a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fal
import psutil
from fal._spec import AppSpec, BundleFile, EnvironmentSpec

from envbuilder import BuildSettings, Environment
from envbuilder.shelf import write_mark
from gpu_worker import lessons, process_tree, runner_group
from gpu_worker.assignment import Assignment
from gpu_worker.leftovers import supervisor_command
from gpu_worker.preparation import prepare
from gpu_worker.settings import AgentSettings
from gpu_worker.zygote_process import Newborn
from gpu_worker.zygotes import Zygotes
from scheduler.store import Store
from scheduler.store.records import (
    LogEntry,
    Mode,
    RequestRecord,
    RevisionRecord,
    RevisionState,
    Submission,
    WorkerRecord,
    WorkerState,
)
from tests.support.adopted import Adopted
from tests.support.processes import command_of
from tests.support.waiting import await_until

ENVIRONMENT_KEY = "prepared"
BASE_URL = "http://platform.test:8000"
#: Every worker of the tests is then born to a zygote: the whole folder must pass both ways.
STARTS_FROM_ZYGOTES = os.environ.get("KEEPWARM_TESTS_START") == "zygote"


def prepare_environment(folder: Path) -> None:
    """An environment that has what the tests' interpreter has."""
    venv = folder / ENVIRONMENT_KEY / "venv"
    packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    interpreter = os.path.realpath(sys.executable)
    (venv / "bin" / "python").symlink_to(interpreter)
    (venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(interpreter)}\n")
    (packages / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    write_mark(Environment(ENVIRONMENT_KEY, venv, venv / "bin" / "python", "as written", ()))


class Stage:
    """One data folder and one store; made by ``stage()``."""

    def __init__(self, store: Store, settings: AgentSettings) -> None:
        self.store = store
        self.settings = settings
        self.builds = BuildSettings.from_env({"KEEPWARM_DATA": str(settings.data_dir)})
        self.supervisors: dict[str, subprocess.Popen[bytes] | Adopted] = {}
        self.zygotes = Zygotes(settings.zygotes, self.builds)
        self.held = ExitStack()
        #: command in front of each supervisor's own; it must end in exec
        self.in_front: tuple[str, ...] = ()

    async def deploy(self, source: str, class_name: str = "Probe", **settings: Any) -> str:
        """An app whose one file is ``source``; returns its name."""
        app = f"tester/app-{uuid.uuid4().hex[:8]}"
        data = source.encode()
        file = BundleFile("app.py", hashlib.sha256(data).hexdigest(), len(data))
        self.store.bundles.put(file.sha256, data)
        spec = AppSpec(
            name=app.split("/")[1],
            class_name=class_name,
            entry_file="app.py",
            environment=EnvironmentSpec(python_version="3.11"),
            **settings,
        )
        bundle_hash = self.store.bundles.bundle_hash([file])
        await self.store.apps.put_revision(
            RevisionRecord(app, "r1", spec, bundle_hash, (file,), ENVIRONMENT_KEY, RevisionState.READY, 0)
        )
        await self.store.apps.point(app, "r1", auth="public", scaling=spec.scaling, ephemeral=False)
        return app

    async def place(self, app: str, **changes: Any) -> WorkerRecord:
        """Record a worker and order it, as the scheduler does."""
        worker = WorkerRecord(
            app=app,
            worker_id=f"w-{uuid.uuid4().hex[:8]}",
            revision="r1",
            host=self.settings.host_id,
            state=WorkerState.PENDING,
            machine_type="S",
            gpu_ids=(),
            created_at_ms=0,
        )
        worker = replace(worker, **changes)
        await self.store.workers.place(worker, epoch=1)
        return worker

    async def start(self, app: str) -> WorkerRecord:
        """A supervisor started as the host agent starts it, but without an agent."""
        worker = await self.place(app)
        await self.launch(worker)
        return worker

    async def launch(self, worker: WorkerRecord) -> None:
        """Start the supervisor of a worker that was placed."""
        assignment = await prepare(self.store, worker, self.settings, self.builds, self.held)
        if STARTS_FROM_ZYGOTES and not self.in_front:
            await self.launch_from_zygote(assignment)
        else:
            self._launch(worker.worker_id, assignment.to_json())

    def _launch(self, worker_id: str, assignment: bytes) -> None:
        command = supervisor_command(self.settings, worker_id)
        popen = subprocess.Popen([*self.in_front, *command], stdin=subprocess.PIPE, start_new_session=True)
        assert popen.stdin is not None
        popen.stdin.write(assignment)
        popen.stdin.close()
        self.supervisors[worker_id] = popen

    async def launch_from_zygote(self, assignment: Assignment, *modules: str) -> None:
        """The same by way of a zygote that has imported ``modules``, which is started if there is none yet."""
        process_tree.adopt_orphans()

        async def born() -> Newborn | None:
            """A busy machine may take longer than a zygote is waited for; then there is a new one."""
            await self._prepare_zygote(assignment, modules)
            return await self.zygotes.bear(
                assignment, supervisor_command(self.settings, assignment.worker_id), dict(os.environ)
            )

        newborn = await await_until(born, "a worker is born", timeout=60.0)
        assert newborn is not None
        self.supervisors[assignment.worker_id] = Adopted(newborn.supervisor.pid)
        newborn.assign(assignment)

    async def _prepare_zygote(self, assignment: Assignment, modules: tuple[str, ...]) -> None:
        assert assignment.lessons_file is not None
        known = lessons.read(assignment.lessons_file)
        together = tuple(dict.fromkeys((*known.modules, "fastapi", *modules)))
        lessons.write(assignment.lessons_file, replace(known, modules=together))
        await await_until(lambda: self._zygote_is_ready(assignment), "the zygote is ready", interval=0.02)

    async def _zygote_is_ready(self, assignment: Assignment) -> bool:
        self.zygotes.look([assignment])
        return self.zygotes.can_bear(assignment)

    async def start_ready(self, app: str) -> WorkerRecord:
        """The same, waiting until it takes requests."""
        worker = await self.start(app)

        async def was_ready() -> bool:
            return (await self.worker(worker)).ready_at_ms is not None

        await await_until(was_ready, f"worker {worker.worker_id} has become ready", interval=0.02)
        return worker

    async def worker(self, worker: WorkerRecord) -> WorkerRecord:
        record = await self.store.workers.get(worker.app, worker.worker_id)
        assert record is not None
        return record

    async def reaches(self, worker: WorkerRecord, *states: WorkerState) -> WorkerRecord:
        async def reached() -> WorkerRecord | None:
            record = await self.store.workers.get(worker.app, worker.worker_id)
            return record if record is not None and record.state in states else None

        found = await await_until(reached, f"worker {worker.worker_id} is {' or '.join(states)}", interval=0.02)
        assert found is not None
        return found

    def runner_of(self, worker: WorkerRecord) -> psutil.Process:
        """The runner's process."""
        supervisor = psutil.Process(self.supervisors[worker.worker_id].pid)
        return next(child for child in supervisor.children() if "fal._runner" in command_of(child))

    def ended(self, worker: WorkerRecord) -> int:
        """Exit status of the supervisor, waiting for it."""
        return self.supervisors[worker.worker_id].wait(20)

    async def submit(self, app: str, path: str = "/", body: bytes = b"{}", mode: Mode = "queued", **more: Any) -> str:
        request_id = str(uuid.uuid4())
        more.setdefault("headers", (("content-type", "application/json"),))
        await self.store.requests.submit(
            Submission(
                app=app,
                request_id=request_id,
                mode=mode,
                method="POST",
                path=path,
                query="",
                body=body,
                base_url=BASE_URL,
                **more,
            )
        )
        return request_id

    async def result(self, app: str, request_id: str, timeout: float = 20.0) -> RequestRecord:
        async def finished() -> RequestRecord | None:
            record = await self.store.requests.get(app, request_id)
            return record if record is not None and record.state.terminal else None

        found = await await_until(finished, f"request {request_id} has ended", timeout, interval=0.01)
        assert found is not None
        return found

    async def call(self, app: str, path: str = "/", body: bytes = b"{}", mode: Mode = "queued") -> RequestRecord:
        return await self.result(app, await self.submit(app, path, body, mode))

    async def promoted(self, app: str, request_id: str) -> None:
        """Do the scheduler's part of a retry: bring the request back once its back-off is over."""

        async def back() -> bool:
            return await self.store.requests.promote(app, epoch=1) > 0

        await await_until(back, f"the back-off of {request_id} is over", interval=0.05)

    async def log(self, app: str) -> list[LogEntry]:
        return await self.store.logs.tail(app, 1000)

    async def logged(self, app: str, part: str) -> LogEntry:
        """Wait for a line that contains ``part``."""

        async def found() -> LogEntry | None:
            return next((entry for entry in await self.log(app) if part in entry.message), None)

        entry = await await_until(found, f"a log line with {part!r}")
        assert entry is not None
        return entry

    def end(self) -> None:
        self.zygotes.close()
        self.held.close()
        for popen in self.supervisors.values():
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(popen.pid).children(recursive=True):
                    child.kill()
            popen.kill()
            popen.wait(10)
        runner_group.clear_away()


@asynccontextmanager
async def stage(redis_url: str, data_dir: Path, **changes: Any) -> AsyncIterator[Stage]:
    """A stage on an empty store; ends every process that it started."""
    prepare_environment(data_dir / "environments")
    settings = AgentSettings(
        redis_url=redis_url, data_dir=data_dir, sdk_dir=Path(fal.__file__).parents[1], host_id="stage"
    )
    store = await Store.connect(redis_url, data_dir)
    one = Stage(store, replace(settings, **changes))
    try:
        yield one
    finally:
        await asyncio.to_thread(one.end)
        await store.close()


@contextlib.contextmanager
def agent(stage: Stage, *in_front: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A host agent process on the stage; killed with everything below it at the end if it still runs.

    ``in_front``: a command in front of its own; it must end in exec.
    """
    settings = stage.settings
    popen = subprocess.Popen(
        [*in_front, sys.executable, "-P", "-m", "gpu_worker"],
        env={
            **os.environ,
            "KEEPWARM_REDIS_URL": settings.redis_url,
            "KEEPWARM_DATA": str(settings.data_dir),
            "KEEPWARM_HOST_ID": settings.host_id,
            **environ,
        },
        start_new_session=True,
    )
    try:
        yield popen
    finally:
        if popen.poll() is None:
            for child in psutil.Process(popen.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            popen.kill()
            popen.wait(10)
