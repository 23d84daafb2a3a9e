"""The verbs against a model: any order of submits, claims, finishes, crashes, cancels and reaping.

Few requests and workers, so that one request lives through much: depth finds more than breadth. Time is moved by
setting the scores of leases and back-offs, never by waiting.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from scheduler.store import NotFound, StaleLeader, Store, keys
from scheduler.store.outcomes import OVERDUE, pack_outcome
from scheduler.store.records import Outcome, Replayed, RequestState, WorkerRecord, WorkerState
from scheduler.store.scripts import SCRIPTS
from tests.store.scene import APP, LOST, revision, submission

T = TypeVar("T")
IDS = [f"q{n}" for n in range(4)]
SLOTS = [0, 1]
PICKS = st.integers(0, 15)
RARELY = st.sampled_from([False, False, True])
FINAL = {"COMPLETED", "ERROR", "CANCELLED"}


@dataclass
class Known:
    """What the model knows of one request."""

    mode: str
    webhook: bool
    status: str = "IN_QUEUE"
    attempt: int = 0
    worker: str = ""
    delayed: bool = False
    expired: bool = False
    crashes: int = 0
    result: bytes | None = None
    finished: bool = False
    failed_by_retry: bool = False
    max_attempts: int = 3


@dataclass
class Model:
    """Everything that should be true."""

    requests: dict[str, Known] = field(default_factory=dict)
    parked: set[str] = field(default_factory=set)
    workers: set[str] = field(default_factory=set)
    names: list[str] = field(default_factory=lambda: ["w0", "w1"])  # a worker that comes back has a new name
    epochs: list[int] = field(default_factory=list)
    order: list[str] = field(default_factory=list)  # waiting requests as they should be claimed
    letters: dict[str, str] = field(default_factory=dict)  # dead letters, and what each was replayed as
    hooked: set[str] = field(default_factory=set)  # letters of requests with a webhook

    def running(self, worker: str | None = None) -> dict[str, Known]:
        """Requests in progress, of one worker or of all."""
        return {
            i: k
            for i, k in self.requests.items()
            if k.status == "IN_PROGRESS" and (worker is None or k.worker == worker)
        }


class Life(RuleBasedStateMachine):
    """One app, four request ids, two places for workers."""

    redis_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="kwt-"))
        self.model = Model()
        self.results = 0
        self.run(self._open())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    async def _open(self) -> None:
        self.store = await Store.connect(self.redis_url, self.folder)
        self.redis = self.store._redis
        await self.redis.command("FLUSHALL")
        await self.store.apps.put_revision(revision())
        await self.store.apps.point(APP, "r1", auth=None, scaling=None, ephemeral=False)
        await self._new_leader()
        for slot in SLOTS:
            await self._place(slot)

    async def _place(self, slot: int) -> None:
        worker = self.model.names[slot] = f"{self.model.names[slot]}'"
        record = WorkerRecord(APP, worker, "r1", "box", WorkerState.PENDING, "S", (), 0)
        await self.store.subscribe({keys.channel_worker(worker): lambda _: None})
        await self.store.workers.place(record, self.model.epochs[-1])
        await self.store.workers.update(APP, worker, ready=True)
        self.model.workers.add(worker)

    async def _new_leader(self) -> None:
        await self.redis.command("DEL", keys.leader())
        epoch = await self.store.leader.lead(f"s{len(self.model.epochs)}", 60_000)
        assert epoch is not None
        self.model.epochs.append(epoch)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    def some(self, pick: int, wanted: str) -> str:
        """One of the ids; three times out of four one in the wanted state, if there is any."""
        fitting = sorted(i for i, k in self.model.requests.items() if k.status == wanted)
        return fitting[pick % len(fitting)] if fitting and pick % 4 else IDS[pick % len(IDS)]

    # --- rules ----------------------------------------------------------------------------------------------------

    @rule(
        request_id=st.sampled_from(IDS),
        mode=st.sampled_from(["queued", "queued", "direct"]),
        webhook=st.booleans(),
        low=st.booleans(),
    )
    def submit(self, request_id: str, mode: str, webhook: bool, low: bool) -> None:
        answer = self.run(
            self.store.requests.submit(
                submission(
                    request_id,
                    mode=mode,
                    webhook="http://there" if webhook else None,
                    priority="low" if low else "normal",
                    max_attempts=3,
                )
            )
        )
        assert answer.duplicate == (request_id in self.model.requests)
        if answer.duplicate:
            return
        known = self.model.requests[request_id] = Known(mode, webhook)
        state = self.run(self.store.requests.state(APP, request_id))
        if state is RequestState.IN_PROGRESS:
            assert not self.model.order, "nobody is overtaken by a hand-over"
            flat = self.run(self.redis.command("HGET", keys.request(APP, request_id), "worker"))
            worker = flat.decode()
            assert worker in self.model.parked
            self.model.parked.discard(worker)
            known.status, known.attempt, known.worker = "IN_PROGRESS", 1, worker
        else:
            self.model.order.append(request_id)

    @rule()
    def place(self) -> None:
        for slot in SLOTS:
            if self.model.names[slot] not in self.model.workers:
                self.run(self._place(slot))

    @rule(slot=st.sampled_from(SLOTS))
    def claim(self, slot: int) -> None:
        worker = self.model.names[slot]
        held = [f"{i} {k.attempt}" for i, k in self.model.running(worker).items()]
        answer = self.run(
            SCRIPTS["claim"](
                self.redis, APP, worker_id=worker, lease_ms=60_000, overdue=OVERDUE, retention_ms=60_000, rest=held
            )
        )
        self._claimed(worker, answer if type(answer) is bytes else answer[0])

    def _claimed(self, worker: str, answer: bytes) -> None:
        if worker not in self.model.workers:
            assert answer == b"gone"
        elif not self.model.order:
            assert answer == b"empty"
            self.model.parked.add(worker)
        else:
            _, request_id, attempt = answer.split(b" ")[:3]
            known = self.model.requests[request_id.decode()]
            self.model.order.remove(request_id.decode())
            assert known.status == "IN_QUEUE"
            assert int(attempt) == known.attempt + 1
            known.status, known.attempt, known.worker = "IN_PROGRESS", int(attempt), worker
            known.expired = False
            self.model.parked.discard(worker)

    @rule(
        pick=PICKS,
        again=st.booleans(),
        back=st.sampled_from([0, 0, 0, 1, 2]),
        good=st.booleans(),
        more=st.booleans(),
        slot=st.sampled_from(SLOTS),
    )
    def finish(self, pick: int, again: bool, back: int, good: bool, more: bool, slot: int) -> None:
        """By the holder of this attempt or of an earlier one, or by a worker that never had it."""
        request_id = self.some(pick, ("COMPLETED" if good else "ERROR") if again else "IN_PROGRESS")
        known = self.model.requests.get(request_id)
        attempt = max(1, (known.attempt if known else 1) - back)
        worker = known.worker if known and known.worker and not back else self.model.names[slot]
        self.results += 1
        outcome = Outcome(200 if good else 500, (), b"%d" % self.results)
        kept, answer = self.run(
            SCRIPTS["finish"](
                self.redis,
                APP,
                request_id=request_id,
                attempt=attempt,
                worker_id=worker,
                status="COMPLETED" if good else "ERROR",
                result=pack_outcome(outcome),
                error_type="",
                retention_ms=60_000,
                claim_more=int(more),
                lease_ms=60_000,
                overdue=OVERDUE,
                bytes=len(outcome.body),
            )
        )
        ours = known is not None and known.attempt == attempt and known.worker == worker
        if known is not None and ours and known.status == "IN_PROGRESS":
            assert kept == 1
            known.status, known.result = ("COMPLETED" if good else "ERROR"), outcome.body
            known.finished = True
        elif known is not None and ours and known.finished:
            assert (kept, answer) == (1, b"")
            return
        else:
            assert kept == 0
        if more:
            self._claimed(worker, answer)
        else:
            assert answer == b""

    @rule(
        pick=PICKS,
        stale=st.sampled_from([False, False, True]),
        crashed=st.booleans(),
        delay=st.booleans(),
        reaper=st.sampled_from(["no", "leader", "old leader"]),
    )
    def retry(self, pick: int, stale: bool, crashed: bool, delay: bool, reaper: str) -> None:
        request_id = self.some(pick, "IN_PROGRESS")
        known = self.model.requests.get(request_id)
        attempt = max(1, (known.attempt if known else 1) - stale)
        epoch = None if reaper == "no" else self.model.epochs[-1] if reaper == "leader" else self.model.epochs[0]
        newest = int(self.run(self.redis.command("GET", keys.epoch(APP))) or 0)
        call = self.store.requests.retry(
            APP,
            request_id,
            attempt,
            worker_id=known.worker if known else "w0",
            reason="died",
            crashed=crashed,
            delay_ms=60_000 if delay else 0,
            fallback=LOST,
            epoch=epoch,
        )
        if epoch is not None and epoch < newest:
            with pytest.raises(StaleLeader):
                self.run(call)
            return
        answer = self.run(call)
        if known is None or attempt != known.attempt:
            assert answer == "superseded"
        elif known.status == "IN_QUEUE":
            assert answer == "requeued"
        elif known.status in FINAL:
            assert answer == ("failed" if known.failed_by_retry else "superseded")
        elif reaper != "no" and not known.expired:
            assert answer == "alive"
        else:
            known.crashes += crashed
            failed = known.mode == "direct" or known.attempt >= known.max_attempts or known.crashes >= 3
            assert answer == ("failed" if failed else "requeued")
            if failed:
                known.status, known.failed_by_retry = "ERROR", True
                self._given_up(request_id, known)
                known.result = None if known.crashes >= 3 and known.mode != "direct" else LOST.body
            else:
                known.status, known.delayed = "IN_QUEUE", delay
                if not delay:
                    self.model.order.append(request_id)

    def _given_up(self, request_id: str, known: Known) -> None:
        if known.mode == "direct":
            return
        self.model.letters[request_id] = ""
        self.model.hooked.discard(request_id)
        if known.webhook:
            self.model.hooked.add(request_id)

    @rule(letter=st.sampled_from(IDS), request_id=st.sampled_from(IDS), again=st.booleans())
    def replay(self, letter: str, request_id: str, again: bool) -> None:
        call = self.store.letters.replay(APP, letter, request_id, again=again)
        before = self.model.letters.get(letter)
        if before is None:
            with pytest.raises(NotFound):
                self.run(call)
            return
        answer = self.run(call)
        if request_id == before or request_id in self.model.requests:
            assert answer == Replayed(request_id)
        elif before and not again:
            assert answer == Replayed(before, True)
        else:
            assert answer == Replayed(request_id)
            self.model.letters[letter] = request_id
            self.model.requests[request_id] = Known("queued", letter in self.model.hooked)
            self.model.order.append(request_id)

    @rule(letter=st.sampled_from(IDS), really=RARELY)
    def drop_letter(self, letter: str, really: bool) -> None:
        if really:
            known = self.model.letters.pop(letter, None)
            assert self.run(self.store.letters.drop(APP, letter)) == (known is not None)

    @rule(pick=PICKS)
    def lease_runs_out(self, pick: int) -> None:
        request_id = self.some(pick, "IN_PROGRESS")
        if self.run(self.redis.command("ZADD", keys.leases(APP), "XX", "CH", 1, request_id)):
            self.model.requests[request_id].expired = True

    @rule(slot=st.sampled_from(SLOTS))
    def heartbeat(self, slot: int) -> None:
        worker = self.model.names[slot]
        rest: list[Any] = [v for i, k in self.model.requests.items() for v in (i, k.attempt)]
        reply = self.run(SCRIPTS["heartbeat"](self.redis, APP, worker_id=worker, lease_ms=60_000, rest=rest))
        lost = {reply[i].decode() for i in range(0, len(reply), 2)}
        assert lost == set(self.model.requests) - set(self.model.running(worker))
        for known in self.model.running(worker).values():
            known.expired = False

    @rule()
    def back_off_ends(self) -> None:
        for request_id, known in self.model.requests.items():
            if known.delayed:
                self.run(self.redis.command("ZADD", keys.delayed(APP), "XX", 1, request_id))
        due = sorted(i for i, k in self.model.requests.items() if k.delayed)
        assert self.run(self.store.requests.promote(APP, self.model.epochs[-1])) == len(due)
        for request_id in due:
            self.model.requests[request_id].delayed = False
            self.model.order.append(request_id)

    @rule(request_id=st.sampled_from(IDS), really=RARELY)
    def cancel(self, request_id: str, really: bool) -> None:
        if not really:
            return
        known = self.model.requests.get(request_id)
        answer = self.run(self.store.requests.cancel(APP, request_id))
        if known is None:
            assert answer == "not_found"
        elif known.status in FINAL:
            assert answer == "already_completed"
        else:
            assert answer == ("cancelled_queued" if known.status == "IN_QUEUE" else "cancelled_running")
            self._ended(request_id, "CANCELLED")

    @rule(request_id=st.sampled_from(IDS), really=RARELY)
    def fail_queued(self, request_id: str, really: bool) -> None:
        if not really:
            return
        known = self.model.requests.get(request_id)
        waiting = known is not None and known.status == "IN_QUEUE"
        answer = self.run(self.store.requests.fail_queued(APP, request_id, Outcome(503, (), b"never")))
        if waiting:
            assert answer
            self._ended(request_id, "ERROR")
        elif known is None or known.status not in FINAL:
            assert not answer

    def _ended(self, request_id: str, status: str) -> None:
        known = self.model.requests[request_id]
        if request_id in self.model.order:
            self.model.order.remove(request_id)
        known.status, known.delayed = status, False

    @rule(slot=st.sampled_from(SLOTS), really=RARELY)
    def worker_ends(self, slot: int, really: bool) -> None:
        if not really:
            return
        worker = self.model.names[slot]
        self.run(self.store.workers.remove(APP, worker, "ended"))
        self.model.workers.discard(worker)
        self.model.parked.discard(worker)
        for known in self.model.running(worker).values():
            known.expired = True

    @rule(really=RARELY)
    def leader_changes(self, really: bool) -> None:
        if really:
            self.run(self._new_leader())

    @rule()
    def retention_ends(self) -> None:
        """Results are forgotten, so that ids can be used again.

        No precondition: which worker is handed a request depends on milliseconds, and Hypothesis wants every choice it
        makes to depend on its own.
        """
        if any(k.status not in FINAL for k in self.model.requests.values()):
            return
        for request_id in self.model.requests:
            self.run(self.redis.command("DEL", keys.request(APP, request_id)))
            self.run(self.redis.command("ZREM", keys.outbox(APP), request_id))
        self.model.requests.clear()

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def the_store_agrees(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        model, command = self.model, self.redis.command
        running, waiting = set(model.running()), set(model.order)
        leases, delayed, outbox, letters, normal, low, *records = await asyncio.gather(
            command("ZRANGE", keys.leases(APP), 0, -1),
            command("ZRANGE", keys.delayed(APP), 0, -1),
            command("ZRANGE", keys.outbox(APP), 0, -1),
            self.store.letters.list(APP),
            command("XRANGE", keys.queue_normal(APP), "-", "+"),
            command("XRANGE", keys.queue_low(APP), "-", "+"),
            *(command("HMGET", keys.request(APP, i), "status", "attempt", "worker", "body", "result") for i in IDS),
        )
        assert {i.decode() for i in leases} == running
        assert {i.decode() for i in delayed} == {i for i, k in model.requests.items() if k.delayed}
        entries = sorted(fields[1].decode() for _, fields in (*normal, *low))
        assert entries == sorted(waiting), "each waiting request has one entry, no other has any"
        owed = {i for i, k in model.requests.items() if k.webhook and k.status in ("COMPLETED", "ERROR")}
        assert {i.decode() for i in outbox} == owed
        assert {found.request_id: found.replayed_as or "" for found in letters} == model.letters
        assert all(found.body_bytes for found in letters), "a letter keeps the input that its request has given up"
        for request_id, (status, attempt, worker, body, _) in zip(IDS, records, strict=True):
            known = model.requests.get(request_id)
            if known is None:
                assert status is None
                continue
            assert (status.decode(), int(attempt)) == (known.status, known.attempt), request_id
            assert (not body) == (known.status in FINAL), "payloads go when a request ends"
            if known.status == "IN_PROGRESS":
                assert worker.decode() == known.worker
            elif known.status in FINAL:
                assert await command("PTTL", keys.request(APP, request_id)) > 0
                if known.result is not None:
                    record = await self.store.requests.get(APP, request_id)
                    assert record is not None
                    assert record.outcome is not None
                    assert record.outcome.body == known.result, "the first result stays"
        seen = await self.store.apps.observe(APP)
        assert (seen.queued, seen.in_progress, seen.delayed) == (len(waiting), len(running), len(delayed))
        assert {w.worker_id: w.in_flight for w in seen.workers} == {w: len(model.running(w)) for w in model.workers}


def test_any_order_of_verbs_keeps_the_promises(redis_url: str) -> None:
    Life.redis_url = redis_url
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=90,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
