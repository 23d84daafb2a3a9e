"""Looks at apps over a real store: what is started, stopped and ended, and what other apps notice of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fal._spec import ScalingSpec

from scheduler.control.reconcile import NO_OFFER_PATIENCE_MS, Look, Reconciler
from scheduler.store import Store
from scheduler.store.records import EnvironmentRecord, EnvironmentState, HostRecord, WorkerState
from tests.scheduler.stub_host import APP, CPU_HOST, CPU_TYPES, deploy, ended, platform, states, submit
from tests.support.loop import run
from tests.support.waiting import await_until

ONE_GPU = HostRecord("h1", (*CPU_TYPES, "GPU-A100", "GPU"), ((0, "A100", 80_000, ("GPU-A100", "GPU")),), False, 2, 8000)


async def lead(store: Store) -> int:
    epoch = await store.leader.lead("test", 60_000)
    assert epoch is not None
    return epoch


async def settle(reconciler: Reconciler, epoch: int, store: Store, wanted: list[WorkerState], app: str = APP) -> Look:
    """Look until the app's workers are in these states."""

    async def look() -> Look | None:
        found = await reconciler.once(app, epoch)
        return found if await states(store, app) == wanted else None

    found = await await_until(look, f"workers of {app} to be {wanted}")
    assert found is not None
    return found


def test_from_zero_to_an_answer_and_back(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path) as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store, scaling=ScalingSpec(keep_alive=0))
            assert (await reconciler.once(APP, epoch)).asleep
            await submit(store, "q1")
            assert not (await reconciler.once(APP, epoch)).asleep
            assert (await ended(store, "q1")).state == "COMPLETED"
            look = await settle(reconciler, epoch, store, [])
            look = await reconciler.once(APP, epoch)
            assert look.asleep
            assert len(host.started) == 1

    run(scenario())


def test_a_burst_stays_at_the_maximum(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path) as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store, scaling=ScalingSpec(max_concurrency=2))
            for number in range(10):
                await submit(store, f"q{number}")
            for _ in range(5):
                await reconciler.once(APP, epoch)
            for number in range(10):
                await ended(store, f"q{number}")
            assert len(host.started) == 2

    run(scenario())


def test_an_ex_leader_places_nothing(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        import pytest

        from scheduler.store.errors import StaleLeader

        async with platform(redis_url, tmp_path) as (store, host):
            old = await lead(store)
            await store.leader.resign("test")
            new = await store.leader.lead("other", 60_000)
            assert new is not None
            await deploy(store)
            await submit(store, "q1")
            await Reconciler(store).once(APP, new)
            await ended(store, "q1")
            await submit(store, "q2", app=await _second_app(store, new))
            with pytest.raises(StaleLeader):
                await Reconciler(store).once("o/second", old)
            assert len(host.started) == 1

    run(scenario())


async def _second_app(store: Store, epoch: int) -> str:
    await deploy(store, "o/second")
    await store.requests.promote("o/second", epoch)  # the newer leader has acted on this app
    return "o/second"


def test_a_failing_setup_ends_direct_requests_at_once_and_queued_ones_after_the_third_try(
    redis_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path, setup_error="setup() failed: no weights") as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store, scaling=ScalingSpec(max_concurrency=1))
            await submit(store, "queued")
            await submit(store, "direct", mode="direct")

            async def look() -> bool:
                await reconciler.once(APP, epoch)
                record = await store.requests.get(APP, "direct")
                return record is not None and record.state.terminal

            await await_until(look, "the direct request to end")
            direct = await ended(store, "direct")
            assert direct.outcome is not None
            assert (direct.outcome.status, direct.error_type) == (503, "runner_scheduling_failure")
            assert b"setup() failed: no weights" in direct.outcome.body
            assert b"fal logs o/app" in direct.outcome.body
            assert len(host.started) == 1
            assert await store.requests.state(APP, "queued") == "IN_QUEUE"

            # A caller in the back-off hears the cause at once instead of waiting for the next try.
            await submit(store, "impatient", mode="direct")
            await reconciler.once(APP, epoch)
            assert (await ended(store, "impatient")).error_type == "runner_scheduling_failure"

            for _ in range(2):
                await store.apps.startup_failed(APP, "r1", "setup() failed: no weights")
            await reconciler.once(APP, epoch)
            assert (await ended(store, "queued")).error_type == "runner_scheduling_failure"

    run(scenario())


def test_a_success_forgets_the_failures(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path, setup_error="boom") as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store)
            await submit(store, "q1")
            await settle(reconciler, epoch, store, [])
            await await_until(lambda: _failures(store), "the failed start to be counted")
            host.setup_error = None
            await await_until(lambda: _looks(reconciler, epoch, store, "q1"), "the second try to serve it")
            assert await _failures(store) == 0

    run(scenario())


async def _failures(store: Store) -> int:
    record = await store.apps.revision(APP, "r1")
    assert record is not None
    return record.startup_failures


async def _looks(reconciler: Reconciler, epoch: int, store: Store, request_id: str) -> bool:
    await reconciler.once(APP, epoch)
    record = await store.requests.get(APP, request_id)
    return record is not None and record.state == "COMPLETED"


