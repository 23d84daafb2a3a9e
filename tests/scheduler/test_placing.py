"""Several apps and one card, or one small machine: who has it, who gets it next, who leaves for whom."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fal._spec import ScalingSpec

from scheduler.control.reconcile import Reconciler
from scheduler.store import Store
from scheduler.store.records import WorkerState
from tests.scheduler.stub_host import CPU_HOST, StubHost, deploy, ended, platform, submit
from tests.scheduler.test_reconcile import ONE_GPU, lead, settle
from tests.support.loop import run
from tests.support.waiting import await_until

FOREVER = ScalingSpec(keep_alive=3600)


@dataclass
class Room:
    """A platform with one host, and its scheduler's looks."""

    store: Store
    host: StubHost
    reconciler: Reconciler
    epoch: int

    async def deploy(
        self, app: str, scaling: ScalingSpec = FOREVER, gpu_memory_mb: int = 0, machine_type: str = "GPU-A100"
    ) -> None:
        await deploy(self.store, app, scaling=scaling, machine_types=(machine_type,), gpu_memory_mb=gpu_memory_mb)

    async def warm(self, app: str) -> str:
        """The app has served a request; its worker is idle."""
        await submit(self.store, "first", app=app)
        await settle(self.reconciler, self.epoch, self.store, [WorkerState.IDLE], app=app)
        return (await ended(self.store, "first", app=app)).worker_id or ""

    async def left(self, app: str) -> None:
        """Look until the app has no worker, and that was seen."""
        await settle(self.reconciler, self.epoch, self.store, [], app=app)
        await self.reconciler.once(app, self.epoch)

    async def blocked(self, app: str) -> bool:
        return (await self.reconciler.once(app, self.epoch)).blocked

    async def served(self, app: str, request_id: str, *others: str) -> None:
        """Look at the apps until the request has ended well."""

        async def done() -> bool:
            for each in (app, *others):
                await self.reconciler.once(each, self.epoch)
            record = await self.store.requests.get(app, request_id)
            return record is not None and record.state == "COMPLETED"

        await await_until(done, f"{app} to serve {request_id}")


@contextlib.asynccontextmanager
async def one_card(redis_url: str, tmp_path: Path, linger_s: float = 0) -> AsyncIterator[Room]:
    async with platform(redis_url, tmp_path, record=ONE_GPU) as (store, host):
        yield Room(store, host, Reconciler(store, linger_s), await lead(store))


