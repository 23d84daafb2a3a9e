"""Apps, revisions, sessions, workers and what the scheduler sees of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fal._spec import AppSpec, BundleFile, EndpointSpec, EnvironmentSpec, HealthCheckSpec, ScalingSpec

from scheduler.store import NotFound, keys
from scheduler.store.records import RequestState, RevisionState, WorkerState
from tests.store.scene import APP, OK, Scene, revision, scene
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio


async def test_a_revision_comes_back_as_it_was_stored(redis_url: str, tmp_path: Path) -> None:
    spec = AppSpec(
        name="painter",
        class_name="Painter",
        entry_file="painter.py",
        environment=EnvironmentSpec("3.11", (("torch==2.3.0",), ("numpy",)), ("numpy<2",), "2024-06-10", ("torch",)),
        machine_types=("GPU-A100", "M"),
        scaling=ScalingSpec(keep_alive=300, max_concurrency=5),
        auth="shared",
        skip_retry_conditions=("timeout",),
        retry_config={"timeout": 2},
        secrets=("HF_TOKEN",),
        endpoints=(EndpointSpec("/", "run"), EndpointSpec("/ws", "talk", is_websocket=True)),
        health_check=HealthCheckSpec("/", timeout_seconds=2.5, call_regularly=False),
        metadata={"openapi": {"tags": ["a", "b"]}},
    )
    async with scene(redis_url, tmp_path) as s:
        record = replace(
            revision("r2"), spec=spec, files=(BundleFile("painter.py", "a" * 64, 7, True),), message="first"
        )
        await s.store.apps.put_revision(record)
        stored = await s.store.apps.revision(APP, "r2")
        assert stored is not None
        assert stored == replace(record, created_at_ms=stored.created_at_ms)
        assert stored.created_at_ms > 0
        assert [r.revision for r in await s.store.apps.revisions(APP)] == ["r1", "r2"]
        await s.store.apps.set_revision_state(APP, "r2", RevisionState.FAILED, "no such package")
        await s.store.apps.set_openapi(APP, "r2", "{}")
        stored = await s.store.apps.revision(APP, "r2")
        assert stored is not None
        assert (stored.state, stored.error, stored.openapi) == (RevisionState.FAILED, "no such package", "{}")
        with pytest.raises(NotFound):
            await s.store.apps.set_openapi(APP, "r9", "{}")


async def test_settings_survive_a_deploy_unless_it_brings_its_own(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        apps = s.store.apps
        app = await apps.get(APP)
        assert app is not None
        assert (app.auth, app.scaling, app.ephemeral) == ("private", ScalingSpec(), False)
        await apps.set_scaling(APP, ScalingSpec(max_concurrency=9))
        await apps.set_auth(APP, "shared")
        moved = await apps.point(APP, "r2", auth=None, scaling=None, ephemeral=False)
        assert (moved.revision, moved.auth, moved.scaling.max_concurrency) == ("r2", "shared", 9)
        own = await apps.point(APP, "r3", auth="public", scaling=ScalingSpec(keep_alive=1), ephemeral=False)
        assert (own.auth, own.scaling.keep_alive, own.created_at_ms) == ("public", 1, app.created_at_ms)
        assert [a.app for a in await apps.list()] == [APP]
        with pytest.raises(NotFound):
            await apps.set_auth("alice/nothing", "public")
        assert await apps.get("alice/nothing") is None


async def test_an_ephemeral_app_ends_with_its_session(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        apps = s.store.apps
        created = await apps.point("alice/e", "r1", auth=None, scaling=None, ephemeral=True, session_ttl_s=30)
        assert created.auth == "public"
        assert await apps.expired_sessions() == []
        await apps.touch_session("alice/e", 0)

        async def expired() -> bool:
            return await apps.expired_sessions() == ["alice/e"]

        await await_until(expired, "the session to end")
        assert await apps.delete("alice/e")
        assert await apps.expired_sessions() == []
        assert await apps.get("alice/e") is None


async def test_deleting_an_app_ends_what_waits_and_lets_finish_what_runs(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        running = await s.claimed(inbox)
        await s.submit("waiting")
        assert await s.store.apps.delete(APP)
        assert not await s.store.apps.delete(APP), "safe to repeat"
        with pytest.raises(NotFound):
            await s.submit("late")
        record = await s.requests.get(APP, "waiting")
        assert record is not None
        assert record.outcome is not None
        assert (record.state, record.outcome.status) == (RequestState.ERROR, 404)
        assert await s.store.workers.beat(APP, "w1", 1) == "drain"
        assert await inbox.finish(running, OK)
        assert await s.requests.state(APP, running.request_id) is RequestState.COMPLETED
        assert await s.store.apps.list() == []
        assert await s.store.apps.names() == [APP], "it may still have workers to stop"
        await s.store.workers.remove(APP, "w1", "drained")
        for key in await s.redis("KEYS", f"{{{APP}}}*"):
            assert await s.redis("PTTL", key) > 0, f"{key!r} would stay for ever"

        await s.store.apps.put_revision(revision())
        await s.store.apps.point(APP, "r1", auth=None, scaling=None, ephemeral=False)
        assert await s.redis("PTTL", keys.queue_normal(APP)) == -1
        assert [a.app for a in await s.store.apps.list()] == [APP]


async def test_what_comes_back_to_the_queue_of_a_deleted_app_does_not_stay(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await inbox._ask()  # parks it, so that the request never sees the queue
        await s.submit("a")
        claim = await inbox.next()
        await s.store.apps.delete(APP)
        assert await s.lose(claim) == "requeued"
        assert await s.redis("PTTL", keys.queue_normal(APP)) > 0


async def crash(s: Scene, number: int, request_id: str | None = None) -> None:
    """Worker ``number`` dies under a request; with nothing to do when there is none."""
    inbox = await s.worker(f"w{number}")
    if request_id is not None:
        while (claim := await inbox.next()).request_id != request_id:
            await inbox.finish(claim, OK, claim_next=False)
        await s.lose(claim, reason="the runner ended with signal SIGSEGV")
    await s.store.workers.remove(APP, f"w{number}", "the runner ended with signal SIGSEGV", crashed=True)


async def streak(s: Scene) -> int:
    record = await s.store.apps.revision(APP, "r1")
    assert record is not None
    assert (record.last_crash_at_ms is None) == (record.last_crash is None)
    return record.crash_streak


async def test_five_crashes_of_different_requests_open_a_streak_that_a_success_ends(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        for number in range(4):
            await s.submit(f"q{number}")
            await crash(s, number, f"q{number}")
            await s.requests.cancel(APP, f"q{number}")
        assert await streak(s) == 0
        await crash(s, 4)
        assert await streak(s) == 1, "a worker that dies with nothing to do counts, too"
        await crash(s, 5)
        assert await streak(s) == 2
        record = await s.store.apps.revision(APP, "r1")
        assert record is not None
        assert record.last_crash == "the runner ended with signal SIGSEGV"
        assert await s.store.apps.crash_streak_ended(APP, "r1")
        assert await streak(s) == 0
        assert not await s.store.apps.crash_streak_ended(APP, "r1")
        assert not await s.store.apps.crash_streak_ended(APP, "gone")
        assert await s.redis("EXISTS", keys.revision(APP, "gone")) == 0


async def test_one_poisonous_request_does_not_make_its_app_unhealthy(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        for number in range(6):
            if number % 3 == 0:
                await s.submit(f"q{number // 3}")
            await crash(s, number, f"q{number // 3}")
        assert await streak(s) == 0


async def test_a_worker_that_dies_of_several_requests_crashes_once(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claims = [await s.claimed(inbox) for _ in range(6)]
        for claim in claims:
            await s.lose(claim, suspects=6)
        await s.store.workers.remove(APP, "w1", "died", crashed=True)
        assert await s.redis("ZCARD", keys.crashes(APP, "r1")) == 1


async def test_startup_failures_in_a_row_are_counted(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        apps = s.store.apps
        assert [await apps.startup_failed(APP, "r1", f"boom {n}") for n in range(3)] == [1, 2, 3]
        record = await apps.revision(APP, "r1")
        assert record is not None
        assert (record.startup_failures, record.last_startup_error) == (3, "boom 2")
        assert record.last_startup_failure_at_ms is not None
        await apps.startup_succeeded(APP, "r1", '{"openapi":"3.1.0"}', {"total": 1.5})
        record = await apps.revision(APP, "r1")
        assert record is not None
        assert (record.startup_failures, record.last_startup_error, record.openapi) == (
            *(0, None, '{"openapi":"3.1.0"}'),
        )
        assert await apps.startup_failed(APP, "r1", "cannot print \ud800") == 1, "whatever the exception said"
        assert await apps.startup_failed(APP, "gone", "boom") == 0
        assert await s.redis("EXISTS", keys.revision(APP, "gone")) == 0


async def test_the_scheduler_is_woken_once_for_a_burst_and_again_after_it_looked(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        heard: list[bytes] = []
        await s.store.apps.observe(APP)
        await s.store.subscribe({keys.channel_wake(): heard.append})

        async def count(expected: int) -> None:
            async def reached() -> bool:
                return len(heard) >= expected

            await await_until(reached, f"{expected} wake-ups")
            await s.redis("PING")
            assert heard == [APP.encode()] * expected

        await asyncio.gather(*(s.submit() for _ in range(30)))
        await count(1)
        seen = await s.store.apps.observe(APP)
        assert (seen.queued, seen.in_progress, seen.delayed) == (30, 0, 0)
        assert seen.oldest_queued_at_ms is not None
        assert 0 <= seen.now_ms - seen.oldest_queued_at_ms < 5000
        await s.submit()
        await count(2)


async def test_a_worker_from_placing_to_its_end(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        workers = s.store.workers
        told: list[bytes] = []
        await s.store.subscribe({keys.channel_host("box"): told.append})
        await s.place("w1")
        assert await workers.orders("box") == {"w1": APP}
        placed = await workers.get(APP, "w1")
        assert placed is not None
        assert (placed.state, placed.ready_at_ms, placed.beat_at_ms) == (WorkerState.PENDING, None, None)
        assert await workers.update(APP, "w1", state=WorkerState.SETUP, stages={"boot": 0.2})
        assert await workers.beat(APP, "w1", 0) is None
        assert await workers.update(APP, "w1", ready=True, device="cuda", stages={"boot": 0.2, "setup": 3.5})
        ready = (await workers.list(APP))[0]
        assert (ready.state, ready.device, ready.stages) == (WorkerState.IDLE, "cuda", {"boot": 0.2, "setup": 3.5})
        assert ready.idle_since_ms == ready.ready_at_ms is not None
        assert await workers.request_stop(APP, "w1", "drain", "scaled down")
        assert await workers.beat(APP, "w1", 0) == "drain"
        assert await workers.request_stop(APP, "w1", "kill", "took too long")
        assert await workers.request_stop(APP, "w1", "drain", "later")
        assert await workers.beat(APP, "w1", 0) == "kill", "a kill is not taken back"
        await workers.remove(APP, "w1", "killed")
        assert await workers.list(APP) == []
        assert await workers.orders("box") == {}
        ended = await workers.get(APP, "w1")
        assert ended is not None
        assert (ended.state, ended.reason) == (WorkerState.TERMINATED, "killed")
        assert not await workers.request_stop(APP, "w1", "kill", "again")
        await workers.remove(APP, "unknown", "never was")
        assert told == [b"w1"]


async def test_silent_workers(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.place("never")

        async def silent(older_than_ms: int, later_ms: int = 0) -> list[str]:
            now_ms = (await s.store.apps.observe(APP)).now_ms + later_ms
            return [w.worker_id for w in await s.store.workers.silent(APP, now_ms, older_than_ms)]

        assert await silent(60_000) == []
        assert await silent(5, later_ms=10) == ["never"]
        await s.store.workers.beat(APP, "never", 0)
        assert await silent(2000, later_ms=1000) == []
        assert await silent(2000, later_ms=-86_400_000) == ["never"], "a sign of before the clock was put back"


async def test_a_beat_counts_the_load_afresh(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.redis("HSET", keys.worker(APP, "w1"), "in_flight", 5)
        await s.store.workers.beat(APP, "w1", 1)
        worker = await s.store.workers.get(APP, "w1")
        assert worker is not None
        assert worker.in_flight == 1
        await inbox.finish(claim, OK)
        await s.redis("HSET", keys.worker(APP, "w1"), "in_flight", 2, "state", "RUNNING")
        await s.store.workers.beat(APP, "w1", 0)
        worker = await s.store.workers.get(APP, "w1")
        assert worker is not None
        assert (worker.in_flight, worker.state) == (0, WorkerState.IDLE)


async def test_what_a_revision_uses_of_a_gpu_only_rises(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        apps = s.store.apps
        told = [await apps.gpu_peak(APP, "r1", mb) for mb in (900, 1_000, 950, 1_000)]
        assert told == [True, True, False, False]
        record = await apps.revision(APP, "r1")
        assert record is not None
        assert record.gpu_peak_mb == 1_000
        assert not await apps.gpu_peak(APP, "gone", 5)
        assert await s.redis("EXISTS", keys.revision(APP, "gone")) == 0


async def test_a_streak_goes_on_however_slowly_and_leaves_nothing_of_a_revision_that_is_gone(
    redis_url: str, tmp_path: Path
) -> None:
    """One crash after each back-off of a minute is no five in a minute, and must not look healthy for that."""
    async with scene(redis_url, tmp_path) as s:
        for number in range(5):
            await crash(s, number)
        assert await streak(s) == 1
        await s.redis("DEL", keys.crashes(APP, "r1"))  # a minute has passed
        await crash(s, 5)
        assert await streak(s) == 2
        await s.redis("DEL", keys.revision(APP, "r1"), keys.crashes(APP, "r1"))
        for number in range(6, 12):
            await crash(s, number)
        assert await s.redis("EXISTS", keys.revision(APP, "r1")) == 0


async def test_an_unhealthy_worker_is_handed_nothing_and_counts_against_its_revision_once(
    redis_url: str, tmp_path: Path
) -> None:
    """It stays until another one serves in its place, so that somebody can see what is wrong with it."""
    async with scene(redis_url, tmp_path) as s:
        heard: list[bytes] = []
        workers, inbox = s.store.workers, await s.worker()
        await inbox._ask()  # parks it
        await s.store.apps.observe(APP)
        await s.store.subscribe({keys.channel_wake(): heard.append})

        assert await workers.mark_unhealthy(APP, "w1", "its check failed")
        await await_until(partial(has_items, heard), "the scheduler to be woken")
        assert await workers.mark_unhealthy(APP, "w1", "its check failed")

        await s.submit("waits")
        assert await s.requests.state(APP, "waits") is RequestState.IN_QUEUE
        record = await workers.get(APP, "w1")
        assert record is not None
        assert (record.unhealthy, record.retiring, record.state) == (True, "its check failed", WorkerState.IDLE)
        assert await streak(s) == 1
        await workers.remove(APP, "w1", "its check failed", crashed=True)
        assert await streak(s) == 1
        assert not await workers.mark_unhealthy(APP, "w1", "late")
        await s.worker("w2")
        await workers.request_stop(APP, "w2", "drain", "scaled down")
        assert not await workers.mark_unhealthy(APP, "w2", "its check failed")
        assert not await workers.mark_unhealthy(APP, "never", "its check failed")
        assert await s.redis("EXISTS", keys.worker(APP, "never")) == 0


async def has_items(heard: list[bytes]) -> bool:
    return bool(heard)
