"""Builds as jobs: what revisions, aliases, logs and waiting requests see of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fal._spec import AppSpec, EnvironmentSpec, ScalingSpec

import envbuilder
from envbuilder import BuildError, BuildSettings, Environment
from envbuilder.key import environment_key
from keepwarm.jobs import Jobs, Settings
from keepwarm.jobs_worker import connect, pack, unpack
from scheduler.store import Store
from scheduler.store.records import EnvironmentState, RevisionRecord, RevisionState
from tests.scheduler.stub_host import APP, ended, submit
from tests.support.loop import run
from tests.support.waiting import await_until

KEY = "k" * 64
SPEC = AppSpec("app", "A", "a.py", EnvironmentSpec("3.11"))


class Builder:
    """Stands where ``envbuilder`` does: says a line, waits to be let go, then gives an environment or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.built: list[EnvironmentSpec] = []
        self.secrets: list[dict[str, str]] = []
        self.running = 0
        self.most_running = 0
        self.found: Environment | None = None
        monkeypatch.setattr(envbuilder, "build", self.build)
        monkeypatch.setattr(envbuilder, "find", lambda key, settings: self.found)

    async def build(
        self,
        spec: EnvironmentSpec,
        settings: BuildSettings,
        on_line: Callable[[str], None],
        secrets: Mapping[str, str],
    ) -> Environment:
        self.built.append(spec)
        self.secrets.append(dict(secrets))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            on_line("first line")
            await self.go.wait()
            on_line("last line")
            if self.error is not None:
                raise self.error
        finally:
            self.running -= 1
        return Environment(KEY, Path("/env"), Path("/env/bin/python"), "as written", ("six==1.17.0",))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(monkeypatch)


@contextlib.asynccontextmanager
async def jobs(redis_url: str, data: Path, **settings: Any) -> AsyncIterator[Store]:
    builds = BuildSettings.from_env({"KEEPWARM_DATA": str(data)})
    store = await Store.connect(redis_url, data)
    found = Jobs(store, await connect(redis_url), Settings(redis_url, data, builds, stop_grace=1, **settings))
    running = asyncio.create_task(found.run())
    try:
        yield store
    finally:
        found.stop()
        await running
        await store.close()


async def register(store: Store, revision: str, app: str = APP, key: str = KEY, **spec: Any) -> None:
    record = RevisionRecord(app, revision, replace(SPEC, **spec), "b" * 64, (), key, RevisionState.BUILDING, 0)
    await store.apps.put_revision(record)


async def state(store: Store, revision: str, app: str = APP) -> RevisionRecord:
    """The revision once its build has ended."""

    async def look() -> RevisionRecord | None:
        record = await store.apps.revision(app, revision)
        return record if record is not None and record.state is not RevisionState.BUILDING else None

    found = await await_until(look, f"the build of {app} {revision} to end", timeout=60)
    assert found is not None
    return found


