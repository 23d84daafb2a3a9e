"""Secrets reach the app's environment variables, and neither its log nor the process list."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from gpu_worker.log_lines import LogLines
from scheduler.store.records import LogEntry, WorkerState
from tests.worker.births import forked
from tests.worker.stage import stage

VALUE = "hf_0123456789abcdef"
APP = """
import os
import subprocess
import sys

import fal

AT_IMPORT = os.environ.get("HF_TOKEN")


class Probe(fal.App):
    @fal.endpoint("/")
    def run(self) -> dict:
        print("the token is", os.environ["HF_TOKEN"])
        subprocess.run([sys.executable, "-c", "import os; print('child has', os.environ['HF_TOKEN'])"])
        return {"at_import": AT_IMPORT, "other": os.environ.get("OTHER")}
"""
FAILS = """
import os

import fal


class Probe(fal.App):
    def setup(self):
        raise RuntimeError(f"login with {os.environ['HF_TOKEN']} was refused")

    @fal.endpoint("/")
    def run(self) -> int:
        return 1
"""


@pytest.mark.anyio
async def test_an_app_has_its_secrets_and_nobody_else_sees_them(redis_url: str, tmp_path: Path) -> None:
    async with stage(redis_url, tmp_path) as s:
        await s.store.secrets.set("tester", "main", {"HF_TOKEN": VALUE, "OTHER": "not listed"}, exposed=True)
        app = await s.deploy(APP, secrets=("HF_TOKEN", "NEVER_SET"))
        worker = await s.start_ready(app)
        answer = await s.call(app)
        assert answer.outcome is not None
        assert json.loads(answer.outcome.body) == {"at_import": VALUE, "other": None}
        assert (await s.logged(app, "child has")).message == "child has ***"
        assert (await s.logged(app, "the token is")).message == "the token is ***"
        supervisor = psutil.Process(s.supervisors[worker.worker_id].pid)
        for process in (supervisor, s.runner_of(worker)):
            assert VALUE not in str(process.cmdline()) + str(process.environ())


@pytest.mark.anyio
async def test_a_failed_start_does_not_tell_the_secret(redis_url: str, tmp_path: Path) -> None:
    async with stage(redis_url, tmp_path) as s:
        await s.store.secrets.set("tester", "main", {"HF_TOKEN": VALUE}, exposed=True)
        app = await s.deploy(FAILS)
        worker = await s.start(app)
        record = await s.reaches(worker, WorkerState.TERMINATED)
        assert "login with *** was refused" in str(record.reason)
        revision = await s.store.apps.revision(app, "r1")
        assert revision is not None
        assert "login with *** was refused" in str(revision.last_startup_error)
        assert all(VALUE not in line.message for line in await s.log(app))


def test_what_is_masked() -> None:
    async def append(entries: object) -> None:
        pass

    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nabc\n-----END KEY-----\n"
    lines = LogLines(append, "w1", ["short", "12345678", "123456789", key])
    assert lines.masked("short 12345678 x123456789x") == "short *** x***x"
    assert lines.masked("MIIEvQIBADANBg abc") == "*** abc"
    assert LogLines(append, "w1").masked("12345678") == "12345678"
    assert "12345678" not in repr(LogEntry("", 0.0, "INFO", lines.masked("a 12345678")))


@pytest.mark.anyio
async def test_a_forked_runner_has_its_secrets_and_its_zygote_has_none(redis_url: str, tmp_path: Path) -> None:
    """A zygote outlives its app's workers, and whoever could read it would read what they were told."""
    async with stage(redis_url, tmp_path) as s:
        await s.store.secrets.set("tester", "main", {"HF_TOKEN": VALUE}, exposed=True)
        app = await s.deploy(APP, secrets=("HF_TOKEN",))
        worker = await forked(s, app)
        answer = await s.call(app)
        assert answer.outcome is not None
        assert json.loads(answer.outcome.body) == {"at_import": VALUE, "other": None}
        assert answer.worker_id == worker.worker_id
        assert worker.start_kind == "zygote"
        (zygote,) = map(psutil.Process, s.zygotes.pids())
        assert VALUE not in str(zygote.environ()) + str(zygote.cmdline())
        assert VALUE not in str(s.runner_of(worker).environ())
