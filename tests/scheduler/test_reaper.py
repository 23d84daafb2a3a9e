"""Clearing up after the dead, over a real store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scheduler.control.reaper import PAUSE_MS, SETTLE_MS, STARTUP_GRACE_MS, Reaper
from scheduler.store import Inbox, Store
from scheduler.store.records import AppSeen, Outcome, RequestState, WorkerRecord, WorkerState
from tests.scheduler.stub_host import APP, deploy, ended, submit
from tests.support.loop import run
from tests.support.waiting import await_until


@dataclass
class Scene:
    """An app whose workers the test plays itself; ``reap`` looks once."""

    store: Store
    epoch: int
    reaper: Reaper

    async def reap(self, **changes: int) -> bool:
        from dataclasses import replace

        seen: AppSeen = replace(await self.store.apps.observe(APP), **changes)  # type: ignore[arg-type]
        revision = await self.store.apps.revision(APP, "r1")
        return await self.reaper.once(seen, revision, self.epoch)

    async def worker(self, worker_id: str, lease_ms: int = 30_000) -> Inbox:
        await self.store.workers.place(
            WorkerRecord(APP, worker_id, "r1", "h1", WorkerState.PENDING, "S", (), 0), self.epoch
        )
        await self.store.workers.update(APP, worker_id, state=WorkerState.IDLE, ready=True)
        return await self.store.open_inbox(APP, worker_id, "r1", lease_ms=lease_ms)


@contextlib.asynccontextmanager
async def scene(redis_url: str, data: Path, silent_ms: int = 20_000) -> AsyncIterator[Scene]:
    store = await Store.connect(redis_url, data)
    try:
        epoch = await store.leader.lead("test", 60_000)
        assert epoch is not None
        await deploy(store)
        yield Scene(store, epoch, Reaper(store, silent_ms))
    finally:
        await store.close()


def test_a_request_whose_worker_stopped_renewing_runs_again(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(redis_url, tmp_path) as here:
            frozen = await here.worker("frozen", lease_ms=20)
            await submit(here.store, "q1")
            first = await frozen.next()
            await await_until(lambda: here.store.requests.expired_leases(APP), "the lease to run out")
            assert await here.reap()
            assert await here.store.requests.state(APP, "q1") is RequestState.IN_QUEUE
            # it comes back after its pause
            seen = await here.store.apps.observe(APP)
            assert seen.delayed == 1
            await await_until(lambda: here.reap(), "the request to be promoted")
            second = await (await here.worker("healthy")).next()
            assert (second.request_id, second.attempt) == ("q1", 2)
            # the frozen worker wakes up: what it says now is refused
            assert not await frozen.finish(first, Outcome(200, (), b"late"))

    run(scenario())


def test_a_caller_who_allows_no_second_connection_gets_none_when_a_worker_is_lost(
    redis_url: str, tmp_path: Path
) -> None:
    """The supervisor kept to what the caller allowed, the reaper did not: a job that must not run twice did."""

    async def scenario() -> None:
        async with scene(redis_url, tmp_path) as here:
            frozen = await here.worker("frozen", lease_ms=20)
            await submit(here.store, "once", retries={"connection_error": 0})
            await submit(here.store, "again", retries={"server_error": 0})
            assert {(await frozen.next()).request_id for _ in range(2)} == {"once", "again"}

            async def both_expired() -> bool:
                return len(await here.store.requests.expired_leases(APP)) == 2

            await await_until(both_expired, "the leases to run out")
            assert await here.reap()
            record = await here.store.requests.get(APP, "once")
            assert record is not None
            assert (record.state, record.error_type) == (RequestState.ERROR, "runner_disconnected")
            assert await here.store.requests.state(APP, "again") is RequestState.IN_QUEUE

    run(scenario())


def test_a_direct_request_of_a_lost_worker_ends_with_the_reason(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(redis_url, tmp_path) as here:
            frozen = await here.worker("frozen", lease_ms=20)
            await submit(here.store, "d1", mode="direct")
            await frozen.next()
            await await_until(lambda: here.store.requests.expired_leases(APP), "the lease to run out")
            assert await here.reap()
            record = await ended(here.store, "d1")
            assert record.outcome is not None
            assert (record.outcome.status, record.error_type) == (503, "runner_disconnected")

    run(scenario())


def test_a_renewed_lease_is_left_alone(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(redis_url, tmp_path) as here:
            inbox = await here.worker("slow")
            await submit(here.store, "q1")
            await inbox.next()
            assert not await here.reap()
            assert await here.store.requests.state(APP, "q1") is RequestState.IN_PROGRESS

    run(scenario())


def test_a_silent_worker_is_removed_and_its_request_runs_again(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(redis_url, tmp_path, silent_ms=-1000) as here:
            inbox = await here.worker("gone")
            await submit(here.store, "q1")
            await inbox.next()
            assert await here.reap()
            assert await here.store.workers.list(APP) == []
            assert await here.store.requests.state(APP, "q1") is RequestState.IN_QUEUE
            assert await here.store.workers.beat(APP, "gone", 1) == "gone"

    run(scenario())


def test_a_start_that_was_ordered_and_never_begun_is_given_up(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(redis_url, tmp_path, silent_ms=-1000) as here:
            record = WorkerRecord(APP, "w1", "r1", "h1", WorkerState.PENDING, "S", (), 0)
            await here.store.workers.place(record, here.epoch)
            assert await here.reap()
            assert await here.store.workers.orders("h1") == {}

    run(scenario())


def test_after_an_outage_silence_does_not_count_at_once(redis_url: str, tmp_path: Path) -> None:
    """Redis was away for half a minute (or the laptop slept). When it was back, every worker looked dead: the first
    pass removed them all, and requests that were nearly done ran again."""

    async def scenario() -> None:
        async with scene(redis_url, tmp_path, silent_ms=-1000) as here:
            await here.worker("alive")
            now = (await here.store.apps.observe(APP)).now_ms
            here.reaper._last_ms = now - PAUSE_MS - 1000
            assert not await here.reap()
            assert len(await here.store.workers.list(APP)) == 1
            for step in range(1000, SETTLE_MS, 1000):
                assert not await here.reap(now_ms=now + step)
            assert await here.reap(now_ms=now + SETTLE_MS + 1000)
            assert await here.store.workers.list(APP) == []

    run(scenario())


def test_a_passed_start_deadline_ends_the_request(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(redis_url, tmp_path) as here:
            await submit(here.store, "q1", start_timeout=0.01)
            await submit(here.store, "patient", start_timeout=600)
            await await_until(lambda: here.store.requests.overdue_starts(APP), "the deadline to pass")
            assert await here.reap()
            record = await ended(here.store, "q1")
            assert record.outcome is not None
            assert record.outcome.status == 504
            assert dict(record.outcome.headers)["x-fal-request-timeout-type"] == "user"
            assert await here.store.requests.state(APP, "patient") is RequestState.IN_QUEUE
            assert not await here.reap()

    run(scenario())


def test_a_start_that_does_not_end_is_stopped(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(redis_url, tmp_path, silent_ms=3_600_000) as here:
            record = WorkerRecord(APP, "w1", "r1", "h1", WorkerState.PENDING, "S", (), 0)
            await here.store.workers.place(record, here.epoch)
            await here.store.workers.update(APP, "w1", state=WorkerState.SETUP)
            now = (await here.store.apps.observe(APP)).now_ms
            await here.reap(now_ms=now + 599_000)
            await here.reap(now_ms=now + 600_000 + STARTUP_GRACE_MS + 1000)
            worker = await here.store.workers.get(APP, "w1")
            assert worker is not None
            assert worker.stop_requested == "kill"
            assert "startup_timeout (600 s)" in (worker.reason or "")

    run(scenario())


def test_an_ex_leader_returns_nothing_to_the_queue(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        from scheduler.store.errors import StaleLeader

        async with scene(redis_url, tmp_path) as here:
            frozen = await here.worker("frozen", lease_ms=20)
            await submit(here.store, "q1")
            await frozen.next()
            await await_until(lambda: here.store.requests.expired_leases(APP), "the lease to run out")
            await here.store.requests.promote(APP, here.epoch + 1)
            with pytest.raises(StaleLeader):
                await here.reap()
            assert await here.store.requests.state(APP, "q1") is RequestState.IN_PROGRESS
            await asyncio.sleep(0)

    run(scenario())
