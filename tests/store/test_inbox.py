"""The worker's side: hand-overs, several slots, draining, heartbeats."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler.store import InboxClosed, keys
from scheduler.store.records import RequestState, WorkerState
from tests.store.scene import APP, OK, Scene, scene
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio


async def parked(s: Scene, count: int = 1) -> None:
    """Waits until that many workers are parked."""

    async def condition() -> bool:
        return bool(await s.redis("ZCARD", keys.parked(APP)) == count)

    await await_until(condition, f"{count} parked workers")


async def test_a_submit_hands_over_to_a_parked_worker(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        waiting = asyncio.ensure_future(inbox.next())
        await parked(s)
        await s.submit("a")
        assert await s.requests.state(APP, "a") is RequestState.IN_PROGRESS
        worker = await s.store.workers.get(APP, "w1")
        assert worker is not None
        assert (worker.state, worker.in_flight, worker.idle_since_ms) == (WorkerState.RUNNING, 1, None)
        claim = await waiting
        assert (claim.request_id, claim.attempt, claim.worker_id) == ("a", 1, "w1")
        assert await inbox.finish(claim, OK)
        worker = await s.store.workers.get(APP, "w1")
        assert worker is not None
        assert (worker.state, worker.in_flight, worker.served) == (WorkerState.IDLE, 0, 1)
        assert worker.idle_since_ms is not None
        assert await s.redis("XLEN", keys.queue_normal(APP)) == 0


async def test_a_finish_brings_the_next_request_along(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.submit("next")
        await inbox.finish(claim, OK)
        assert await s.requests.state(APP, "next") is RequestState.IN_PROGRESS
        assert (await inbox.next()).request_id == "next"


async def test_work_is_spread_over_idle_workers(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inboxes = [await s.worker(f"w{n}") for n in range(3)]
        waiting = [asyncio.ensure_future(inbox.next()) for inbox in inboxes]
        await parked(s, 3)
        for n in range(3):
            await s.submit(f"q{n}")
        claims = await asyncio.gather(*waiting)
        assert {claim.request_id for claim in claims} == {"q0", "q1", "q2"}
        assert {claim.worker_id for claim in claims} == {"w0", "w1", "w2"}


async def test_slots_of_one_worker_fill_at_once(redis_url: str, tmp_path: Path) -> None:
    """Only the first of several waiting slots was parked again by a poll: the second request waited a second."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        slots = [asyncio.ensure_future(inbox.next()) for _ in range(4)]
        await parked(s)
        for n in range(4):
            await s.submit(f"q{n}")
        claims = await asyncio.wait_for(asyncio.gather(*slots), 0.9)
        assert {claim.request_id for claim in claims} == {"q0", "q1", "q2", "q3"}
        for claim in claims:
            assert await inbox.finish(claim, OK)
        seen = await s.store.apps.observe(APP)
        assert (seen.queued, seen.in_progress, seen.workers[0].in_flight, seen.workers[0].served) == (0, 0, 0, 4)


async def test_a_retried_request_reaches_an_idle_worker_at_once(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        dying = await s.worker("w1")
        claim = await s.claimed(dying)
        idle = await s.worker("w2")
        waiting = asyncio.ensure_future(idle.next())
        await parked(s)
        await s.lose(claim)
        assert (await asyncio.wait_for(waiting, 0.9)).attempt == 2


async def test_a_draining_inbox_gives_out_what_it_holds_and_then_closes(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.submit("next")
        await inbox.finish(claim, OK)
        await s.submit("left")
        inbox.close_to_new()
        held = await inbox.next()
        assert held.request_id == "next"
        leaving = asyncio.ensure_future(inbox.next())
        await asyncio.wait([leaving], timeout=0.05)
        assert not leaving.done()
        await inbox.finish(held, OK)
        with pytest.raises(InboxClosed):
            await leaving
        assert await s.requests.state(APP, "left") is RequestState.IN_QUEUE


async def test_a_heartbeat_names_what_must_stop(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker(lease_ms=60_000)
        kept = await s.claimed(inbox)
        given_away = await s.claimed(inbox)
        before = float(await s.redis("ZSCORE", keys.leases(APP), kept.request_id))
        answer = await s.requests.retry(
            *(APP, given_away.request_id, 1),
            worker_id="w1",
            reason="",
            crashed=False,
            delay_ms=60_000,
            fallback=OK,
        )
        assert answer == "requeued"

        async def renewed() -> bool:
            stop = await inbox.heartbeat()
            assert stop in ([], [(given_away.request_id, 1)])
            return float(await s.redis("ZSCORE", keys.leases(APP), kept.request_id)) > before

        await await_until(renewed, "a later lease")
        assert inbox.held == [(kept.request_id, 1)]


async def test_a_removed_worker_gets_nothing(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.store.workers.remove(APP, "w1", "silent")
        await s.submit("a")
        waiting = asyncio.ensure_future(inbox.next())
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        waiting.cancel()
        assert await s.store.workers.beat(APP, "w1", 0) == "gone"
        assert not await s.store.workers.update(APP, "w1", reason="still here")


async def test_a_request_whose_large_body_is_gone_ends_with_an_error(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.submit("large", body=b"x" * 300_000)
        for ref, _, _ in list(s.store.blobs.older_than(-1)):
            s.store.blobs.delete(ref)
        await s.submit("small")
        assert (await inbox.next()).request_id == "small"
        record = await s.requests.get(APP, "large")
        assert record is not None
        assert (record.state, record.error_type) == (RequestState.ERROR, "internal_error")


async def test_a_resting_inbox_asks_for_nothing_and_stays_open(redis_url: str, tmp_path: Path) -> None:
    """Its runner is unhealthy: what it holds goes on, and nothing comes after it."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.submit("waits")

        inbox.rest()
        waiting = asyncio.ensure_future(inbox.next())
        assert await inbox.finish(claim, OK)
        await s.submit("wakes-it")
        await asyncio.wait({waiting}, timeout=1.5)  # longer than between two looks

        assert not waiting.done()
        assert await s.requests.state(APP, "waits") is RequestState.IN_QUEUE
        inbox.close_to_new()
        with pytest.raises(InboxClosed):
            await waiting
