"""Workers from a zygote and apps that tell what they are, for tests."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import psutil

from gpu_worker import lessons
from gpu_worker.assignment import Assignment
from gpu_worker.preparation import prepare
from gpu_worker.zygotes import Zygotes
from scheduler.store.records import WorkerRecord, WorkerState
from tests.support.waiting import await_until
from tests.worker.stage import ENVIRONMENT_KEY, Stage

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


def children_with(word: str, pid: int | None = None) -> list[psutil.Process]:
    """Living children, ours or those of ``pid``, with ``word`` in their command line."""
    found = []
    for process in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            found += [process] if word in " ".join(process.cmdline()) else []
    return found


async def placed(on: Stage, app: str, *modules: str) -> Assignment:
    """Of a worker that is placed and not started, its lessons being ``modules``."""
    worker = await on.place(app)
    assignment = await prepare(on.store, worker, on.settings, on.builds, on.held)
    assert assignment.lessons_file is not None
    lessons.write(assignment.lessons_file, lessons.Lessons(modules=("fastapi", *modules)))
    return assignment


async def ready_for(zygotes: Zygotes, assignment: Assignment) -> None:
    async def ready() -> bool:
        zygotes.look([assignment])
        return zygotes.can_bear(assignment)

    await await_until(ready, "the zygote is ready", interval=0.02)


async def forked_by_agent(on: Stage, app: str) -> WorkerRecord:
    """Place workers until one comes from a zygote."""

    async def from_zygote() -> WorkerRecord | None:
        worker = await on.reaches(await on.place(app), WorkerState.IDLE)
        if worker.start_kind == "zygote":
            return worker
        await leaves(on, worker)
        return None

    found = await await_until(from_zygote, "a worker from a zygote", timeout=60, interval=0.2)
    assert found is not None
    return found
