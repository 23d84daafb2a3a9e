"""What each verb on requests does when nothing else happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler.store import IdempotencyConflict, NotFound, QueueFull, StaleLeader, keys
from scheduler.store.records import Outcome, RequestState
from tests.store.scene import APP, LOST, OK, scene, submission
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio


async def test_a_stored_request_waits_with_its_position(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        first = await s.requests.submit(submission("a"))
        second = await s.requests.submit(submission("b"))
        assert (first.position, second.position) == (0, 1)
        record = await s.requests.get(APP, "b")
        assert record is not None
        assert (record.state, record.position, record.attempt) == (RequestState.IN_QUEUE, 1, 0)
        assert await s.requests.queue_size(APP) == 2
        assert await s.requests.get(APP, "unknown") is None
        assert await s.requests.state(APP, "unknown") is None


async def test_a_request_is_claimed_run_and_finished(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.submit("a", query="x=1", path="/paint", method="PUT")
        claim = await inbox.next()
        assert (claim.request_id, claim.attempt, claim.method, claim.path, claim.query) == (
            *("a", 1, "PUT", "/paint", "x=1"),
        )
        assert claim.headers == (("content-type", "application/json"),)
        assert claim.body == b'{"prompt":"rhino"}'
        running = await s.requests.get(APP, "a")
        assert running is not None
        assert (running.state, running.worker_id) == (RequestState.IN_PROGRESS, "w1")
        assert await inbox.finish(claim, Outcome(200, OK.headers, OK.body, inference_seconds=0.5))
        done = await s.requests.get(APP, "a")
        assert done is not None
        assert done.state is RequestState.COMPLETED
        assert done.outcome is not None
        assert (done.outcome.body, done.outcome.inference_seconds) == (OK.body, 0.5)
        assert done.finished_at_ms is not None
        fields = await s.fields("a")
        assert fields["body"] == ""
        assert fields["call"] == ""
        assert await s.requests.queue_size(APP) == 0


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (OK, RequestState.COMPLETED),
        (Outcome(302, (), b""), RequestState.COMPLETED),
        (Outcome(422, (), b'{"detail":[]}'), RequestState.ERROR),
        (LOST, RequestState.ERROR),
    ],
)
async def test_the_answer_decides_between_completed_and_error(
    redis_url: str, tmp_path: Path, outcome: Outcome, state: RequestState
) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await inbox.finish(claim, outcome)
        record = await s.requests.get(APP, claim.request_id)
        assert record is not None
        assert (record.state, record.error_type, record.outcome) == (state, outcome.error_type, outcome)


async def test_a_waiting_gateway_is_pushed_the_result(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        heard = []
        await s.store.subscribe({keys.channel_gateway("g1"): lambda m: heard.append(s.requests.decode_push(m))})
        inbox = await s.worker()
        claim = await s.claimed(inbox, gateway="g1", mode="direct")
        assert claim.gateway == "g1"
        await inbox.finish(claim, OK)

        async def pushed() -> bool:
            return bool(heard)

        await await_until(pushed, "the push")
        request_id, record = heard[0]
        assert request_id == claim.request_id
        assert record == await s.requests.get(APP, claim.request_id)


async def test_what_no_runner_was_told_of_costs_nothing(redis_url: str, tmp_path: Path) -> None:
    """A direct call was pushed to a worker whose runner had just been told to go, and failed without having begun."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        for mode in ("direct", "queued"):
            request_id = await s.submit(mode=mode, max_attempts=2)
            for attempt in (1, 2):
                claim = await inbox.next()
                assert (claim.request_id, claim.attempt) == (request_id, attempt)
                assert await s.lose(claim, crashed=False, unstarted=True) == "requeued"
            begun = [await s.lose(await inbox.next(), crashed=False) for _ in range(1 if mode == "direct" else 2)]
            assert begun == (["failed"] if mode == "direct" else ["requeued", "failed"])


