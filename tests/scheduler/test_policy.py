"""The scaling decision, as properties over any app and as the stories behind its rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fal._spec import ScalingSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.control.policy import Decision, Memory, Policy, decide
from scheduler.store.back_off import MAX_BACK_OFF_MS, back_off_ms
from scheduler.store.records import AppSeen, WorkerRecord, WorkerState

NOW = 1_000_000_000


def worker(worker_id: str = "w1", state: WorkerState = WorkerState.IDLE, **fields: Any) -> WorkerRecord:
    ready = state in (WorkerState.IDLE, WorkerState.RUNNING)
    values: dict[str, Any] = {
        "app": "o/a",
        "worker_id": worker_id,
        "revision": "r2",
        "host": "h",
        "state": state,
        "machine_type": "S",
        "gpu_ids": (),
        "created_at_ms": NOW - 50_000,
        "ready_at_ms": NOW - 40_000 if ready else None,
        "idle_since_ms": NOW if state is WorkerState.IDLE else None,
        "in_flight": 1 if state is WorkerState.RUNNING else 0,
    }
    return WorkerRecord(**(values | fields))


def seen(*workers: WorkerRecord, queued: int = 0, in_progress: int = 0, oldest: int | None = None) -> AppSeen:
    if oldest is None and queued:
        oldest = NOW
    return AppSeen("o/a", NOW, queued, 0, in_progress, oldest, workers)


def one(
    scaling: ScalingSpec, look: AppSeen, now_ms: int = NOW, memory: Memory | None = None, **policy: Any
) -> Decision:
    return decide(Policy("r2", scaling, **policy), look, memory or Memory(), now_ms)[0]


scalings = st.builds(
    ScalingSpec,
    keep_alive=st.integers(0, 100),
    min_concurrency=st.integers(0, 4),
    max_concurrency=st.integers(0, 6),
    concurrency_buffer=st.integers(0, 3),
    concurrency_buffer_perc=st.integers(0, 200),
    scaling_delay=st.sampled_from([0, 0.5, 10]),
)


def _orders(state: WorkerState) -> list[str]:
    if state is WorkerState.SETUP:
        return ["resume"]
    return ["suspend"] if state in (WorkerState.IDLE, WorkerState.SUSPENDED) else []


@st.composite
def workers(draw: st.DrawFn) -> tuple[WorkerRecord, ...]:
    found = []
    for number in range(draw(st.integers(0, 7))):
        state = draw(st.sampled_from(list(WorkerState)))
        ready_at = NOW - draw(st.integers(0, 200_000))
        ready = state in (WorkerState.IDLE, WorkerState.RUNNING, WorkerState.DRAINING)
        found.append(
            worker(
                f"w{number}",
                state,
                revision=draw(st.sampled_from(["r1", "r2"])),
                ready_at_ms=ready_at if ready else None,
                idle_since_ms=draw(st.integers(ready_at, NOW)) if state is WorkerState.IDLE else None,
                leftover=draw(st.sampled_from([0, 0, 0, 1])) if ready else 0,
                stop_requested=draw(st.sampled_from([None, None, None, "drain", "kill", *_orders(state)])),
                retiring=draw(st.sampled_from([None, None, None, "worn"])),
            )
        )
    return tuple(found)


@st.composite
def looks(draw: st.DrawFn) -> AppSeen:
    found = draw(workers())
    busy = sum(w.in_flight for w in found)
    queued = draw(st.integers(0, 20))
    oldest = NOW - draw(st.integers(0, 20_000)) if queued else None
    return AppSeen("o/a", NOW, queued, draw(st.integers(0, 3)), busy, oldest, found)


policies = st.builds(
    Policy,
    st.just("r2"),
    scalings,
    max_multiplexing=st.integers(1, 4),
    startup_failures=st.integers(0, 8),
    last_startup_failure_at_ms=st.one_of(st.none(), st.integers(NOW - 100_000, NOW)),
    crash_streak=st.integers(0, 8),
    last_crash_at_ms=st.one_of(st.none(), st.integers(NOW - 100_000, NOW)),
)
memories = st.builds(
    Memory,
    st.sampled_from([None, "r1", "r2"]),
    st.frozensets(st.sampled_from(["w0", "w1", "gone"])),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(NOW - 100_000, NOW)),
)


def current(look: AppSeen) -> list[WorkerRecord]:
    """Those that count; a suspended one waits to be started."""
    gone = (WorkerState.TERMINATED, WorkerState.SUSPENDED)
    return [w for w in look.workers if w.revision == "r2" and w.retiring is None and w.state not in gone]


@given(policies, looks(), memories)
def test_never_above_max(policy: Policy, look: AppSeen, memory: Memory) -> None:
    decision, _ = decide(policy, look, memory, NOW)
    if decision.start:
        assert len(current(look)) + decision.start <= policy.scaling.max_concurrency
    stopped = {stop.worker_id for stop in decision.stops}
    staying = [w for w in current(look) if w.takes_requests and w.state is not WorkerState.DRAINING]
    assert len([w for w in staying if w.worker_id not in stopped]) <= policy.scaling.max_concurrency
    assert 0 <= decision.desired <= policy.scaling.max_concurrency


@given(policies, looks(), memories)
def test_never_below_min_unless_starts_fail_or_leaving_workers_use_up_the_room(
    policy: Policy, look: AppSeen, memory: Memory
) -> None:
    policy = replace(policy, startup_failures=0, crash_streak=0)
    memory = replace(memory, lost_starts=0, starting=frozenset())
    staying = [w for w in look.workers if w.takes_requests and w.retiring is None]
    look = replace(look, workers=tuple(w for w in staying if w.revision == policy.revision))
    look = replace(look, workers=tuple(w for w in look.workers if w.state is not WorkerState.DRAINING))
    decision, _ = decide(policy, look, memory, NOW)
    assert decision.desired >= min(policy.scaling.min_concurrency, policy.scaling.max_concurrency)


@given(policies, looks(), memories)
def test_no_growth_without_demand(policy: Policy, look: AppSeen, memory: Memory) -> None:
    scaling = replace(policy.scaling, min_concurrency=0, concurrency_buffer=0)
    look = replace(look, queued=0, in_progress=0, oldest_queued_at_ms=None)
    decision, _ = decide(replace(policy, scaling=scaling), look, memory, NOW)
    assert decision.start == 0


@given(policies, looks(), memories, st.integers(1, 5), st.integers(0, 5))
def test_more_demand_never_means_fewer_workers(
    policy: Policy, look: AppSeen, memory: Memory, queued: int, running: int
) -> None:
    more = replace(
        look,
        queued=look.queued + queued,
        in_progress=look.in_progress + running,
        oldest_queued_at_ms=look.oldest_queued_at_ms or NOW,
    )
    before, _ = decide(policy, look, memory, NOW)
    after, _ = decide(policy, more, memory, NOW)
    assert after.desired >= before.desired
    assert len(after.stops) <= len(before.stops)


@given(policies, looks(), memories)
def test_a_worker_stops_for_idleness_only_after_keep_alive_since_ready_and_last_request(
    policy: Policy, look: AppSeen, memory: Memory
) -> None:
    decision, _ = decide(policy, look, memory, NOW)
    by_id = {w.worker_id: w for w in look.workers}
    for stop in decision.stops:
        target = by_id[stop.worker_id]
        assert target.state is not WorkerState.TERMINATED
        assert not target.leaves
        assert target.stop_requested != "suspend" or target.state is WorkerState.SUSPENDED
        if stop.how == "idle":
            assert target.state is WorkerState.IDLE
            assert target.in_flight == 0
            assert target.ready_at_ms is not None
            assert target.idle_since_ms is not None
            since = max(target.ready_at_ms, target.idle_since_ms)
            assert NOW - since >= policy.scaling.keep_alive * 1000
        if stop.how == "kill":
            assert target.in_flight == 0


@given(policies, looks(), memories)
def test_it_asks_to_be_asked_again_only_in_the_future(policy: Policy, look: AppSeen, memory: Memory) -> None:
    decision, _ = decide(policy, look, memory, NOW)
    assert decision.again_at_ms is None or decision.again_at_ms > NOW


@given(policies, looks(), memories)
@settings(max_examples=50)
def test_the_same_look_gives_the_same_decision(policy: Policy, look: AppSeen, memory: Memory) -> None:
    assert decide(policy, look, memory, NOW) == decide(policy, look, memory, NOW)


def test_a_sleeping_app_wakes_for_its_first_request() -> None:
    assert one(ScalingSpec(), seen(queued=1)).start == 1


def test_a_starting_worker_is_supply() -> None:
    assert one(ScalingSpec(max_concurrency=5), seen(worker(state=WorkerState.SETUP), queued=1)).start == 0
    assert one(ScalingSpec(max_concurrency=5), seen(worker(state=WorkerState.PENDING), queued=3)).start == 2


def test_multiplexing_divides_the_demand() -> None:
    assert one(ScalingSpec(max_concurrency=9), seen(queued=9), max_multiplexing=4).start == 3


def test_extra_requests_wait_at_the_maximum() -> None:
    look = seen(worker("a", WorkerState.RUNNING), worker("b", WorkerState.RUNNING), queued=10, in_progress=2)
    assert one(ScalingSpec(max_concurrency=2), look).start == 0


def test_an_idle_worker_stops_after_keep_alive_and_says_when_to_look_again() -> None:
    look = seen(worker(idle_since_ms=NOW - 3000))
    assert one(ScalingSpec(keep_alive=4), look) == Decision(1, again_at_ms=NOW + 1000)
    decision = one(ScalingSpec(keep_alive=3), look)
    assert [(s.worker_id, s.how) for s in decision.stops] == [("w1", "idle")]


def test_a_worker_that_never_got_a_request_stops_keep_alive_after_it_became_ready() -> None:
    slow_start = worker(created_at_ms=NOW - 600_000, ready_at_ms=NOW - 2000, idle_since_ms=NOW - 2000)
    assert one(ScalingSpec(keep_alive=5), seen(slow_start)).stops == ()
    assert one(ScalingSpec(keep_alive=2), seen(slow_start)).stops != ()


def test_the_minimum_stays_warm_and_the_longest_idle_goes_first() -> None:
    look = seen(worker("young", idle_since_ms=NOW - 10_000), worker("old", idle_since_ms=NOW - 20_000))
    decision = one(ScalingSpec(keep_alive=5, min_concurrency=1), look)
    assert [s.worker_id for s in decision.stops] == ["old"]


def test_the_buffer_is_extra_and_beats_a_lower_minimum() -> None:
    scaling = ScalingSpec(min_concurrency=1, max_concurrency=10, concurrency_buffer=2)
    assert one(scaling, seen()).start == 2
    assert one(scaling, seen(queued=3)).start == 5
    percent = ScalingSpec(max_concurrency=10, concurrency_buffer=1, concurrency_buffer_perc=50)
    assert one(percent, seen(queued=4)).start == 6


def test_scaling_delay_holds_growth_back_until_a_request_has_waited() -> None:
    scaling = ScalingSpec(scaling_delay=2)
    waiting = seen(queued=1, oldest=NOW - 500)
    assert one(scaling, waiting) == Decision(0, again_at_ms=NOW + 1500)
    assert one(scaling, waiting, NOW + 1500).start == 1


def test_failed_starts_back_off_doubling_up_to_a_minute_then_try_one_at_a_time() -> None:
    assert [back_off_ms(n) for n in range(9)] == [0, 1000, 2000, 4000, 8000, 16000, 32000, MAX_BACK_OFF_MS, 60_000]
    failed: dict[str, Any] = {"startup_failures": 2, "last_startup_failure_at_ms": NOW - 500}
    held = one(ScalingSpec(max_concurrency=5), seen(queued=4), **failed)
    assert (held.start, held.again_at_ms) == (0, NOW + 1500)
    assert held.held is not None
    assert one(ScalingSpec(max_concurrency=5), seen(queued=4), NOW + 1500, **failed).start == 1
    trying = seen(worker(state=WorkerState.SETUP), queued=4)
    assert one(ScalingSpec(max_concurrency=5), trying, NOW + 1500, **failed).start == 0


def test_a_start_that_vanishes_without_a_word_counts_as_failed() -> None:
    """A host agent that dies takes its starting workers along and nobody reports a failed start. Counting only
    reported ones, the scheduler placed a new worker on every pass."""
    policy = Policy("r2", ScalingSpec())
    _, memory = decide(policy, seen(worker("gone", WorkerState.PENDING), queued=1), Memory(), NOW)
    held, memory = decide(policy, seen(queued=1), memory, NOW + 10)
    assert (held.start, held.again_at_ms) == (0, NOW + 1010)
    again, memory = decide(policy, seen(queued=1), memory, NOW + 1010)
    assert again.start == 1
    _, memory = decide(policy, seen(worker("w9")), memory, NOW + 2000)
    assert memory.lost_starts == 0


def test_workers_that_crash_one_after_the_other_are_not_restarted_without_a_pause() -> None:
    """An app with a minimum whose workers get ready and die at once was restarted as fast as the host could fork."""
    crashing: dict[str, Any] = {"crash_streak": 3, "last_crash_at_ms": NOW - 500}
    scaling = ScalingSpec(min_concurrency=2, max_concurrency=5)
    held = one(scaling, seen(queued=4), **crashing)
    assert (held.start, held.again_at_ms) == (0, NOW + 3500)
    assert held.held == "its workers fail one after the other; next try in 3.5 s"
    assert one(scaling, seen(queued=4), NOW + 3500, **crashing).start == 1
    serving = seen(worker("busy", WorkerState.RUNNING), queued=4, in_progress=1)
    assert one(scaling, serving, **crashing) == Decision(1, again_at_ms=NOW + 3500, held=held.held), "it serves on"
    assert one(scaling, seen(queued=4), crash_streak=0, last_crash_at_ms=NOW).start == 4, "a success ended it"


def test_a_revision_whose_workers_crash_leaves_the_old_workers_alone() -> None:
    old = worker("old", revision="r1", idle_since_ms=NOW - 1000)
    decision = one(ScalingSpec(keep_alive=5), seen(old), crash_streak=1, last_crash_at_ms=NOW)
    assert (decision.stops, decision.again_at_ms) == ((), NOW + 4000)


def test_a_worker_that_was_told_to_stop_is_no_failed_start() -> None:
    policy = Policy("r2", ScalingSpec(max_concurrency=0))
    stopping, memory = decide(policy, seen(worker("w", WorkerState.SETUP)), Memory(), NOW)
    assert [s.how for s in stopping.stops] == ["kill"]
    _, memory = decide(policy, seen(), memory, NOW)
    assert memory.lost_starts == 0


def test_without_traffic_a_new_revision_replaces_idle_workers_at_once() -> None:
    decision = one(ScalingSpec(), seen(worker("old", revision="r1")))
    assert (decision.start, [(s.worker_id, s.how) for s in decision.stops]) == (0, [("old", "drain")])


def test_under_traffic_old_workers_serve_until_a_new_one_is_ready() -> None:
    old = worker("old", WorkerState.RUNNING, revision="r1")
    scaling = ScalingSpec(max_concurrency=1)
    starting = one(scaling, seen(old, queued=1, in_progress=1))
    assert (starting.start, starting.stops) == (1, ())
    waiting = one(scaling, seen(old, worker("new", WorkerState.SETUP), queued=1, in_progress=1))
    assert (waiting.start, waiting.stops) == (0, ())
    ready = one(scaling, seen(old, worker("new"), queued=1, in_progress=1))
    assert [(s.worker_id, s.how) for s in ready.stops] == [("old", "drain")]


def test_a_roll_over_replaces_one_for_one() -> None:
    old = [worker(f"old{n}", WorkerState.RUNNING, revision="r1") for n in range(3)]
    scaling = ScalingSpec(max_concurrency=3)
    first = one(scaling, seen(*old, queued=5, in_progress=3))
    assert (first.start, first.stops) == (1, ())
    second = one(scaling, seen(*old, worker("new"), queued=5, in_progress=3))
    assert (second.start, len(second.stops)) == (0, 1)


def test_a_minimum_stays_warm_through_a_deploy() -> None:
    scaling = ScalingSpec(min_concurrency=1)
    old = worker("old", revision="r1")
    assert one(scaling, seen(old)).stops == ()
    assert one(scaling, seen(old)).start == 1
    assert [s.worker_id for s in one(scaling, seen(old, worker("new"))).stops] == ["old"]


def test_a_worker_whose_owner_wants_another_one_serves_until_that_is_ready() -> None:
    old = worker("old", WorkerState.RUNNING, retiring="its owner asked")
    scaling = ScalingSpec(max_concurrency=1)
    assert one(scaling, seen(old, in_progress=1)).start == 1
    ready = one(scaling, seen(old, worker("new"), in_progress=1))
    assert [(s.worker_id, s.how) for s in ready.stops] == [("old", "drain")]
    assert "its owner asked" in ready.stops[0].reason
    assert one(scaling, seen(worker("old", retiring="its owner asked"))).start == 0


def test_a_starting_worker_of_a_replaced_revision_is_killed() -> None:
    decision = one(ScalingSpec(), seen(worker("old", WorkerState.SETUP, revision="r1"), queued=1))
    assert [(s.worker_id, s.how) for s in decision.stops] == [("old", "kill")]
    assert decision.start == 1


def test_a_revision_that_does_not_start_leaves_the_old_workers_alone() -> None:
    """A broken deploy under traffic took the app down: the old workers were drained although nothing replaced them."""
    old = worker("old", revision="r1", idle_since_ms=NOW - 1000)
    failed: dict[str, Any] = {"startup_failures": 1, "last_startup_failure_at_ms": NOW}
    decision = one(ScalingSpec(keep_alive=5), seen(old), **failed)
    assert (decision.stops, decision.again_at_ms) == ((), NOW + 4000)


def test_lowering_the_maximum_lets_busy_workers_finish() -> None:
    look = seen(worker("a", WorkerState.RUNNING), worker("b", WorkerState.SETUP), worker("c"), in_progress=1)
    decision = one(ScalingSpec(max_concurrency=1), look)
    assert [(s.worker_id, s.how) for s in decision.stops] == [("b", "kill"), ("c", "drain")]
    assert one(ScalingSpec(max_concurrency=0), look).desired == 0


def test_who_waits_gets_a_worker_beside_one_that_is_stuck_in_an_ended_request() -> None:
    stuck = worker("a", WorkerState.IDLE, leftover=1, idle_since_ms=NOW - 9000, ready_at_ms=NOW - 20_000)
    assert one(ScalingSpec(max_concurrency=3), seen(stuck, queued=1)).start == 1
    assert one(ScalingSpec(max_concurrency=1), seen(stuck, queued=1)).start == 0
    assert one(ScalingSpec(max_concurrency=3), seen(stuck, queued=1), max_multiplexing=2).start == 0
    alone = one(ScalingSpec(keep_alive=9, max_concurrency=3), seen(stuck))
    assert (alone.start, [stop.how for stop in alone.stops]) == (0, ["idle"])


def test_requests_on_leaving_workers_ask_for_no_new_ones() -> None:
    leaving = worker("a", WorkerState.DRAINING, stop_requested="drain", in_flight=1)
    assert one(ScalingSpec(), seen(leaving, in_progress=1)).start == 0


def test_a_worn_worker_serves_until_its_successor_does() -> None:
    """A runner that leaks memory has to go; its callers must not notice."""
    policy = ScalingSpec(min_concurrency=1, max_concurrency=1)
    worn = worker("worn", retiring="it takes 9000 MiB of RAM")
    assert one(policy, seen(worn)) == Decision(1, start=1)
    starting = worker("new", WorkerState.SETUP)
    assert one(policy, seen(worn, starting)) == Decision(1)
    (stop,) = one(policy, seen(worn, worker("new"))).stops
    assert (stop.worker_id, stop.how, stop.reason) == ("worn", "drain", "it takes 9000 MiB of RAM")


def test_a_worn_worker_that_nobody_needs_just_leaves() -> None:
    decision = one(ScalingSpec(keep_alive=300), seen(worker("worn", retiring="old age")))
    assert (decision.start, [stop.worker_id for stop in decision.stops]) == (0, ["worn"])


def suspended(worker_id: str = "s1", **fields: Any) -> WorkerRecord:
    values = {"gpu_ids": (0,), "stop_requested": "suspend", "idle_since_ms": NOW - 5_000} | fields
    return worker(worker_id, WorkerState.SUSPENDED, **values)


def test_a_suspended_worker_is_no_supply_and_takes_no_room() -> None:
    decision = one(ScalingSpec(max_concurrency=1), seen(suspended(), queued=1))
    assert (decision.start, decision.stops) == (1, ())
    coming = worker("s1", WorkerState.SETUP, gpu_ids=(0,), stop_requested="resume")
    assert one(ScalingSpec(max_concurrency=1), seen(coming, queued=1)).start == 0, "it is on its way"


def test_suspended_workers_that_nobody_will_resume_are_ended() -> None:
    kept = suspended("kept")
    gone = (
        suspended("old", revision="r1"),
        suspended("worn", retiring="worn"),
        suspended("more", idle_since_ms=NOW - 6_000),
    )
    decision = one(ScalingSpec(max_concurrency=1), seen(kept, *gone))
    assert {(stop.worker_id, stop.how) for stop in decision.stops} == {(w.worker_id, "kill") for w in gone}
    after_a_day = suspended(idle_since_ms=NOW - 86_400_000)
    (stop,) = one(ScalingSpec(max_concurrency=4), seen(after_a_day)).stops
    assert stop.reason == "suspended, and not wanted for a day"
