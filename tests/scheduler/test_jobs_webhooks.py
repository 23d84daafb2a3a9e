"""From the outbox to the receiver and back, over arq and a real receiver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from keepwarm import jobs_webhooks
from keepwarm.jobs_webhooks import PER_HOST, QUEUE, Webhooks
from keepwarm.jobs_worker import connect
from scheduler.control.webhooks import SCHEDULE_S, WebhookSender
from scheduler.store import Store, StoreUnavailable, keys
from scheduler.store.outbox import Offer
from scheduler.store.records import Outcome, WorkerRecord, WorkerState
from scheduler.store.signing import load_or_create, public_key_set
from tests.scheduler.receiver import Receiver, receiver
from tests.scheduler.stub_host import APP, deploy, submit
from tests.scheduler.test_jobs_builds import Builder, jobs, register
from tests.scheduler.test_webhooks import verify
from tests.support.loop import run
from tests.support.waiting import await_until

__all__ = ["builder"]


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(monkeypatch)


async def finished(store: Store, request_id: str, url: str, outcome: Outcome | None = None) -> None:
    """A request with a webhook that has just ended."""
    if await store.apps.get(APP) is None:
        await deploy(store)
    epoch = await store.leader.lead("test", 60_000)
    assert epoch is not None
    worker_id = f"worker-{request_id}"
    await store.workers.place(WorkerRecord(APP, worker_id, "r1", "h1", WorkerState.PENDING, "S", (), 0), epoch)
    await store.workers.update(APP, worker_id, state=WorkerState.IDLE, ready=True)
    inbox = await store.open_inbox(APP, worker_id, "r1")
    await submit(store, request_id, webhook=url)
    claim = await inbox.next()
    assert claim.request_id == request_id
    await inbox.finish(claim, outcome or Outcome(200, (), b'{"n": 1}'), claim_next=False)
    await inbox.close()


async def _arrived(server: Receiver, count: int) -> bool:
    return len(server.received) >= count


async def _outbox(store: Store) -> int:
    count = await store._redis.command("ZCARD", "{o/app}:outbox")
    return int(count)


async def _empty(store: Store) -> bool:
    return await _outbox(store) == 0


def test_a_result_is_delivered_at_once_and_owed_no_more(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with receiver() as server, jobs(redis_url, tmp_path, allow_private_webhooks=True) as store:
            await finished(store, "q1", server.url("/200"))
            await await_until(lambda: _arrived(server, 1), "the webhook")
            (received,) = server.received
            assert json.loads(received.body)["payload"] == {"n": 1}
            assert verify(received, public_key_set(load_or_create(tmp_path)))
            await await_until(lambda: _empty(store), "the outbox to be empty")

    run(scenario())


def test_builds_do_not_hold_deliveries_up(redis_url: str, tmp_path: Path, builder: Builder) -> None:
    async def scenario() -> None:
        async with receiver() as server, jobs(redis_url, tmp_path, allow_private_webhooks=True) as store:
            builder.go.clear()
            for number in range(6):
                await register(store, "r1", f"o/app{number}", key=f"{number}" * 64)
                await store.environments.request_build(f"o/app{number}", "r1")
            await await_until(lambda: _busy(builder), "two builds to run")
            await finished(store, "q1", server.url("/200"))
            await await_until(lambda: _arrived(server, 1), "the webhook")
            builder.go.set()

    run(scenario())


async def _busy(builder: Builder) -> bool:
    return builder.running == 2


def test_a_failed_try_is_made_again_later_with_a_fresh_signature(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_webhooks, "delay_before_next", lambda tries, asked_for: 1.0 if tries < 3 else None)

    async def scenario() -> None:
        async with receiver() as server, jobs(redis_url, tmp_path, allow_private_webhooks=True) as store:
            await finished(store, "q1", server.url("/500"))
            await await_until(lambda: _arrived(server, 3), "three tries")
            await await_until(lambda: _dead(store), "the delivery to be given up")
            stamps = [int(r.headers["x-fal-webhook-timestamp"]) for r in server.received]
            assert stamps == sorted(stamps)
            assert stamps[0] < stamps[-1]
            assert {r.headers["x-fal-webhook-request-id"] for r in server.received} == {"q1"}
            assert all(verify(r, public_key_set(load_or_create(tmp_path))) for r in server.received)

    run(scenario())


async def _dead(store: Store) -> list[str]:
    return [dead.request_id for dead in await store.outbox.dead(APP)]


def test_a_private_target_is_a_dead_letter_at_once(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with receiver() as server, jobs(redis_url, tmp_path) as store:
            await finished(store, "q1", server.url("/200"))
            assert await await_until(lambda: _dead(store), "the delivery to be given up") == ["q1"]
            assert server.received == []

    run(scenario())


@pytest.mark.parametrize("path", ["/301", "/410"])
def test_what_no_later_try_can_change_is_a_dead_letter_at_once(redis_url: str, tmp_path: Path, path: str) -> None:
    """A receiver that had moved, or said that it wants no more (410), was called ten times over 16 hours."""

    async def scenario() -> None:
        async with receiver() as server, jobs(redis_url, tmp_path, allow_private_webhooks=True) as store:
            await finished(store, "q1", server.url(path))
            assert await await_until(lambda: _dead(store), "the delivery to be given up") == ["q1"]
            assert [r.path for r in server.received] == [path]
            assert await _empty(store)

    run(scenario())


def test_a_try_that_nobody_recorded_is_made_again(redis_url: str, tmp_path: Path) -> None:
    """The process is killed between the receiver's 200 and the outbox: the receiver sees the same id twice, never a
    lost result."""

    async def scenario() -> None:
        async with receiver() as server:
            store = await Store.connect(redis_url, tmp_path)
            await finished(store, "q1", server.url("/200"))
            (delivery,) = await store.outbox.due(hold_s=0)
            record = await store.requests.get(APP, "q1")
            assert record is not None
            sender = WebhookSender(load_or_create(tmp_path), allow_private=True)
            assert (await sender.deliver(delivery.url, record, int(time.time()))).delivered
            await sender.close()
            await store.close()
            async with jobs(redis_url, tmp_path, allow_private_webhooks=True) as later:
                await await_until(lambda: _arrived(server, 2), "the second delivery")
                await await_until(lambda: _empty(later), "the outbox to be empty")
            assert {r.headers["x-fal-webhook-request-id"] for r in server.received} == {"q1"}

    run(scenario())


def test_what_the_outbox_gave_is_passed_on_after_a_bad_moment(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a bad network two deliveries came a minute late: the outbox had given them out for that long, and nobody
    had them. Its answer was lost for good, or arq's Redis failed while one after the other was passed on."""

    async def scenario() -> None:
        store = await Store.connect(redis_url, tmp_path)
        pool = await connect(redis_url)
        sender = WebhookSender(load_or_create(tmp_path), allow_private=True)
        webhooks = Webhooks(store, pool, sender)
        for number in range(3):
            await finished(store, f"q{number}", "http://127.0.0.1:9/")
        offer, enqueue = store.outbox.offer, pool.enqueue_job
        calls: list[str] = []

        async def unheard(*args: Any, **named: Any) -> Offer:
            await offer(*args, **named)
            raise StoreUnavailable

        async def failing(*args: Any, **named: Any) -> Any:
            calls.append(named["_job_id"])
            if len(calls) == 2:
                raise ConnectionError("reset")
            return await enqueue(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(store.outbox, "offer", unheard)
            with pytest.raises(StoreUnavailable):
                await webhooks.hand_on(APP)
        assert await store.outbox.due(APP) == [], "all are given out"
        monkeypatch.setattr(pool, "enqueue_job", failing)
        with pytest.raises(ConnectionError):
            await webhooks.hand_on(APP)
        assert await webhooks.hand_on(APP) == 2, "the one before the failure is with arq"
        assert {job.args[1] for job in await pool.queued_jobs(queue_name=QUEUE)} == {"q0", "q1", "q2"}
        await pool.aclose()
        await sender.close()
        await store.close()

    run(scenario())


def _start(redis_url: str, data: Path) -> subprocess.Popen[bytes]:
    environ = os.environ | {
        "KEEPWARM_REDIS_URL": redis_url,
        "KEEPWARM_DATA": str(data),
        "KEEPWARM_ALLOW_PRIVATE_WEBHOOKS": "1",
    }
    return subprocess.Popen([sys.executable, "-m", "keepwarm.jobs"], env=environ)


def test_f33_a_sender_killed_after_the_200_delivers_again_with_the_same_id(redis_url: str, tmp_path: Path) -> None:
    """The real process: Redis takes no writes while the receiver says 200, so that the outbox cannot have heard of it
    when the process is killed. Its successor delivers again, signed afresh."""

    async def scenario() -> None:
        async with receiver() as server:
            store = await Store.connect(redis_url, tmp_path)
            process = _start(redis_url, tmp_path)
            try:
                await await_until(lambda: _alive(store), "the jobs service to be ready")
                server.before_answer = lambda: store._redis.command("CLIENT", "PAUSE", 60_000, "WRITE")
                await finished(store, "q1", server.url("/200"))
                await await_until(lambda: _answered(server, 1), "the 200")
                process.kill()
                process.wait()
                server.before_answer = None
                await store._redis.command("CLIENT", "UNPAUSE")
                assert await _outbox(store) == 1
                process = _start(redis_url, tmp_path)
                await await_until(lambda: _arrived(server, 2), "the second delivery", timeout=60)
                await await_until(lambda: _empty(store), "the outbox to be empty")
            finally:
                await store._redis.command("CLIENT", "UNPAUSE")
                process.kill()
                process.wait()
                await store.close()
            first, second = server.received
            assert first.body == second.body
            assert json.loads(second.body)["request_id"] == "q1"
            assert first.headers["x-fal-webhook-timestamp"] < second.headers["x-fal-webhook-timestamp"]

    async def _alive(store: Store) -> bool:
        return bool(await store._redis.command("KEYS", keys.service("jobs", "*")))

    async def _answered(server: Receiver, count: int) -> bool:
        return server.answered >= count

    run(scenario())


def test_one_slow_receiver_gets_no_more_than_its_share(redis_url: str, tmp_path: Path) -> None:
    """Everything that was due went into the jobs' queue, where what was over a receiver's share went round and round:
    with thousands owed to a receiver that hung, somebody else's webhook took ten seconds."""
    count = 700  # more than one look passes over

    async def scenario() -> None:
        async with receiver() as slow, receiver() as other:
            store, pool = await Store.connect(redis_url, tmp_path), await connect(redis_url)
            await many_finished(store, count, slow.url("/silent"))
            await finished(store, "theirs", other.url("/200"))
            async with jobs(redis_url, tmp_path, allow_private_webhooks=True):
                await await_until(lambda: _arrived(other, 1), "the delivery behind them")
                await await_until(lambda: _arrived(slow, PER_HOST), "the share to be in use")
                await finished(store, "theirs-too", other.url("/200"))
                await await_until(lambda: _arrived(other, 2), "another one")
                assert await pool.zcard(jobs_webhooks.QUEUE) < 2 * PER_HOST, "the rest waits in the outbox"
                assert slow.most_at_once <= PER_HOST
            await pool.aclose()
            await store.close()

    run(scenario())


async def many_finished(store: Store, count: int, url: str) -> None:
    """Requests with a webhook that have just ended, all served by one worker."""
    if await store.apps.get(APP) is None:
        await deploy(store)
    epoch = await store.leader.lead("test", 60_000)
    assert epoch is not None
    await store.workers.place(WorkerRecord(APP, "busy", "r1", "h1", WorkerState.PENDING, "S", (), 0), epoch)
    await store.workers.update(APP, "busy", state=WorkerState.IDLE, ready=True)
    inbox = await store.open_inbox(APP, "busy", "r1")
    for number in range(count):
        await submit(store, f"many{number}", webhook=url)
        await inbox.finish(await inbox.next(), Outcome(200, (), b"1"), claim_next=False)
    await store.workers.remove(APP, "busy", "done")
    await inbox.close()


def test_f32_an_outage_that_ends_brings_everything_and_nobody_is_run_over(redis_url: str, tmp_path: Path) -> None:
    """A receiver is down while hundreds of results come; when it is back all of them are due at once. It gets each of
    them, no more than its share at a time, and the receivers of others do not wait behind them."""
    count = 400

    async def scenario() -> None:
        async with receiver() as flapping, receiver() as other:
            store = await Store.connect(redis_url, tmp_path)
            await many_finished(store, count, flapping.url("/200"))
            await finished(store, "theirs", other.url("/200"))
            flapping.healthy = False
            async with jobs(redis_url, tmp_path, allow_private_webhooks=True):
                await await_until(lambda: _arrived(other, 1), "the delivery to somebody else")
                await await_until(lambda: _arrived(flapping, 40), "tries against the receiver that is down")
                flapping.healthy = True
                await make_due(store)
                await await_until(lambda: _all_there(flapping, count), "every result to arrive", timeout=120)
                await await_until(lambda: _empty(store), "the outbox to be empty", timeout=60)
            assert flapping.most_at_once <= PER_HOST
            ids = {r.headers["x-fal-webhook-request-id"] for r in flapping.received}
            assert ids == {f"many{n}" for n in range(count)}, "each with its own stable id"
            assert await _dead(store) == []
            await store.close()

    async def make_due(store: Store) -> None:
        """The pause after a failed try is over for all of them."""
        for number in range(count):
            await store._redis.command("ZADD", keys.outbox(APP), "XX", 1, f"many{number}")
        await store._redis.command("PUBLISH", keys.channel_outbox(), APP)

    run(scenario())


async def _all_there(server: Receiver, count: int) -> bool:
    return len({r.headers["x-fal-webhook-request-id"] for r in server.received}) >= count


def test_a_dead_delivery_can_be_made_again(redis_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with receiver() as server, jobs(redis_url, tmp_path, allow_private_webhooks=True) as store:
            await finished(store, "q1", server.url("/410"))
            await await_until(lambda: _dead(store), "the delivery to be given up")
            (dead,) = await store.outbox.dead(APP)
            assert (dead.tries, dead.why) == (1, "status 410")
            await store._redis.command("HSET", keys.request(APP, "q1"), "webhook", server.url("/200"))
            assert await store.outbox.replay(APP, "q1")
            await await_until(lambda: _arrived(server, 2), "the second delivery")
            await await_until(lambda: _empty(store), "the outbox to be empty")
            assert await _dead(store) == []
            assert {r.headers["x-fal-webhook-request-id"] for r in server.received} == {"q1"}

    run(scenario())


def test_the_schedule_gives_up_after_its_last_entry() -> None:
    assert len(SCHEDULE_S) == 10
