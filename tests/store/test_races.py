"""Interleavings that once cost somebody a result, each played out step by step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler.store import StaleLeader, keys
from scheduler.store.records import Outcome, RequestState, WorkerRecord, WorkerState
from tests.store.scene import APP, LOST, OK, scene
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio
OTHER = Outcome(200, (), b"other")


async def test_a_frozen_worker_wakes_up_and_finishes_an_attempt_that_was_given_away(
    redis_url: str, tmp_path: Path
) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: without the fence the zombie overwrote the second result."""
    async with scene(redis_url, tmp_path) as s:
        frozen = await s.worker("w1", lease_ms=1)
        claim = await s.claimed(frozen)

        async def reaped() -> bool:
            return await s.lose(claim, epoch=s.epoch) == "requeued"

        await await_until(reaped, "the lease to run out")
        healthy = await s.worker("w2")
        second = await healthy.next()
        assert second.attempt == 2
        assert not await frozen.finish(claim, OTHER, claim_next=False)
        assert await healthy.finish(second, OK)
        assert not await frozen.finish(claim, OTHER, claim_next=False)
        record = await s.requests.get(APP, claim.request_id)
        assert record is not None
        assert (record.outcome, record.attempt, record.worker_id) == (OK, 2, "w2")


async def test_a_worker_cannot_finish_its_own_earlier_attempt(redis_url: str, tmp_path: Path) -> None:
    """The same worker got the request again after losing it: the name alone does not tell the attempts apart."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        first = await s.claimed(inbox)
        await s.lose(first, crashed=False)
        second = await inbox.next()
        assert (second.attempt, second.worker_id) == (2, first.worker_id)
        assert not await inbox.finish(first, OTHER, claim_next=False)
        assert await s.lose(first, crashed=False) == "superseded"
        assert await inbox.heartbeat() == []
        assert await inbox.finish(second, OK)


async def test_a_lease_lost_but_not_yet_given_away_may_still_finish(redis_url: str, tmp_path: Path) -> None:
    """An expired lease is only a suspicion: GPU work that ended before anybody acted on it must not be thrown away."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker(lease_ms=1)
        claim = await s.claimed(inbox)

        async def expired() -> bool:
            return bool(await s.requests.expired_leases(APP))

        await await_until(expired, "the lease to run out")
        assert await inbox.finish(claim, OK)
        assert await s.lose(claim, epoch=s.epoch) == "superseded"
        assert await s.requests.state(APP, claim.request_id) is RequestState.COMPLETED


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancel_and_finish_meet(redis_url: str, tmp_path: Path, cancel_first: bool) -> None:
    """Whoever comes first decides; no result and no webhook after a cancel that answered success."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox, webhook="http://there/hook")
        steps = [s.requests.cancel(APP, claim.request_id), inbox.finish(claim, OK)]
        if not cancel_first:
            steps.reverse()
        answers = await asyncio.gather(*steps)
        record = await s.requests.get(APP, claim.request_id)
        assert record is not None
        owed = await s.store.outbox.due(APP)
        if cancel_first:
            assert answers == ["cancelled_running", False]
            assert record.state is RequestState.CANCELLED
            assert owed == []
        else:
            assert answers == [True, "already_completed"]
            assert record.outcome == OK
            assert [d.request_id for d in owed] == [claim.request_id]


async def test_a_cancelled_request_in_back_off_is_not_promoted(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.lose(claim, delay_ms=1)
        await s.requests.cancel(APP, claim.request_id)

        async def nothing_due() -> bool:
            return bool(await s.redis("ZCARD", keys.delayed(APP)) == 0)

        await await_until(nothing_due, "the back-off entry to go")
        assert await s.requests.promote(APP, s.epoch) == 0
        assert await s.requests.queue_size(APP) == 0
        assert await s.requests.state(APP, claim.request_id) is RequestState.CANCELLED


async def test_a_promoted_request_can_still_be_cancelled(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.lose(claim, delay_ms=1)

        async def promoted() -> bool:
            return await s.requests.promote(APP, s.epoch) == 1

        await await_until(promoted, "the back-off to end")
        assert await s.requests.cancel(APP, claim.request_id) == "cancelled_queued"
        await s.submit("next")
        assert (await inbox.next()).request_id == "next"


async def test_a_leader_that_was_asleep_is_refused(redis_url: str, tmp_path: Path) -> None:
    """A paused ex-leader woke up and reaped requests that the new leader had just placed."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker(lease_ms=1)
        claim = await s.claimed(inbox)
        await s.store.leader.resign("scheduler-1")
        newer = await s.store.leader.lead("scheduler-2", 60_000)
        assert newer is not None
        assert newer > s.epoch
        assert await s.store.leader.lead("scheduler-1", 60_000) is None
        await s.requests.promote(APP, newer)
        with pytest.raises(StaleLeader):
            await s.lose(claim, epoch=s.epoch)
        with pytest.raises(StaleLeader):
            await s.requests.promote(APP, s.epoch)
        with pytest.raises(StaleLeader):
            await s.place("w9")
        assert await s.store.workers.get(APP, "w9") is None


