"""Each guard of the verbs on its own: what the races do not reach, and `python -m tests.mutations` found unguarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.store import keys
from scheduler.store.connection import Arg
from scheduler.store.outcomes import OVERDUE, pack_outcome
from scheduler.store.records import LogEntry, Outcome, RequestState, WorkerState
from scheduler.store.scripts import SCRIPTS
from tests.store.scene import APP, OK, Scene, scene
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio


async def finish(s: Scene, request_id: str, attempt: int, worker_id: str, claim_more: int = 0) -> list[Any]:
    """The verb alone, in anybody's name."""
    reply: list[Any] = await SCRIPTS["finish"](
        s.store._redis,
        APP,
        request_id=request_id,
        attempt=attempt,
        worker_id=worker_id,
        status="COMPLETED",
        result=pack_outcome(OK),
        error_type="",
        retention_ms=60_000,
        claim_more=claim_more,
        lease_ms=30_000,
        overdue=OVERDUE,
        bytes=len(OK.body),
    )
    return reply


async def in_flight(s: Scene, worker_id: str) -> int:
    """How many requests the worker's record says it holds."""
    worker = await s.store.workers.get(APP, worker_id)
    assert worker is not None
    return worker.in_flight


async def test_an_attempt_is_ended_given_back_and_renewed_by_its_own_worker_only(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        await s.worker("w2")
        claim = await s.claimed(inbox)
        assert await finish(s, claim.request_id, 1, "w2") == [0, b""]
        assert await s.lose(claim, worker_id="w2") == "superseded"
        held = [claim.request_id, "1"]
        beat = SCRIPTS["heartbeat"]
        lost = await beat(s.store._redis, APP, worker_id="w2", lease_ms=30_000, rest=held)
        assert [item.decode() for item in lost] == held
        assert await s.requests.state(APP, claim.request_id) is RequestState.IN_PROGRESS
        s.inboxes[0]._held[claim.request_id] = 1  # `lose` has let go of it
        assert await inbox.finish(claim, OK, claim_next=False)


async def test_a_worker_is_told_that_an_attempt_it_lost_counts_no_more_though_it_holds_a_later_one(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        first = await s.claimed(inbox)
        await s.lose(first, crashed=False)
        second = await inbox.next()
        reply = await SCRIPTS["heartbeat"](
            s.store._redis,
            APP,
            worker_id="w1",
            lease_ms=30_000,
            rest=[first.request_id, "1", second.request_id, "2"],
        )
        assert reply == [first.request_id.encode(), b"1"]


async def test_a_removed_worker_that_finishes_after_all_leaves_no_trace_of_a_worker(
    redis_url: str, tmp_path: Path
) -> None:
    """Its result counts, as its lease was not given away. Its record must not come to life again by that: without an
    expiry it would stay for ever, and the scheduler would count it."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox)
        await s.store.workers.remove(APP, "w1", "no sign of life")
        before = await s.redis("HGETALL", keys.worker(APP, "w1"))
        assert await finish(s, claim.request_id, 1, "w1", claim_more=1) == [1, b"gone"]
        assert await s.redis("HGETALL", keys.worker(APP, "w1")) == before
        assert not await s.store.workers.update(APP, "w1", state=WorkerState.IDLE)
        assert await s.store.workers.beat(APP, "w1", 0) == "gone"


async def test_a_retry_frees_the_slot_and_counts_only_crashes(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox)
        assert await in_flight(s, "w1") == 1
        for _ in range(4):
            assert await s.lose(claim, crashed=False) == "requeued"
            assert await in_flight(s, "w1") == 0
            claim = await inbox.next()
        assert "crashes" not in await s.fields(claim.request_id)


async def test_a_request_in_a_pause_still_has_its_start_deadline(redis_url: str, tmp_path: Path) -> None:
    """It had started in time, was given back, and then nobody watched its deadline any more."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox, start_timeout=60)
        assert await s.redis("ZCARD", keys.deadlines(APP)) == 0
        await s.lose(claim, delay_ms=60_000)
        assert await s.redis("ZRANGE", keys.deadlines(APP), 0, -1) == [claim.request_id.encode()]
        assert await s.requests.overdue_starts(APP) == []
        await s.redis("ZADD", keys.deadlines(APP), "XX", 1, claim.request_id)
        assert await s.requests.overdue_starts(APP) == [claim.request_id]
        assert await s.requests.fail_queued(APP, claim.request_id, Outcome(504, (), b"late"))
        assert await s.redis("ZCARD", keys.deadlines(APP)) == 0


async def test_a_pause_is_waited_for_and_ends_once(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox)
        await s.lose(claim, delay_ms=60_000)
        assert await s.requests.promote(APP, s.epoch) == 0
        await s.redis("ZADD", keys.delayed(APP), "XX", 1, claim.request_id)
        assert await s.requests.promote(APP, s.epoch) == 1
        assert await s.redis("ZCARD", keys.delayed(APP)) == 0
        assert await s.requests.promote(APP, s.epoch) == 0
        assert await s.requests.queue_size(APP) == 1


async def test_a_lead_runs_out_and_is_given_up_only_by_its_holder(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.store.leader.resign("scheduler-2")
        assert await s.store.leader.lead("scheduler-2", 60_000) is None
        await s.store.leader.resign("scheduler-1")
        assert await s.store.leader.lead("scheduler-1", 1) == s.epoch + 1

        async def taken() -> bool:
            return await s.store.leader.lead("scheduler-2", 60_000) == s.epoch + 2

        await await_until(taken, "the lead to run out")


@pytest.mark.parametrize("how", ["fail_deleted", "flush_queue"])
async def test_what_runs_may_end_when_everything_waiting_is_ended(redis_url: str, tmp_path: Path, how: str) -> None:
    """An entry of a running request must not be in a queue; if one is, it is not the request's."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox)
        await s.redis("XADD", keys.queue_normal(APP), "*", "id", claim.request_id)
        await s.submit("waits")
        assert await getattr(s.requests, how)(APP) == 1
        assert await s.requests.state(APP, claim.request_id) is RequestState.IN_PROGRESS
        assert await inbox.finish(claim, OK, claim_next=False)


async def test_one_callers_waiting_requests_are_counted_and_ended(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        hers = (("accept", "*/*"), ("x-fal-caller-user-id", "her"))
        running = await s.claimed(inbox, headers=hers)
        await s.lose(await s.claimed(await s.worker("w2"), headers=hers), delay_ms=60_000)
        for n in range(700):
            await s.submit(headers=hers if n % 2 else (), priority="low" if n % 3 else "normal")
        assert list((await s.requests.queue_by_caller(APP)).items()) == [("her", 351), ("anonymous", 350)]
        assert await s.requests.flush_queue(APP, "nobody") == 0
        assert await s.requests.flush_queue(APP, "her") == 351
        assert await s.requests.queue_by_caller(APP) == {"anonymous": 350}
        assert await s.requests.flush_queue(APP, "anonymous") == 350
        assert await s.requests.queue_size(APP) == 0
        assert await s.requests.state(APP, running.request_id) is RequestState.IN_PROGRESS


async def test_an_entry_that_is_not_the_requests_own_is_passed_over(redis_url: str, tmp_path: Path) -> None:
    """Left over from before a retry or a restore: only the entry that the record names counts."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        running = await s.claimed(inbox)
        for request_id in (running.request_id, "unknown", "a"):
            await s.redis("XADD", keys.queue_normal(APP), "*", "id", request_id)
        await s.submit("a")
        await s.submit("b")
        assert (await inbox.next()).request_id == "a"
        assert await s.redis("XLEN", keys.queue_normal(APP)) == 1, "its own entry went with it; b's is left"
        assert (await inbox.next()).request_id == "b"
        assert await s.redis("XLEN", keys.queue_normal(APP)) == 0


async def claim(s: Scene, *held: str, worker_id: str = "w1") -> Any:
    """The verb alone."""
    return await SCRIPTS["claim"](
        s.store._redis, APP, worker_id=worker_id, lease_ms=30_000, overdue=OVERDUE, retention_ms=60_000, rest=held
    )


async def test_a_worker_is_given_again_only_what_it_does_not_know_of(redis_url: str, tmp_path: Path) -> None:
    """One of two answers was lost; the attempt whose answer came through must not begin a second time."""
    async with scene(redis_url, tmp_path) as s:
        await s.worker("w1")
        await s.submit("heard")
        await claim(s)
        await s.submit("unheard")
        await claim(s, "heard 1")
        (message,) = await claim(s, "heard 1")
        assert message.startswith(b"claim unheard 1 ")
        assert await claim(s, "heard 1", "unheard 1") == b"empty"


async def test_a_worker_that_found_work_while_it_was_parked_is_handed_nothing_more(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.worker("w1")
        other = await s.worker("w2")
        lost = await s.claimed(other)
        assert await claim(s) == b"empty"
        await s.lose(lost)
        assert (await claim(s))[0].startswith(b"claim ")
        await s.submit("next")
        assert await s.requests.state(APP, "next") is RequestState.IN_QUEUE


async def test_what_waits_for_a_deleted_app_does_not_run(redis_url: str, tmp_path: Path) -> None:
    """Between the two steps of a deletion: the name is gone, its requests have not been ended yet."""
    async with scene(redis_url, tmp_path) as s:
        await s.worker("w1")
        await s.submit("a")
        await SCRIPTS["retire_app"](s.store._redis, APP)
        assert await claim(s) == b"empty"
        assert await s.requests.state(APP, "a") is RequestState.IN_QUEUE


async def test_a_worker_that_parked_long_ago_is_handed_nothing(redis_url: str, tmp_path: Path) -> None:
    """It would have asked again: it is frozen, or its connection is dead and nobody has noticed."""
    async with scene(redis_url, tmp_path) as s:
        await s.worker("w1")
        assert await claim(s) == b"empty"
        await s.redis("ZADD", keys.parked(APP), "XX", 1, "w1")
        await s.submit("a")
        assert await s.requests.state(APP, "a") is RequestState.IN_QUEUE


async def test_a_webhook_is_sent_afresh_only_where_there_is_something_to_send(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        wanted = await s.claimed(inbox, webhook="http://there/hook")
        unwanted = await s.claimed(inbox)
        assert not await s.store.outbox.replay(APP, wanted.request_id), "it has not ended"
        for claim in (wanted, unwanted):
            assert await inbox.finish(claim, OK, claim_next=False)
        assert not await s.store.outbox.replay(APP, unwanted.request_id)
        assert not await s.store.outbox.replay(APP, "unknown")
        (owed,) = await s.store.outbox.due(APP)
        await s.store.outbox.reschedule(owed, 60)
        before = await s.redis("ZRANGE", keys.outbox(APP), 0, -1, "WITHSCORES")
        assert await s.store.outbox.replay(APP, wanted.request_id)
        assert await s.redis("ZRANGE", keys.outbox(APP), 0, -1, "WITHSCORES") == before, "one on its way stays so"
        assert (await s.fields(wanted.request_id))["webhook_tries"] == "1"


async def test_the_log_of_a_request_is_kept_no_longer_than_the_request(redis_url: str, tmp_path: Path) -> None:
    """While it ran nobody knew when it would end, so that its log was given a week."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox)
        line = LogEntry("", 1.0, "INFO", "line", request_id=claim.request_id)
        await s.store.logs.append(APP, [line])
        log, record = keys.request_logs(APP, claim.request_id), keys.request(APP, claim.request_id)
        assert await s.redis("PTTL", log) > 0
        await s.redis("PEXPIRE", log, 10**12)
        assert await inbox.finish(claim, OK, claim_next=False)
        kept = await s.redis("PTTL", record)
        assert 0 < await s.redis("PTTL", log) <= kept


@pytest.mark.parametrize("how", ["removed", "stopped", "draining"])
async def test_a_worker_that_leaves_is_parked_no_longer(redis_url: str, tmp_path: Path, how: str) -> None:
    """The list of parked workers has no expiry: whoever stayed in it would stay for ever."""
    async with scene(redis_url, tmp_path) as s:
        await s.worker("w1")
        assert await claim(s) == b"empty"
        assert await s.redis("ZCARD", keys.parked(APP)) == 1
        if how == "removed":
            await s.store.workers.remove(APP, "w1", "gone")
        elif how == "stopped":
            await s.store.workers.request_stop(APP, "w1", "drain", "old")
        else:
            await s.store.workers.update(APP, "w1", state=WorkerState.DRAINING)
        assert await s.redis("ZCARD", keys.parked(APP)) == 0


async def test_output_is_taken_from_the_attempt_that_counts_and_from_its_worker(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        first = await s.claimed(inbox)
        await s.lose(first, crashed=False)
        second = await inbox.next()

        async def send(attempt: int, worker_id: str) -> int:
            piece: dict[str, Arg] = {"request_id": second.request_id, "sequence": 1, "kind": "chunk", "data": b"piece"}
            taken: int = await SCRIPTS["append_output"](
                s.store._redis, APP, patience=1, rest=(), attempt=attempt, worker_id=worker_id, **piece
            )
            return taken

        assert await send(1, "w1") == -1
        assert await send(2, "w2") == -1
        assert await send(2, "w1") == 1


async def test_a_delivery_that_is_over_stays_so(redis_url: str, tmp_path: Path) -> None:
    """Two senders had it, as the first one's note was late: what the second one says must not bring it back."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox, webhook="http://there/hook")
        assert await inbox.finish(claim, OK, claim_next=False)
        (delivery,) = await s.store.outbox.due(APP)
        await s.store.outbox.delivered(delivery)
        await s.store.outbox.reschedule(delivery, 60)
        await s.store.outbox.give_up(delivery, "late")
        assert await s.redis("ZCARD", keys.outbox(APP)) == 0
        assert await s.store.outbox.dead(APP) == []
        assert (await s.fields(claim.request_id))["webhook_state"] == "delivered"


async def test_work_is_claimed_given_back_and_led_in_full_memory(redis_url: str, tmp_path: Path) -> None:
    """What was accepted before the memory was full goes on, so that there is room again some day."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        paused = await s.claimed(inbox)
        await s.lose(paused, delay_ms=60_000)
        await s.redis("ZADD", keys.delayed(APP), "XX", 1, paused.request_id)
        await s.submit("waits")
        await s.redis("CONFIG", "SET", "maxmemory", "1")
        try:
            assert (await claim(s))[0].startswith(b"claim waits ")
            assert await s.store.leader.lead("scheduler-1", 60_000) == s.epoch
            assert await s.requests.promote(APP, s.epoch) == 1
            await s.store.workers.beat(APP, "w1", 1)
        finally:
            await s.redis("CONFIG", "SET", "maxmemory", "0")