def test_a_card_goes_from_one_app_to_the_next(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path, record=ONE_GPU) as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            for app in ("o/a", "o/b"):
                await deploy(store, app, scaling=ScalingSpec(keep_alive=0), machine_types=("GPU-A100",))
            host.serve.clear()
            await submit(store, "q1", app="o/a")
            assert not (await reconciler.once("o/a", epoch)).blocked
            await submit(store, "q2", app="o/b")
            assert (await reconciler.once("o/b", epoch)).blocked
            assert "Waiting for a free GPU-A100" in (await store.logs.tail("o/b", 1))[0].message
            host.serve.set()
            await ended(store, "q1", app="o/a")
            look = await settle(reconciler, epoch, store, [], app="o/a")
            assert look.freed or (await reconciler.once("o/a", epoch)).freed
            assert not (await reconciler.once("o/b", epoch)).blocked
            await ended(store, "q2", app="o/b")

    run(scenario())


def test_a_new_leader_knows_which_cards_are_taken(redis_url: str, tmp_path: Path) -> None:
    """A scheduler that had just started placed two workers on one card: it had not looked at the other app yet."""

    async def scenario() -> None:
        async with platform(redis_url, tmp_path, record=ONE_GPU) as (store, host):
            epoch = await lead(store)
            for app in ("o/a", "o/b"):
                await deploy(store, app, machine_types=("GPU-A100",))
            await submit(store, "q1", app="o/a")
            await Reconciler(store).once("o/a", epoch)
            await submit(store, "q2", app="o/b")
            assert (await Reconciler(store).once("o/b", epoch)).blocked
            assert len(host.started) <= 1

    run(scenario())


def test_a_new_revision_takes_over_the_only_card(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path, record=ONE_GPU) as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store, machine_types=("GPU-A100",))
            host.serve.clear()
            await submit(store, "q1")
            await settle(reconciler, epoch, store, [WorkerState.RUNNING])
            await deploy(store, revision="r2", machine_types=("GPU-A100",))
            await submit(store, "q2")
            await reconciler.once(APP, epoch)
            host.serve.set()
            assert (await ended(store, "q1")).state == "COMPLETED"
            await await_until(lambda: _looks(reconciler, epoch, store, "q2"), "the new revision to serve")
            served = dict(host.served)
            (worker,) = await store.workers.list(APP)
            assert (worker.revision, worker.worker_id) == ("r2", served["q2"])

    run(scenario())


def test_old_workers_serve_until_a_new_one_is_ready(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path) as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store, scaling=ScalingSpec(min_concurrency=1, max_concurrency=1))
            await settle(reconciler, epoch, store, [WorkerState.IDLE])
            (old,) = await store.workers.list(APP)
            host.hold.clear()
            await deploy(store, revision="r2", scaling=ScalingSpec(min_concurrency=1, max_concurrency=1))
            await settle(reconciler, epoch, store, [WorkerState.IDLE, WorkerState.SETUP])
            await submit(store, "q1")
            assert (await ended(store, "q1")).worker_id == old.worker_id
            host.hold.set()
            await settle(reconciler, epoch, store, [WorkerState.IDLE])
            await submit(store, "q2")
            assert (await ended(store, "q2")).worker_id != old.worker_id

    run(scenario())


def test_without_any_offer_direct_requests_end_after_a_while_with_the_reason(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path) as (store, _):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store, machine_types=("GPU-H100",))
            await submit(store, "queued")
            await submit(store, "direct", mode="direct")
            assert (await reconciler.once(APP, epoch)).blocked
            assert await store.requests.state(APP, "direct") == "IN_QUEUE"
            waiting = reconciler._placer._waiting
            waiting[APP] = replace(waiting[APP], since_ms=waiting[APP].since_ms - NO_OFFER_PATIENCE_MS)
            await reconciler.once(APP, epoch)
            direct = await ended(store, "direct")
            assert direct.outcome is not None
            assert b"No host offers GPU-H100." in direct.outcome.body
            assert await store.requests.state(APP, "queued") == "IN_QUEUE"
            # Said once, not on every look.
            assert len(await store.logs.tail(APP, 10)) == 1

    run(scenario())


def test_the_cpu_stands_in_and_the_worker_says_so(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        record = replace(CPU_HOST, cpu_fallback=True)
        async with platform(redis_url, tmp_path, record=record) as (store, _):
            epoch = await lead(store)
            await deploy(store, machine_types=("GPU-A100",))
            await submit(store, "q1")
            await Reconciler(store).once(APP, epoch)
            (worker,) = await store.workers.list(APP)
            assert (worker.machine_type, worker.cpu_fallback_for) == ("GPU-A100", "GPU-A100")
            await ended(store, "q1")

    run(scenario())


def test_a_lost_environment_is_asked_for_again_and_a_broken_one_ends_the_wait(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path) as (store, host):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store)
            await store.environments.put(EnvironmentRecord("key1", EnvironmentState.BUILDING))
            await submit(store, "q1")
            await reconciler.once(APP, epoch)
            assert host.started == []
            await store.environments.put(EnvironmentRecord("key1", EnvironmentState.FAILED, error="no such package."))
            await reconciler.once(APP, epoch)
            failed = await ended(store, "q1")
            assert failed.outcome is not None
            assert b"no such package." in failed.outcome.body
            await store._redis.command("DEL", "kw:environment:{key1}")
            await submit(store, "q2")
            await reconciler.once(APP, epoch)
            assert [key for _, key in await store.environments.take_build_requests(0)] == ["key1"]

    run(scenario())


def test_a_deleted_apps_workers_leave(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with platform(redis_url, tmp_path) as (store, _):
            reconciler, epoch = Reconciler(store), await lead(store)
            await deploy(store, scaling=ScalingSpec(min_concurrency=1))
            await settle(reconciler, epoch, store, [WorkerState.IDLE])
            await store.apps.delete(APP)
            await settle(reconciler, epoch, store, [])
            assert (await reconciler.once(APP, epoch)).asleep

    run(scenario())