async def test_answers_that_were_lost_are_given_again(redis_url: str, tmp_path: Path) -> None:
    """A connection that dies after the server ran the command: the same command comes again and must not do more."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        assert await inbox.finish(claim, OK, claim_next=False)
        await s.submit("untouched")
        assert await inbox.finish(claim, OK), "a finish asked twice is still ours"
        assert await s.requests.state(APP, "untouched") is RequestState.IN_QUEUE, "and claims no second request"
        assert await inbox.finish(await inbox.next(), OK, claim_next=False)

        lost = await s.claimed(inbox)
        assert await s.lose(lost, delay_ms=60_000) == "requeued"
        assert await s.lose(lost, delay_ms=60_000) == "requeued"
        assert await s.requests.queue_size(APP) == 1

        direct = await s.claimed(inbox, mode="direct")
        assert await s.lose(direct) == "failed"
        assert await s.lose(direct) == "failed"
        assert not await inbox.finish(direct, OK)


async def test_a_hand_over_nobody_hears_is_read_again(redis_url: str, tmp_path: Path) -> None:
    """The subscriber connection dies between the submit and its message: the lease is ours, the message is gone."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        waiting = asyncio.ensure_future(inbox.next())

        async def parked() -> bool:
            return bool(await s.redis("ZCARD", keys.parked(APP)))

        await await_until(parked, "the worker to park")
        listeners = s.store._subscriber._listeners[keys.channel_worker("w1").encode()]
        listening = listeners.copy()
        listeners[:] = [lambda _: None]
        await s.submit("unheard")
        assert await s.requests.state(APP, "unheard") is RequestState.IN_PROGRESS
        assert (await asyncio.wait_for(waiting, 5)).request_id == "unheard"
        listeners[:] = listening


async def test_a_worker_that_asks_while_it_is_handed_something_gets_no_second_request(
    redis_url: str, tmp_path: Path
) -> None:
    """A poll crossed a hand-over: the busy worker was parked again, and the next request waited behind its long first
    one although another worker was idle."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        waiting = asyncio.ensure_future(inbox.next())

        async def parked() -> bool:
            return bool(await s.redis("ZCARD", keys.parked(APP)))

        await await_until(parked, "the worker to park")
        submitting = asyncio.ensure_future(s.submit("first"))
        await asyncio.sleep(0)
        inbox._on_work(b"")  # somebody says there is work; the question leaves right behind the submit
        await submitting
        assert (await waiting).request_id == "first"
        await s.submit("second")
        assert await s.requests.state(APP, "second") is RequestState.IN_QUEUE
        idle = await s.worker("w2")
        assert (await idle.next()).request_id == "second"


async def test_a_hand_over_heard_twice_runs_once(redis_url: str, tmp_path: Path) -> None:
    """The message and the read-again both bring the same attempt, in either order, even after it has ended."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        messages: list[bytes] = []
        await s.store.subscribe({keys.channel_worker("w1"): messages.append})
        waiting = asyncio.ensure_future(inbox.next())

        async def parked() -> bool:
            return bool(await s.redis("ZCARD", keys.parked(APP)))

        await await_until(parked, "the worker to park")
        await s.submit("a")
        claim = await waiting
        inbox._on_message(messages[0])
        assert await inbox.finish(claim, OK)
        inbox._on_message(messages[0])
        assert inbox.held == []
        await s.submit("b")
        assert (await inbox.next()).request_id == "b"


