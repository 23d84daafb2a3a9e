"""The scheduler as a service: in one process with a stub host, and as the real process with its signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from fal._spec import ScalingSpec

from scheduler.control.service import Scheduler, Settings
from scheduler.store import Store
from scheduler.store.records import WorkerState
from tests.scheduler.stub_host import APP, StubHost, deploy, ended, platform, states, submit
from tests.support.loop import run
from tests.support.waiting import await_until, wait_until


@contextlib.asynccontextmanager
async def scheduling(
    redis_url: str, data: Path, *, settings: Settings | None = None
) -> AsyncIterator[tuple[Store, StubHost, Scheduler]]:
    async with platform(redis_url, data) as (store, host):
        scheduler = Scheduler(store, settings or Settings(redis_url, data))
        running = asyncio.create_task(scheduler.run())
        try:
            await await_until(lambda: _value(scheduler.leads), "the scheduler to lead")
            yield store, host, scheduler
        finally:
            scheduler.stop()
            await running


async def _value(value: bool) -> bool:
    return value


def test_a_request_for_a_sleeping_app_is_placed_within_milliseconds(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        # a pass would take ten minutes: only the wake-up can be what places it
        settings = Settings(redis_url, tmp_path, pass_interval=600)
        async with scheduling(redis_url, tmp_path, settings=settings) as (store, host, _):
            await deploy(store)
            await await_until(lambda: store.apps.observe(APP), "the deploy to be seen")
            await submit(store, "q1")
            await ended(store, "q1")
            assert len(host.started) == 1

    run(scenario())


def test_many_apps_wake_at_once_and_go_back_to_sleep(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scheduling(redis_url, tmp_path, settings=Settings(redis_url, tmp_path)) as (store, host, scheduler):
            apps = [f"o/app{number}" for number in range(40)]
            for app in apps:
                await deploy(store, app, scaling=ScalingSpec(keep_alive=0))
            await asyncio.gather(*(submit(store, "q1", app=app) for app in apps))
            for app in apps:
                await ended(store, "q1", app=app)
            assert len(host.started) == 40
            await await_until(lambda: _value(not scheduler._awake), "all apps to sleep again")

    run(scenario())


def test_a_lost_wake_up_is_made_good(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(redis_url, tmp_path, pass_interval=0.05, sleeping_passes=3)
        async with scheduling(redis_url, tmp_path, settings=settings) as (store, _, scheduler):
            await deploy(store)
            scheduler._on_wake = lambda payload: None  # type: ignore[method-assign]
            await store._redis.command("SET", "{o/app}:woken", "1")  # so that no message is sent at all
            await submit(store, "q1")
            await ended(store, "q1")

    run(scenario())


def test_a_killed_worker_is_replaced_without_waiting_for_a_pass(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(redis_url, tmp_path, pass_interval=600)
        async with scheduling(redis_url, tmp_path, settings=settings) as (store, host, _):
            await deploy(store)
            host.serve.clear()
            await submit(store, "q1")
            await await_until(lambda: _running(store), "the request to run")
            (worker,) = await store.workers.list(APP)
            host.workers[worker.worker_id].cancel()  # its record is removed, as the agent does for a dead supervisor
            host.serve.set()
            record = await ended(store, "q1")
            assert record.attempt == 2
            assert len(host.started) == 2

    run(scenario())


async def _running(store: Store) -> bool:
    return await states(store) == [WorkerState.RUNNING]


def test_idle_workers_leave_by_the_clock(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(redis_url, tmp_path, pass_interval=0.2)
        async with scheduling(redis_url, tmp_path, settings=settings) as (store, _, _scheduler):
            await deploy(store, scaling=ScalingSpec(keep_alive=1))
            await submit(store, "q1")
            record = await ended(store, "q1")
            await await_until(lambda: _none_left(store), "the worker to leave")
            assert record.finished_at_ms is not None
            left = (await store.apps.observe(APP)).now_ms - record.finished_at_ms
            assert left >= 1000

    run(scenario())


async def _none_left(store: Store) -> bool:
    return await states(store) == []


def test_an_ended_session_takes_its_app_away(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(redis_url, tmp_path, pass_interval=0.05)
        async with scheduling(redis_url, tmp_path, settings=settings) as (store, _, _scheduler):
            revision = await deploy(store)
            await store.apps.point(
                "o/run", revision.revision, auth=None, scaling=None, ephemeral=True, session_ttl_s=600
            )
            await store.apps.touch_session("o/run", 0)
            await await_until(lambda: _gone(store, "o/run"), "the app to be taken away")
            assert await store.apps.get(APP) is not None

    run(scenario())


async def _gone(store: Store, app: str) -> bool:
    return await store.apps.get(app) is None


def test_only_one_of_two_leads_and_the_other_takes_over(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        first_settings = Settings(redis_url, tmp_path, scheduler_id="first", leader_ttl=0.3)
        async with scheduling(redis_url, tmp_path, settings=first_settings) as (store, host, first):
            second = Scheduler(store, replace(first_settings, scheduler_id="second"))
            running = asyncio.create_task(second.run())
            await deploy(store)
            await submit(store, "q1")
            await ended(store, "q1")
            assert (first.leads, second.leads) == (True, False)
            assert len(host.started) == 1
            first.stop()
            await await_until(lambda: _value(second.leads), "the second to lead")
            await deploy(store, "o/other")
            await submit(store, "q2", app="o/other")
            await ended(store, "q2", app="o/other")
            second.stop()
            await running

    run(scenario())


def test_settings_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KEEPWARM_REDIS_URL is not set"):
        Settings.from_env({})
    found = Settings.from_env({"KEEPWARM_REDIS_URL": "redis://x", "KEEPWARM_DATA": str(tmp_path)})
    assert (found.redis_url, found.data_dir) == ("redis://x", tmp_path)


def _start(redis_url: str, data: Path) -> subprocess.Popen[bytes]:
    environ = os.environ | {"KEEPWARM_REDIS_URL": redis_url, "KEEPWARM_DATA": str(data)}
    return subprocess.Popen([sys.executable, "-m", "scheduler"], env=environ, stderr=subprocess.PIPE)


def test_the_process_serves_hands_over_and_stops_cleanly(redis_url: str, tmp_path: Path) -> None:
    async def scenario(process: subprocess.Popen[bytes]) -> None:
        async with platform(redis_url, tmp_path) as (store, _):
            await deploy(store)
            await submit(store, "q1")
            await ended(store, "q1")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 10) == 0
            # it resigned: another one leads at once, without waiting for the lease to run out
            assert await store.leader.lead("next", 1000) is not None

    process = _start(redis_url, tmp_path)
    try:
        run(scenario(process))
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_second_signal_forces(redis_url: str, tmp_path: Path) -> None:
    process = _start(redis_url, tmp_path)
    try:
        assert process.stderr is not None
        wait_until(lambda: b"leads" in process.stderr.readline(), "the scheduler to lead")  # type: ignore[union-attr]
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        started = time.monotonic()
        assert process.wait(10) in (0, 1)
        assert time.monotonic() - started < 5
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_without_redis_it_says_so_and_ends(tmp_path: Path) -> None:
    environ = os.environ | {"KEEPWARM_REDIS_URL": "", "KEEPWARM_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "scheduler"], env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "KEEPWARM_REDIS_URL is not set" in done.stderr