async def test_a_large_answer_that_is_tried_again_stays_out_of_redis(redis_url: str, tmp_path: Path) -> None:
    """The body of a 503 went into Redis whole with each attempt, up to 64 MiB, though most are thrown away."""
    async with scene(redis_url, tmp_path) as s:
        large = bytes(range(256)) * 2048
        inbox = await s.worker()
        request_id = await s.submit(max_attempts=2)
        for expected in ("requeued", "failed"):
            claim = await inbox.next()
            answer = Outcome(503, (), large)
            assert await s.lose(claim, crashed=False, fallback=answer) == expected
            assert await s.redis("MEMORY", "USAGE", keys.request(APP, request_id)) < 4096
            kept = len(list((tmp_path / "blobs").glob("*/*/*")))
            assert kept == (1 if expected == "failed" else 0), "only what is somebody's answer stays"
        record = await s.requests.get(APP, request_id)
        assert record is not None
        assert record.outcome is not None
        assert record.outcome.body == large


async def test_a_result_too_large_for_redis_goes_to_disk(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        heard = []
        await s.store.subscribe({keys.channel_gateway("g1"): lambda m: heard.append(s.requests.decode_push(m))})
        large = bytes(range(256)) * 2048
        inbox = await s.worker()
        claim = await s.claimed(inbox, body=large, gateway="g1")
        assert claim.body == large
        await inbox.finish(claim, Outcome(200, (), large[::-1]))
        record = await s.requests.get(APP, claim.request_id)
        assert record is not None
        assert record.outcome is not None
        assert record.outcome.body == large[::-1]

        async def pushed() -> bool:
            return bool(heard)

        await await_until(pushed, "the push")
        assert heard == [(claim.request_id, None)]
        assert await s.redis("MEMORY", "USAGE", keys.request(APP, claim.request_id)) < 4096
        assert await s.store.sweep_blobs(older_than_s=-1) == 0
        await s.redis("DEL", keys.request(APP, claim.request_id))
        assert len(list((tmp_path / "blobs").glob("*/*/*"))) == 1, "the body went when the result came"
        assert await s.store.sweep_blobs(older_than_s=-1) == 1


async def test_normal_goes_before_low_but_not_for_ever(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        for n in range(20):
            await s.submit(f"n{n}")
        await s.submit("low", priority="low")
        record = await s.requests.get(APP, "low")
        assert record is not None
        assert record.position == 20
        inbox = await s.worker()
        order = []
        while "low" not in order:
            claim = await inbox.next()
            order.append(claim.request_id)
            await inbox.finish(claim, OK, claim_next=False)
        assert order == [f"n{n}" for n in range(7)] + ["low"]


async def test_one_id_stores_one_request(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        assert not (await s.requests.submit(submission("a"))).duplicate
        assert (await s.requests.submit(submission("a"))).duplicate
        assert await s.requests.queue_size(APP) == 1


async def test_ids_are_single_words(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        for changes in ({"request_id": "a b"}, {"request_id": "a\n"}, {"request_id": ""}, {"gateway": "g 1"}):
            with pytest.raises(ValueError, match="no id"):
                await s.requests.submit(submission(**{"request_id": "a"} | changes))


async def test_one_idempotency_key_stores_one_request(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        answers = await asyncio.gather(
            *(s.requests.submit(submission(f"i{n}", idempotency_key="order 7")) for n in range(20))
        )
        assert {answer.request_id for answer in answers} == {"i0"}
        assert await s.requests.queue_size(APP) == 1
        with pytest.raises(IdempotencyConflict):
            await s.requests.submit(submission("other", idempotency_key="order 7", body=b"different"))


async def test_an_app_that_does_not_exist_takes_nothing(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        with pytest.raises(NotFound):
            await s.requests.submit(submission("a", app="alice/nothing"))


async def test_a_queue_has_the_callers_limit_and_the_platforms(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, max_queue=3) as s:
        await s.submit()
        await s.submit()
        with pytest.raises(QueueFull):
            await s.submit(max_queue_length=2)
        await s.submit(max_queue_length=3)
        with pytest.raises(QueueFull):
            await s.submit()


async def test_cancel_at_each_point(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        assert await s.requests.cancel(APP, "nothing") == "not_found"
        await s.submit("queued")
        assert await s.requests.cancel(APP, "queued", error_type="client_disconnected") == "cancelled_queued"
        assert await s.requests.cancel(APP, "queued") == "already_completed"
        record = await s.requests.get(APP, "queued")
        assert record is not None
        assert record.outcome is not None
        assert (record.state, record.outcome.status, record.error_type) == (
            *(RequestState.CANCELLED, 499, "client_disconnected"),
        )
        assert await s.requests.queue_size(APP) == 0

        inbox = await s.worker()
        told: list[str] = []
        inbox.cancelled = told.append
        claim = await s.claimed(inbox)
        assert await s.requests.cancel(APP, claim.request_id) == "cancelled_running"

        async def heard() -> bool:
            return told == [claim.request_id]

        await await_until(heard, "the worker to be told")
        worker = await s.store.workers.get(APP, "w1")
        assert worker is not None
        assert worker.in_flight == 0
        assert await inbox.heartbeat() == [(claim.request_id, claim.attempt)]
        assert not await inbox.finish(claim, OK)
        record = await s.requests.get(APP, claim.request_id)
        assert record is not None
        assert record.state is RequestState.CANCELLED

        claim = await s.claimed(inbox)
        await s.lose(claim, delay_ms=60_000)
        assert await s.requests.cancel(APP, claim.request_id) == "cancelled_queued"
        assert await s.requests.queue_size(APP) == 0

        claim = await s.claimed(inbox)
        await inbox.finish(claim, OK)
        assert await s.requests.cancel(APP, claim.request_id) == "already_completed"


async def test_a_lost_attempt_runs_again_and_keeps_its_place_in_time(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        assert await s.lose(claim) == "requeued"
        again = await inbox.next()
        assert (again.request_id, again.attempt, again.body) == (claim.request_id, 2, claim.body)
        assert again.submitted_at_ms == claim.submitted_at_ms


async def test_a_good_answer_leaves_nothing_of_an_earlier_failure(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        await s.lose(claim, reason="its runner died")
        assert (await s.fields(claim.request_id))["error"] == "its runner died"
        assert await inbox.finish(await inbox.next(), OK)
        record = await s.requests.get(APP, claim.request_id)
        assert record is not None
        assert (record.state, record.error, record.error_type) == (RequestState.COMPLETED, None, None)


async def test_a_back_off_ends_by_promote(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox)
        assert await s.lose(claim, delay_ms=30, crashed=False) == "requeued"
        seen = await s.store.apps.observe(APP)
        assert (seen.queued, seen.delayed) == (0, 1)
        assert seen.next_delayed_at_ms is not None
        assert 0 < seen.next_delayed_at_ms - seen.now_ms <= 30

        async def promoted() -> bool:
            return await s.requests.promote(APP, s.epoch) == 1

        await await_until(promoted, "the back-off to end")
        assert (await inbox.next()).attempt == 2


async def test_attempts_are_used_up(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox, max_attempts=2)
        assert await s.lose(claim, crashed=False) == "requeued"
        assert await s.lose(await inbox.next(), crashed=False) == "failed"
        record = await s.requests.get(APP, claim.request_id)
        assert record is not None
        assert (record.state, record.outcome, record.error_type) == (RequestState.ERROR, LOST, "runner_disconnected")


async def test_a_direct_request_is_never_retried(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        claim = await s.claimed(inbox, mode="direct")
        assert await s.lose(claim) == "failed"


async def test_three_crashes_alone_poison_a_request(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.submit("bad")
        answers = [await s.lose(await inbox.next()) for _ in range(3)]
        assert answers == ["requeued", "requeued", "failed"]
        record = await s.requests.get(APP, "bad")
        assert record is not None
        assert record.error_type == "poison_request"


async def test_each_condition_has_a_budget_of_its_own(redis_url: str, tmp_path: Path) -> None:
    """Budgets were compared with the number of the attempt: a retry for a lost connection used up the one that the
    app allowed for its own 503."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.submit("r")
        wishes = [("connection_error", None), ("server_error", 1), ("timeout", 1), ("server_error", 1)]
        answers = [
            await s.lose(await inbox.next(), crashed=False, condition=condition, budget=budget)
            for condition, budget in wishes
        ]
        assert answers == ["requeued", "requeued", "requeued", "failed"]


async def test_a_failed_gpu_is_to_blame_until_the_request_has_made_another_one_fail(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        await s.submit("bad")
        places = ["w1", "w1", "w2", "w3", "w4"]
        answers = [await s.lose(await inbox.next(), faulted_on=place) for place in places]
        assert answers == ["requeued"] * 4 + ["failed"]
        assert (await s.fields("bad"))["crashes"] == "3"


async def test_a_crash_with_company_blames_nobody_until_each_ran_alone(redis_url: str, tmp_path: Path) -> None:
    """With several requests in flight a dead runner must not cost the innocent ones a crash: RabbitMQ's delivery
    limit did, and threw away good messages beside one poisoned one."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        for request_id in ("bad", "good"):
            await s.submit(request_id)
        together = [await inbox.next(), await inbox.next()]
        for claim in together:
            assert await s.lose(claim, suspects=2) == "requeued"
        assert [(await s.fields(r)).get("crashes", "0") for r in ("bad", "good")] == ["0", "0"]

        bad = await inbox.next()
        assert (bad.request_id, bad.solo) == ("bad", True)
        waiting = asyncio.ensure_future(inbox.next())
        await s.submit("third")
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done(), "nothing runs beside a suspect"
        assert await s.lose(bad) == "requeued"
        good = await waiting
        assert (good.request_id, good.solo) == ("good", True)
        assert await inbox.finish(good, OK)
        assert (await inbox.next()).request_id == "third"


async def test_start_deadlines(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        await s.submit("late", start_timeout=0.02)
        await s.submit("patient", start_timeout=60)

        async def overdue() -> bool:
            return await s.requests.overdue_starts(APP) == ["late"]

        await await_until(overdue, "the deadline")
        inbox = await s.worker()
        claim = await inbox.next()
        assert claim.request_id == "patient", "what is overdue must not start"
        record = await s.requests.get(APP, "late")
        assert record is not None
        assert record.outcome is not None
        assert (record.state, record.outcome.status, record.error_type) == (
            *(RequestState.ERROR, 504, "request_timeout"),
        )
        assert await s.requests.overdue_starts(APP) == []
        await s.submit("later", start_timeout=0.001)
        assert await s.requests.fail_queued(APP, "later", LOST)
        assert await s.requests.fail_queued(APP, "later", LOST), "asked twice, answered the same"
        assert not await s.requests.fail_queued(APP, claim.request_id, LOST), "it runs"
        assert await s.requests.overdue_starts(APP) == []


async def test_everything_waiting_fails_and_nothing_else(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker()
        running = await s.claimed(inbox)
        delayed = await s.claimed(inbox)
        await s.lose(delayed, delay_ms=60_000)
        for n in range(450):
            await s.submit(f"f{n}", mode="direct" if n % 2 else "queued", priority="low" if n % 3 else "normal")
        assert await s.requests.fail_waiting(APP, LOST, mode="direct") == 225
        assert await s.requests.fail_waiting(APP, LOST) == 226
        assert await s.requests.queue_size(APP) == 0
        assert await s.requests.state(APP, "f7") is RequestState.ERROR
        assert await inbox.finish(running, OK, claim_next=False)
        await s.submit("flushed")
        assert await s.requests.flush_queue(APP) == 1
        assert await s.requests.state(APP, "flushed") is RequestState.CANCELLED


async def test_the_reaper_sees_leases_that_ran_out(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker(lease_ms=20)
        claim = await s.claimed(inbox)

        async def expired() -> bool:
            return await s.requests.expired_leases(APP) == [(claim.request_id, 1, "w1")]

        await await_until(expired, "the lease to run out")
        assert await inbox.heartbeat() == []
        assert await s.lose(claim, epoch=s.epoch) == "alive", "it was renewed meanwhile"
        await await_until(expired, "the lease to run out again")
        assert await s.lose(claim, epoch=s.epoch) == "requeued"
        assert await s.requests.expired_leases(APP) == []
        with pytest.raises(StaleLeader):
            await s.lose(claim, epoch=s.epoch - 1)


async def test_streamed_output_arrives_once_in_order_and_is_deleted_when_read(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        heard: list[tuple[str, object]] = []
        await s.store.subscribe({keys.channel_gateway("g1"): lambda m: heard.append(s.requests.decode_push(m))})
        inbox = await s.worker()
        claim = await s.claimed(inbox, mode="direct", gateway="g1")
        assert await s.requests.append_output(claim, "start", b"head") == 1
        assert await s.requests.append_output(claim, "chunk", b"one") == 2
        pieces = await s.requests.read_output(APP, claim.request_id, "0")
        assert [(kind, data) for _, kind, data in pieces] == [("start", b"head"), ("chunk", b"one")]
        assert await s.requests.append_output(claim, "end", b"") == 3
        rest = await s.requests.read_output(APP, claim.request_id, pieces[-1][0])
        assert [(kind, data) for _, kind, data in rest] == [("end", b"")]
        assert await s.redis("XLEN", keys.output(APP, claim.request_id)) == 1
        assert (claim.request_id, None) in heard
        await s.requests.cancel(APP, claim.request_id)
        assert await s.requests.append_output(claim, "chunk", b"late") == -1


async def test_workers_read_the_queue_through_one_consumer_group(redis_url: str, tmp_path: Path) -> None:
    """Reading the stream from its front passed every deleted entry again: a queue that was never empty grew slower.
    The group goes on where the last claim ended, keeps no list of its own, and forgets workers that are gone."""
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        ids = [await s.submit() for _ in range(3)]
        for expected in ids:
            claim = await inbox.next()
            assert claim.request_id == expected
            await inbox.finish(claim, OK, claim_next=False)
        queue = keys.queue_normal(APP)
        (group,) = await s.redis("XINFO", "GROUPS", queue)
        shown = dict(zip(group[::2], group[1::2], strict=True))
        assert (shown[b"name"], shown[b"consumers"], shown[b"pending"]) == (b"workers", 1, 0)
        assert await s.redis("XLEN", queue) == 0
        await s.store.workers.remove(APP, "w1", "done")
        assert await s.redis("XINFO", "CONSUMERS", queue, "workers") == []


async def test_a_lease_from_before_the_clock_was_put_back_is_over(redis_url: str, tmp_path: Path) -> None:
    """The server's clock went back by a day, and a request whose worker had died was kept from others as long."""
    async with scene(redis_url, tmp_path) as s:
        claim = await s.claimed(await s.worker())
        now_ms = (await s.store.apps.observe(APP)).now_ms
        for ahead_ms, expired, then in ((600_000, [], "alive"), (7_200_000, [claim.request_id], "requeued")):
            await s.redis("ZADD", keys.leases(APP), "XX", now_ms + ahead_ms, claim.request_id)
            assert [found[0] for found in await s.requests.expired_leases(APP)] == expired
            assert await s.lose(claim, epoch=s.epoch) == then