@contextlib.asynccontextmanager
async def small_machine(redis_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    """Two cores and 2 GB, given out once."""
    record = replace(CPU_HOST, memory_mb=2048, room_cores=2, room_mb=2048)
    async with platform(redis_url, tmp_path, record=record) as (store, host):
        yield Room(store, host, Reconciler(store), await lead(store))


Place = Callable[[str, Path], contextlib.AbstractAsyncContextManager[Room]]


def test_an_idle_worker_keeps_its_card_for_its_keep_alive(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_card(redis_url, tmp_path) as room:
            await room.deploy("o/a")
            await room.deploy("o/b")
            await room.warm("o/a")
            await submit(room.store, "q", app="o/b")
            assert await room.blocked("o/b")
            assert await room.store.apps.blocked("o/b") == "Waiting for a free GPU-A100: all are in use, by o/a (idle)."
            (kept,) = await room.store.workers.list("o/a")
            assert kept.stop_requested is None

    run(scenario())


def test_past_its_keep_alive_it_stays_until_somebody_wants_the_card(redis_url: str, tmp_path: Path) -> None:
    """A card that nobody wants is best left with a model in it; whoever needs it must not wait for that."""

    async def scenario() -> None:
        async with one_card(redis_url, tmp_path, linger_s=3600) as room:
            await room.deploy("o/a", ScalingSpec(keep_alive=0))
            await room.deploy("o/b", ScalingSpec(keep_alive=0))
            await room.warm("o/a")
            await room.reconciler.once("o/a", room.epoch)
            (idle,) = await room.store.workers.list("o/a")
            assert idle.stop_requested is None
            await submit(room.store, "q", app="o/b")
            await room.served("o/b", "q", "o/a")
            assert await room.store.workers.list("o/a") == []
            assert await room.store.apps.blocked("o/b") is None

    run(scenario())


def test_a_worker_that_its_app_keeps_warm_stays(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_card(redis_url, tmp_path, linger_s=3600) as room:
            await room.deploy("o/a", ScalingSpec(keep_alive=0, min_concurrency=1))
            await room.deploy("o/b")
            await room.warm("o/a")
            await submit(room.store, "q", app="o/b")
            assert await room.blocked("o/b")
            (kept,) = await room.store.workers.list("o/a")
            assert kept.stop_requested is None

    run(scenario())


@pytest.mark.parametrize(
    ("place", "holds", "wants"), [(one_card, "GPU-A100", "GPU-A100"), (small_machine, "M", "XS")], ids=["card", "cores"]
)
def test_a_more_important_app_takes_what_is_idle_at_once_and_of_a_busy_one_never(
    redis_url: str, tmp_path: Path, place: Place, holds: str, wants: str
) -> None:
    async def scenario() -> None:
        async with place(redis_url, tmp_path) as room:
            await room.deploy("o/a", machine_type=holds)
            await room.deploy("o/b", replace(FOREVER, app_priority=1), machine_type=wants)
            room.host.serve.clear()
            await submit(room.store, "long", app="o/a")
            await settle(room.reconciler, room.epoch, room.store, [WorkerState.RUNNING], app="o/a")
            await submit(room.store, "q", app="o/b")
            assert await room.blocked("o/b")
            (busy,) = await room.store.workers.list("o/a")
            assert busy.stop_requested is None
            room.host.serve.set()
            await ended(room.store, "long", app="o/a")
            await room.served("o/b", "q", "o/a")

    run(scenario())


def test_the_free_card_goes_to_the_more_important_app_then_to_the_longer_waiting(
    redis_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with one_card(redis_url, tmp_path) as room:
            await room.deploy("o/a", ScalingSpec(keep_alive=0))
            for app, priority in (("o/first", 0), ("o/second", 0), ("o/important", 5)):
                await room.deploy(app, ScalingSpec(keep_alive=0, app_priority=priority))
            room.host.serve.clear()
            await submit(room.store, "long", app="o/a")
            await settle(room.reconciler, room.epoch, room.store, [WorkerState.RUNNING], app="o/a")
            for app in ("o/first", "o/second", "o/important"):
                await submit(room.store, "q", app=app)
                assert await room.blocked(app)
            room.host.serve.set()
            await room.left("o/a")
            assert await room.blocked("o/second")
            said = await room.store.apps.blocked("o/second")
            assert said == "Waiting for a free GPU-A100: o/important has it first."
            assert await room.blocked("o/first")
            await room.served("o/important", "q")
            await room.left("o/important")
            assert await room.blocked("o/second")
            await room.served("o/first", "q")
            await room.served("o/second", "q", "o/first")

    run(scenario())


def test_apps_that_say_what_they_need_share_the_card(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with one_card(redis_url, tmp_path) as room:
            for app in ("o/a", "o/b", "o/c"):
                await room.deploy(app, gpu_memory_mb=30_000)
            await room.warm("o/a")
            await room.warm("o/b")
            await submit(room.store, "q", app="o/c")
            assert await room.blocked("o/c")
            there = [w for app in ("o/a", "o/b") for w in await room.store.workers.list(app)]
            assert [(w.gpu_ids, w.gpu_memory_mb) for w in there] == [((0,), 30_000)] * 2

    run(scenario())


def test_idle_workers_keep_their_cores_for_their_keep_alive_and_one_goes_after_it(
    redis_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with small_machine(redis_url, tmp_path) as room:
            for app in ("o/a", "o/b", "o/c"):
                await room.deploy(app, machine_type="S")
            for app in ("o/a", "o/b"):
                await room.warm(app)
                await room.reconciler.once(app, room.epoch)
            await submit(room.store, "q", app="o/c")
            assert await room.blocked("o/c")
            assert await room.store.apps.blocked("o/c") == (
                "Waiting for 1 core and 1 GB of memory (S): all are in use, by o/a (idle), o/b (idle)."
            )
            kept = [w for app in ("o/a", "o/b") for w in await room.store.workers.list(app)]
            assert [w.stop_requested for w in kept] == [None, None]

            for app in ("o/a", "o/b"):
                await room.store.apps.set_scaling(app, replace(FOREVER, keep_alive=0))
            assert await room.blocked("o/c")
            there = [w for app in ("o/a", "o/b") for w in await room.store.workers.list(app)]
            (staying,) = [w for w in there if w.stop_requested is None]
            await room.served("o/c", "q", "o/b" if staying.app == "o/a" else "o/a")
            (left,) = [w for app in ("o/a", "o/b") for w in await room.store.workers.list(app)]
            assert (left.worker_id, left.stop_requested) == (staying.worker_id, None), "one was enough"
            assert await room.store.apps.blocked("o/c") is None

    run(scenario())


def test_a_small_app_does_not_take_what_a_more_important_one_waits_for(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with small_machine(redis_url, tmp_path) as room:
            await room.deploy("o/a", ScalingSpec(keep_alive=0), machine_type="M")
            await room.deploy("o/small", ScalingSpec(keep_alive=0), machine_type="XS")
            await room.deploy("o/large", ScalingSpec(keep_alive=0, app_priority=5), machine_type="M")
            room.host.serve.clear()
            await submit(room.store, "long", app="o/a")
            await settle(room.reconciler, room.epoch, room.store, [WorkerState.RUNNING], app="o/a")
            for app in ("o/small", "o/large"):
                await submit(room.store, "q", app=app)
                assert await room.blocked(app)
            room.host.serve.set()
            await room.left("o/a")
            assert await room.blocked("o/small")
            said = await room.store.apps.blocked("o/small")
            assert said == "Waiting for 0.5 cores and 0.5 GB of memory (XS): o/large has it first."
            await room.served("o/large", "q")
            await room.left("o/large")
            await room.served("o/small", "q")

    run(scenario())


def test_on_a_full_machine_the_old_revision_makes_room_for_the_new_one(redis_url: str, tmp_path: Path) -> None:
    """Nobody needs twice the memory of an app to change its code."""

    async def scenario() -> None:
        async with small_machine(redis_url, tmp_path) as room:
            await room.deploy("o/a", machine_type="XL")
            await room.warm("o/a")
            await deploy(room.store, "o/a", "r2", scaling=replace(FOREVER, min_concurrency=1), machine_types=("XL",))

            async def replaced() -> bool:
                await room.reconciler.once("o/a", room.epoch)
                return [w.revision for w in await room.store.workers.list("o/a")] == ["r2"]

            await await_until(replaced, "the new revision to have the machine")

    run(scenario())
