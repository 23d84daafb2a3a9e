"""Where workers go, as properties over any fleet and as the stories behind the rules."""

from __future__ import annotations

from typing import Any

from fal._spec import CPU_MACHINE_TYPES
from hypothesis import given
from hypothesis import strategies as st

from scheduler.control.placement import Blocked, Placed, place
from scheduler.store.records import HostRecord, WorkerRecord, WorkerState

TYPES = ["GPU-A100", "GPU-H100", "GPU", "XS", "M"]


def host(name: str, *gpus: str, cpu_fallback: bool = False, alive: bool = True) -> HostRecord:
    cards = tuple((index, f"NVIDIA {gpu}", 80_000, (gpu, "GPU")) for index, gpu in enumerate(gpus))
    names = tuple(dict.fromkeys([t for card in cards for t in card[3]])) + tuple(CPU_MACHINE_TYPES)
    return HostRecord(name, names, cards, cpu_fallback, 2, 8000, alive)


def worker(on: str, *gpu_ids: int, state: WorkerState = WorkerState.RUNNING, **fields: Any) -> WorkerRecord:
    return WorkerRecord("o/b", f"{on}-{gpu_ids}", "r", on, state, "GPU-A100", gpu_ids, 0, **fields)


hosts = st.lists(
    st.builds(
        lambda n, gpus, fallback, alive: host(f"h{n}", *gpus, cpu_fallback=fallback, alive=alive),
        st.integers(0, 3),
        st.lists(st.sampled_from(["GPU-A100", "GPU-H100"]), max_size=4),
        st.booleans(),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda h: h.host,
)
taken = st.lists(
    st.builds(
        lambda n, ids, state: worker(f"h{n}", *ids, state=state),
        st.integers(0, 3),
        st.lists(st.integers(0, 3), max_size=2, unique=True),
        st.sampled_from(list(WorkerState)),
    ),
    max_size=6,
)
wishes = st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True)


@given(wishes, st.integers(1, 3), hosts, taken)
def test_a_place_is_real_free_and_asked_for(
    types: list[str], gpus: int, fleet: list[HostRecord], workers: list[WorkerRecord]
) -> None:
    found = place(types, gpus, fleet, workers)
    if isinstance(found, Blocked):
        assert found.reason.endswith(".")
        return
    chosen = next(h for h in fleet if h.host == found.host)
    assert chosen.alive
    assert found.machine_type in types
    if found.cpu_fallback_for is not None:
        assert chosen.cpu_fallback
        assert found.gpu_ids == ()
    elif found.machine_type in CPU_MACHINE_TYPES:
        assert found.gpu_ids == ()
    else:
        assert len(set(found.gpu_ids)) == gpus
        used = {
            gpu for w in workers if w.host == found.host and w.state is not WorkerState.TERMINATED for gpu in w.gpu_ids
        }
        assert not used & set(found.gpu_ids)
        for gpu in found.gpu_ids:
            assert found.machine_type in chosen.gpus[gpu][3]


@given(wishes, st.integers(1, 3), hosts, taken)
def test_no_cpu_stands_in_while_any_asked_type_is_offered_for_real(
    types: list[str], gpus: int, fleet: list[HostRecord], workers: list[WorkerRecord]
) -> None:
    found = place(types, gpus, fleet, workers)
    if isinstance(found, Placed) and found.cpu_fallback_for:
        assert isinstance(place(types, gpus, [h for h in fleet if not h.cpu_fallback], []), Blocked)


def test_types_are_tried_in_order() -> None:
    fleet = [host("a", "GPU-A100"), host("b", "GPU-H100")]
    assert place(["GPU-H100", "GPU-A100"], 1, fleet, []) == Placed("b", "GPU-H100", (0,))
    assert place(["GPU-H100", "GPU-A100"], 1, fleet, [worker("b", 0)]) == Placed("a", "GPU-A100", (0,))
    assert place(["GPU-B200", "M"], 1, fleet, []) == Placed("a", "M")


def test_small_apps_leave_whole_machines_free() -> None:
    fleet = [host("big", *["GPU-A100"] * 4), host("small", "GPU-A100")]
    assert place(["GPU-A100"], 1, fleet, []) == Placed("small", "GPU-A100", (0,))
    assert place(["GPU-A100"], 3, fleet, []) == Placed("big", "GPU-A100", (0, 1, 2))


def test_cpu_types_always_fit_and_spread() -> None:
    fleet = [host("a"), host("b")]
    assert place(["M"], 1, fleet, [worker("a")] * 20) == Placed("b", "M")


def test_a_busy_card_is_waited_for_even_where_the_cpu_may_stand_in() -> None:
    holder = worker("a", 0)
    found = place(["GPU-A100"], 1, [host("a", "GPU-A100", cpu_fallback=True)], [holder])
    assert found == Blocked("Waiting for a free GPU-A100: all are in use.", busy=True, holders=(holder,))
    assert found.words == f"Waiting for a free GPU-A100: all are in use, by {holder.app} (running)."


def test_the_cpu_stands_in_only_by_the_operators_choice_and_is_marked() -> None:
    assert place(["GPU-A100"], 1, [host("a", cpu_fallback=True)], []) == Placed(
        "a", "GPU-A100", cpu_fallback_for="GPU-A100"
    )
    refused = place(["GPU-A100"], 1, [host("a")], [])
    assert isinstance(refused, Blocked)
    assert not refused.busy
    assert refused.reason.startswith("No host offers GPU-A100. This host offers CPU types XS, S, M, L, XL.")


def test_a_terminated_worker_holds_no_card() -> None:
    assert place(["GPU-A100"], 1, [host("a", "GPU-A100")], [worker("a", 0, state=WorkerState.TERMINATED)]) == Placed(
        "a", "GPU-A100", (0,)
    )


def test_more_cards_than_any_host_has_is_refused_not_waited_for() -> None:
    found = place(["GPU-A100"], 2, [host("a", "GPU-A100"), host("b", "GPU-A100")], [])
    assert isinstance(found, Blocked)
    assert not found.busy
    assert "2 x GPU-A100" in found.reason