async def test_a_hand_over_does_not_overtake_what_came_back_to_the_queue(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        dying = await s.worker("w1")
        claim = await s.claimed(dying)
        idle = await s.worker("w2")
        waiting = asyncio.ensure_future(idle.next())

        async def parked() -> bool:
            return bool(await s.redis("ZCARD", keys.parked(APP)))

        await await_until(parked, "the worker to park")
        await asyncio.gather(s.lose(claim), s.submit("new"))
        assert (await waiting).request_id == claim.request_id
        assert await s.requests.state(APP, "new") is RequestState.IN_QUEUE


async def test_a_worker_that_died_while_parked_gets_nothing(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        dead = await s.worker("w1")
        waiting = asyncio.ensure_future(dead.next())

        async def parked() -> bool:
            return bool(await s.redis("ZCARD", keys.parked(APP)))

        await await_until(parked, "the worker to park")
        waiting.cancel()
        await dead.close()
        await s.redis("PING")  # behind the UNSUBSCRIBE of close
        await asyncio.sleep(0.01)
        await s.submit("a")
        assert await s.requests.state(APP, "a") is RequestState.IN_QUEUE
        alive = await s.worker("w2")
        assert (await alive.next()).request_id == "a"


async def test_a_worker_asked_to_stop_while_parked_gets_nothing(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        stops: list[str] = []
        inbox.stop_requested = stops.append
        waiting = asyncio.ensure_future(inbox.next())

        async def parked() -> bool:
            return bool(await s.redis("ZCARD", keys.parked(APP)))

        await await_until(parked, "the worker to park")
        assert await s.store.workers.request_stop(APP, "w1", "idle", "past its keep-alive")
        await s.submit("a")
        assert await s.requests.state(APP, "a") is RequestState.IN_QUEUE

        async def told() -> bool:
            return stops == ["drain"]

        await await_until(told, "the worker to be told")
        inbox.close_to_new()
        with pytest.raises(Exception, match="holds nothing"):
            await waiting


async def test_an_idle_stop_loses_against_a_request(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox)
        assert not await s.store.workers.request_stop(APP, "w1", "idle", "past its keep-alive")
        assert await inbox.finish(claim, OK)
        assert await s.store.workers.request_stop(APP, "w1", "idle", "past its keep-alive")


async def test_workers_of_an_earlier_revision_serve_until_they_are_told_to_stop(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        old = await s.worker("old")
        new = await s.worker("new", revision="r2")
        nexts = {"old": asyncio.ensure_future(old.next()), "new": asyncio.ensure_future(new.next())}

        async def parked() -> bool:
            return bool(await s.redis("ZCARD", keys.parked(APP)) == 2)

        await await_until(parked, "both workers to park")
        await s.store.apps.point(APP, "r2", auth=None, scaling=None, ephemeral=False)
        await await_until(parked, "both workers to park again")
        await s.submit("first")
        assert (await nexts["new"]).request_id == "first", "the current revision comes first"
        await s.submit("second")
        claim = await nexts["old"]
        assert claim.request_id == "second", "but a warm worker is better than none"
        await s.store.workers.request_stop(APP, "old", "drain", "replaced")
        await s.submit("third")
        assert await old.finish(claim, OK), "what runs may end"
        assert await s.requests.state(APP, "third") is RequestState.IN_QUEUE


async def test_a_removed_worker_loses_its_requests_at_once(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox)
        await s.store.workers.remove(APP, "w1", "killed")
        assert await s.requests.expired_leases(APP) == [(claim.request_id, 1, "w1")]
        assert await s.lose(claim, epoch=s.epoch, fallback=LOST) == "requeued"
        assert await s.redis("ZCARD", keys.leases(APP)) == 0


async def test_a_former_leader_places_nothing_after_the_next_one_has_looked(redis_url: str, tmp_path: Path) -> None:
    """The new leader saw no worker and placed two; the former one, a moment late, placed a third that neither had
    counted: one more than max_concurrency."""
    async with scene(redis_url, tmp_path) as s:
        former = s.epoch
        await s.store.leader.resign("scheduler-1")
        await s.redis("DEL", keys.leader())
        epoch = await s.store.leader.lead("scheduler-2", 60_000)
        assert epoch is not None
        await s.store.apps.observe(APP, epoch)
        record = WorkerRecord(APP, "late", "r1", "box", WorkerState.PENDING, "S", (), 0)
        with pytest.raises(StaleLeader):
            await s.store.workers.place(record, former)
        with pytest.raises(StaleLeader):
            await s.store.apps.observe(APP, former)


async def test_an_entry_of_an_earlier_attempt_is_not_given(redis_url: str, tmp_path: Path) -> None:
    """A request that pauses before its next attempt has no entry; one that was left behind must not cut the pause."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.submit("r")
        assert await s.lose(await inbox.next(), delay_ms=60_000) == "requeued"
        await s.redis("XADD", keys.queue_normal(APP), "*", "id", "r")
        await s.submit("other")
        assert (await inbox.next()).request_id == "other"