def test_a_build_gets_the_secrets_that_its_addresses_name(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            await store.secrets.set("o", "staging", {"TOKEN": "of staging", "OTHER": "x"}, exposed=False)
            await store.secrets.set("o", "main", {"TOKEN": "of main"}, exposed=True)
            address = "--extra-index-url https://${TOKEN}@host/simple"
            environment = EnvironmentSpec("3.11", ((address, "kit"),))
            await register(store, "r1", env="staging", environment=environment)
            await store.environments.request_build(APP, "r1")
            assert (await state(store, "r1")).state is RevisionState.READY
            await register(store, "r2")
            await store.environments.request_build(APP, "r2")
            assert (await state(store, "r2")).state is RevisionState.READY
            assert builder.secrets == [{"TOKEN": "of staging"}, {}]

    run(scenario())


def test_a_build_makes_the_revision_serve(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            await register(store, "r1", scaling=ScalingSpec(keep_alive=7), auth="public")
            await store.environments.request_build(APP, "r1")
            assert (await state(store, "r1")).state is RevisionState.READY
            alias = await store.apps.get(APP)
            assert alias is not None
            assert (alias.revision, alias.auth, alias.scaling.keep_alive) == ("r1", "public", 7)
            environment = await store.environments.get(KEY)
            assert environment is not None
            assert (environment.state, environment.notes["resolved"]) == (EnvironmentState.READY, "as written")
            lines = await store.environments.read_log(KEY)
            assert [getattr(line, "message", None) or line[1] for line in lines] == ["first line", "last line"]
            await await_until(lambda: _settled(store), "nobody to wait any more")

    run(scenario())


async def _settled(store: Store) -> bool:
    return not await store.environments.waiting(KEY) and not await store.environments.take_build_requests(0)


def test_scaling_survives_deploys_unless_it_is_reset(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            for revision, keep_alive, reset in (("r1", 1, False), ("r2", 2, False), ("r3", 3, True)):
                await register(store, revision, scaling=ScalingSpec(keep_alive=keep_alive))
                await store.environments.request_build(APP, revision, reset_scale=reset)
                await state(store, revision)
                alias = await store.apps.get(APP)
                assert alias is not None
                assert alias.revision == revision
                assert alias.scaling.keep_alive == (3 if reset else 1)

    run(scenario())


def test_one_build_serves_everybody_who_waits_for_it(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    """A revision that asked while the build was under way was forgotten: arq refuses a second job of the same id, and
    the first had already read who waits."""

    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            builder.go.clear()
            for app in ("o/a", "o/b"):
                await register(store, "r1", app)
            await store.environments.request_build("o/a", "r1")
            await await_until(lambda: _true(builder.running == 1), "the build to run")
            await store.environments.request_build("o/b", "r1")
            builder.go.set()
            assert (await state(store, "r1", "o/a")).state is RevisionState.READY
            assert (await state(store, "r1", "o/b")).state is RevisionState.READY
            assert builder.most_running == 1

    run(scenario())


async def _true(value: bool) -> bool:
    return value


def test_a_slow_older_build_does_not_take_the_name_back(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            builder.go.clear()
            await register(store, "slow", key="s" * 64)
            await store.environments.request_build(APP, "slow")
            await await_until(lambda: _true(builder.running == 1), "the slow build to run")
            await asyncio.sleep(0.002)  # creation times are milliseconds
            await register(store, "quick", key="q" * 64)
            await store.apps.set_revision_state(APP, "quick", RevisionState.READY)
            await store.apps.point(APP, "quick", auth=None, scaling=None, ephemeral=False)
            builder.go.set()
            assert (await state(store, "slow")).state is RevisionState.READY
            alias = await store.apps.get(APP)
            assert alias is not None
            assert alias.revision == "quick"

    run(scenario())


def test_a_failed_build_says_why_and_leaves_the_alias(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            await register(store, "r1")
            await store.environments.request_build(APP, "r1")
            await state(store, "r1")
            builder.error = BuildError("No such package. Next: correct it.\nthe tool's words", ["a line"])
            await register(store, "r2", key="f" * 64)
            await store.environments.request_build(APP, "r2")
            failed = await state(store, "r2")
            assert failed.state is RevisionState.FAILED
            assert failed.error is not None
            assert failed.error.startswith("No such package. Next: correct it.")
            alias = await store.apps.get(APP)
            assert alias is not None
            assert alias.revision == "r1"
            environment = await await_until(lambda: _failed(store, "f" * 64), "the environment's state")
            assert environment == "No such package. Next: correct it."

    run(scenario())


async def _failed(store: Store, key: str) -> str | None:
    record = await store.environments.get(key)
    return record.error if record is not None and record.state is EnvironmentState.FAILED else None


def test_requests_that_wait_for_a_lost_environment_end_when_it_cannot_be_built_again(
    redis_url: str, tmp_path: Path, builder: Builder
) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            await register(store, "r1")
            await store.environments.request_build(APP, "r1")
            await state(store, "r1")
            await submit(store, "q1")
            builder.error = BuildError("The index is away.")
            await store.environments.request_build(APP, "r1")
            record = await ended(store, "q1")
            assert record.outcome is not None
            assert (record.outcome.status, record.error_type) == (503, "runner_scheduling_failure")
            assert b"The index is away." in record.outcome.body
            # the revision itself is as good as it was
            assert (await state(store, "r1")).state is RevisionState.READY

    run(scenario())


def test_a_failing_import_of_one_revision_leaves_the_shared_environment(
    redis_url: str, tmp_path: Path, builder: Builder
) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            await register(store, "r1")
            await store.environments.request_build(APP, "r1")
            await state(store, "r1")
            builder.found = Environment(KEY, Path("/env"), Path("/env/bin/python"), "as written", ())
            builder.error = BuildError("No module named nope.")
            await register(store, "r2", "o/other")
            await store.environments.request_build("o/other", "r2")
            assert (await state(store, "r2", "o/other")).state is RevisionState.FAILED
            environment = await store.environments.get(KEY)
            assert environment is not None
            assert environment.state is EnvironmentState.READY

    run(scenario())


def test_a_bug_in_the_builder_leaves_nobody_waiting(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            builder.error = RuntimeError("surprise")
            await register(store, "r1")
            await store.environments.request_build(APP, "r1")
            failed = await state(store, "r1")
            assert failed.error is not None
            assert "surprise" in failed.error

    run(scenario())


def test_at_most_two_builds_run_at_once(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            builder.go.clear()
            for number in range(5):
                await register(store, "r1", f"o/app{number}", key=f"{number}" * 64)
                await store.environments.request_build(f"o/app{number}", "r1")
            await await_until(lambda: _true(builder.running == 2), "two builds to run")
            builder.go.set()
            for number in range(5):
                assert (await state(store, "r1", f"o/app{number}")).state is RevisionState.READY
            assert builder.most_running == 2

    run(scenario())


def test_an_ephemeral_app_gets_a_session(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with jobs(redis_url, tmp_path) as store:
            await register(store, "r1", "o/run")
            await store.environments.request_build("o/run", "r1", ephemeral=True)
            await state(store, "r1", "o/run")
            alias = await store.apps.get("o/run")
            assert alias is not None
            assert (alias.ephemeral, alias.auth) == (True, "public")
            assert await store._redis.command("ZSCORE", "kw:sessions", "o/run") is not None

    run(scenario())


def test_jobs_travel_as_msgpack() -> None:
    job: dict[str, Any] = {"t": None, "f": "build_environment", "a": ["k"], "k": {}, "et": 1}
    assert unpack(pack(job)) == job
    assert unpack(pack({"r": ValueError("x")})) == {"r": "ValueError('x')"}


def _start(redis_url: str, data: Path, shared_builds: Path) -> subprocess.Popen[bytes]:
    environ = os.environ | {
        "KEEPWARM_REDIS_URL": redis_url,
        "KEEPWARM_DATA": str(data),
        "KEEPWARM_UV_CACHE_DIR": str(shared_builds / "uv-cache"),
    }
    return subprocess.Popen([sys.executable, "-m", "keepwarm.jobs"], env=environ)


def test_a_killed_process_loses_no_build_and_a_stopped_one_is_quick(
    redis_url: str, tmp_path: Path, shared_builds: Path
) -> None:
    """The real process builds a real environment: killed in the middle, finished by its successor; then stopped in
    the middle of another build."""

    async def scenario() -> None:
        store = await Store.connect(redis_url, tmp_path)
        spec = EnvironmentSpec("3.11", (("six==1.17.0",),), smoke_imports=("six",))
        await register(store, "r1", key=environment_key(spec), environment=spec)
        await store.environments.request_build(APP, "r1")
        process = _start(redis_url, tmp_path, shared_builds)
        try:
            await await_until(lambda: _building(store, environment_key(spec)), "the build to begin")
            process.kill()
            process.wait()
            process = _start(redis_url, tmp_path, shared_builds)
            ready = await state(store, "r1")
            assert (ready.state, ready.error) == (RevisionState.READY, None)
            environment = await store.environments.get(ready.environment_key)
            assert environment is not None
            assert environment.path is not None
            assert (Path(environment.path) / "bin" / "python").exists()

            other = replace(spec, requirements=(("six==1.16.0",),))
            await register(store, "r2", key=environment_key(other), environment=other)
            await store.environments.request_build(APP, "r2")
            await await_until(lambda: _building(store, environment_key(other)), "the second build to begin")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 15) == 0
            revision = await store.apps.revision(APP, "r2")
            assert revision is not None
            assert revision.state is RevisionState.BUILDING
            assert len(await store.environments.waiting(environment_key(other))) == 1
        finally:
            process.kill()
            process.wait()
            await store.close()

    run(scenario())


async def _building(store: Store, key: str) -> bool:
    return bool(await store.environments.read_log(key))
