"""Where workers go, as properties over any fleet and as the stories behind the rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fal._spec import CPU_MACHINE_TYPES
from hypothesis import given
from hypothesis import strategies as st

from scheduler.control.placement import Blocked, Need, Placed, make_room, place, place_again
from scheduler.store.records import HostRecord, WorkerRecord, WorkerState

TYPES = ["GPU-A100", "GPU-H100", "GPU", "XS", "M"]


def host(name: str, *gpus: str, cpu_fallback: bool = False, alive: bool = True) -> HostRecord:
    cards = tuple((index, f"NVIDIA {gpu}", 80_000, (gpu, "GPU")) for index, gpu in enumerate(gpus))
    names = tuple(dict.fromkeys([t for card in cards for t in card[3]])) + tuple(CPU_MACHINE_TYPES)
    return HostRecord(name, names, cards, cpu_fallback, 2, 8000, alive)


def worker(on: str, *gpu_ids: int, state: WorkerState = WorkerState.RUNNING, **fields: Any) -> WorkerRecord:
    return WorkerRecord("o/b", f"{on}-{gpu_ids}", "r", on, state, "GPU-A100", gpu_ids, 0, **fields)


def put(types: list[str], gpus: int, fleet: list[HostRecord], taken: list[WorkerRecord]) -> Placed | Blocked:
    return place(Need(tuple(types), gpus), fleet, taken)


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
    found = put(types, gpus, fleet, workers)
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
        free = (WorkerState.TERMINATED, WorkerState.SUSPENDED)
        used = {gpu for w in workers if w.host == found.host and w.state not in free for gpu in w.gpu_ids}
        assert not used & set(found.gpu_ids)
        for gpu in found.gpu_ids:
            assert found.machine_type in chosen.gpus[gpu][3]


@given(wishes, st.integers(1, 3), hosts, taken)
def test_no_cpu_stands_in_while_any_asked_type_is_offered_for_real(
    types: list[str], gpus: int, fleet: list[HostRecord], workers: list[WorkerRecord]
) -> None:
    found = put(types, gpus, fleet, workers)
    if isinstance(found, Placed) and found.cpu_fallback_for:
        assert isinstance(put(types, gpus, [h for h in fleet if not h.cpu_fallback], []), Blocked)


def test_types_are_tried_in_order() -> None:
    fleet = [host("a", "GPU-A100"), host("b", "GPU-H100")]
    assert put(["GPU-H100", "GPU-A100"], 1, fleet, []) == Placed("b", "GPU-H100", (0,))
    assert put(["GPU-H100", "GPU-A100"], 1, fleet, [worker("b", 0)]) == Placed("a", "GPU-A100", (0,))
    assert put(["GPU-B200", "M"], 1, fleet, []) == Placed("a", "M")


def test_small_apps_leave_whole_machines_free() -> None:
    fleet = [host("big", *["GPU-A100"] * 4), host("small", "GPU-A100")]
    assert put(["GPU-A100"], 1, fleet, []) == Placed("small", "GPU-A100", (0,))
    assert put(["GPU-A100"], 3, fleet, []) == Placed("big", "GPU-A100", (0, 1, 2))


def test_cpu_types_always_fit_and_spread() -> None:
    fleet = [host("a"), host("b")]
    assert put(["M"], 1, fleet, [worker("a")] * 20) == Placed("b", "M")


def test_a_busy_card_is_waited_for_even_where_the_cpu_may_stand_in() -> None:
    holder = worker("a", 0)
    found = put(["GPU-A100"], 1, [host("a", "GPU-A100", cpu_fallback=True)], [holder])
    assert found == Blocked("Waiting for a free GPU-A100: all are in use.", busy=True, holders=(holder,))
    assert found.words == f"Waiting for a free GPU-A100: all are in use, by {holder.app} (running)."


def test_the_cpu_stands_in_only_by_the_operators_choice_and_is_marked() -> None:
    assert put(["GPU-A100"], 1, [host("a", cpu_fallback=True)], []) == Placed(
        "a", "GPU-A100", cpu_fallback_for="GPU-A100"
    )
    refused = put(["GPU-A100"], 1, [host("a")], [])
    assert isinstance(refused, Blocked)
    assert not refused.busy
    assert refused.reason.startswith("No host offers GPU-A100. This host offers CPU types XS, S, M, L, XL.")


def test_a_terminated_worker_holds_no_card() -> None:
    assert put(["GPU-A100"], 1, [host("a", "GPU-A100")], [worker("a", 0, state=WorkerState.TERMINATED)]) == Placed(
        "a", "GPU-A100", (0,)
    )


def test_more_cards_than_any_host_has_is_refused_not_waited_for() -> None:
    found = put(["GPU-A100"], 2, [host("a", "GPU-A100"), host("b", "GPU-A100")], [])
    assert isinstance(found, Blocked)
    assert not found.busy
    assert "2 x GPU-A100" in found.reason


# --- several workers on one card --------------------------------------------------------------------------------------


def sharing(name: str, memory_mb: int, *gpu_ids: int, on: str = "a", **fields: Any) -> WorkerRecord:
    return WorkerRecord(
        "o/b", name, "r", on, WorkerState.IDLE, "GPU-A100", gpu_ids, 0, gpu_memory_mb=memory_mb, **fields
    )


needs = st.builds(Need, st.just(("GPU-A100",)), st.integers(1, 2), st.sampled_from([0, 10_000, 30_000, 80_000]))


@given(st.lists(st.tuples(needs, st.booleans()), max_size=12))
def test_cards_are_never_given_away_twice(arrivals: list[tuple[Need, bool]]) -> None:
    """Whole-card workers are alone on theirs, the others never exceed its memory, whoever comes and goes."""
    fleet = [host("a", *["GPU-A100"] * 2), host("b", "GPU-A100")]
    there: list[WorkerRecord] = []
    for number, (need, one_leaves) in enumerate(arrivals):
        found = place(need, fleet, there)
        if isinstance(found, Placed):
            assert len(found.gpu_ids) == need.num_gpus
            there.append(sharing(f"w{number}", need.gpu_memory_mb, *found.gpu_ids, on=found.host))
        elif one_leaves and there:
            there.pop(0)
        for card in {(w.host, gpu) for w in there for gpu in w.gpu_ids}:
            on_it = [w for w in there if (w.host, card[1]) == card and card[1] in w.gpu_ids]
            assert sum(w.gpu_memory_mb for w in on_it) <= 80_000
            assert len(on_it) == 1 or all(w.gpu_memory_mb for w in on_it)


def test_small_workers_fill_one_card_before_they_begin_another() -> None:
    fleet = [host("a", "GPU-A100", "GPU-A100")]
    need = Need(("GPU-A100",), 1, 30_000)
    first = sharing("w1", 30_000, 1)
    assert place(need, fleet, [first]) == Placed("a", "GPU-A100", (1,))
    assert place(need, fleet, [first, sharing("w2", 30_000, 1)]) == Placed("a", "GPU-A100", (0,))
    assert place(Need(("GPU-A100",)), fleet, [first]) == Placed("a", "GPU-A100", (0,))


def test_who_shares_nothing_is_left_alone() -> None:
    found = place(Need(("GPU-A100",), 1, 1_000), [host("a", "GPU-A100")], [worker("a", 0)])
    assert isinstance(found, Blocked)
    assert found.words == "Waiting for a free 0.976562 GB of a GPU-A100: all are in use, by o/b (running)."


def test_a_worker_that_no_card_can_hold_is_refused_with_its_size() -> None:
    found = place(Need(("GPU-A100",), 1, 90 * 1024), [host("a", "GPU-A100")], [])
    assert isinstance(found, Blocked)
    assert not found.busy
    assert found.reason.startswith("No host offers GPU-A100 with 90 GB (gpu_memory).")


# --- making room ------------------------------------------------------------------------------------------------------


@given(needs, st.lists(st.tuples(needs, st.floats(0.1, 100) | st.none()), max_size=8))
def test_room_is_made_by_those_who_may_go_and_is_enough(need: Need, there: list[tuple[Need, float | None]]) -> None:
    fleet = [host("a", *["GPU-A100"] * 2), host("b", "GPU-A100")]
    workers: list[WorkerRecord] = []
    costs: dict[str, float] = {}
    for number, (other, cost) in enumerate(there):
        found = place(other, fleet, workers)
        if isinstance(found, Placed):
            workers.append(sharing(f"w{number}", other.gpu_memory_mb, *found.gpu_ids, on=found.host))
            if cost is not None:
                costs[f"w{number}"] = cost
    if isinstance(place(need, fleet, workers), Placed):
        return
    going = make_room(need, fleet, workers, costs)
    assert all(w.worker_id in costs for w in going)
    left = [w for w in workers if w not in going]
    assert isinstance(place(need, fleet, left), Placed) == bool(going)
    if not going:
        assert isinstance(place(need, fleet, [w for w in workers if w.worker_id not in costs]), Blocked)


def test_the_cheapest_go_and_no_more_than_needed() -> None:
    fleet = [host("a", "GPU-A100", "GPU-A100")]
    there = [sharing("dear", 40_000, 0), sharing("cheap", 40_000, 0), sharing("other", 70_000, 1)]
    costs = {"dear": 9.0, "cheap": 1.0, "other": 2.0}
    assert make_room(Need(("GPU-A100",), 1, 40_000), fleet, there, costs) == (there[1],)
    assert make_room(Need(("GPU-A100",)), fleet, there, costs) == (there[2],)
    assert make_room(Need(("GPU-A100",), 2), fleet, there, costs) == (there[2], there[1], there[0])
    assert make_room(Need(("GPU-A100",), 2), fleet, there, {"dear": 9.0, "other": 2.0}) == ()


def test_a_suspended_worker_holds_no_card_and_comes_back_to_its_own() -> None:
    need, fleet = Need(("GPU-A100",)), [host("h0", "GPU-A100", "GPU-A100")]
    asleep = worker("h0", 0, state=WorkerState.SUSPENDED)
    assert place(need, fleet, [asleep]) == Placed("h0", "GPU-A100", (0,))
    assert place_again(need, [asleep], fleet, [asleep]) is asleep
    beside, on_it = worker("h0", 1), worker("h0", 0)
    assert place_again(need, [asleep], fleet, [asleep, beside]) is asleep
    assert place_again(need, [asleep], fleet, [asleep, on_it]) is None
    assert place_again(need, [asleep], [host("h0", "GPU-A100", alive=False)], []) is None


def test_one_that_shares_a_card_comes_back_where_its_share_is_free() -> None:
    need, fleet = Need(("GPU-A100",), gpu_memory_mb=30_000), [host("h0", "GPU-A100")]
    asleep = worker("h0", 0, state=WorkerState.SUSPENDED, gpu_memory_mb=30_000)
    assert place_again(need, [asleep], fleet, [worker("h0", 0, gpu_memory_mb=50_000)]) is asleep
    assert place_again(need, [asleep], fleet, [worker("h0", 0, gpu_memory_mb=60_000)]) is None


def counted(name: str, cores: float, mb: int, cpus: int = 4, memory_mb: int = 16_000) -> HostRecord:
    return HostRecord(name, tuple(CPU_MACHINE_TYPES), (), False, cpus, memory_mb, room_cores=cores, room_mb=mb)


def small(on: str, machine_type: str, number: int, **fields: Any) -> WorkerRecord:
    return WorkerRecord("o/c", f"{on}-{number}", "r", on, WorkerState.IDLE, machine_type, (), 0, **fields)


cpu_types = st.sampled_from(list(CPU_MACHINE_TYPES))


@given(cpu_types, st.floats(0, 64), st.integers(0, 100_000), st.lists(cpu_types, max_size=40))
def test_workers_of_cpu_types_take_no_more_than_a_host_has_for_them(
    wanted: str, cores: float, mb: int, there: list[str]
) -> None:
    fleet = [counted("a", cores, mb)]
    workers: list[WorkerRecord] = []
    for number, machine_type in enumerate([*there, wanted]):
        found = put([machine_type], 1, fleet, workers)
        if isinstance(found, Blocked):
            assert found.busy
            assert workers, "one always fits where there is nobody, however small the machine"
            continue
        workers.append(small("a", machine_type, number))
    sizes = [CPU_MACHINE_TYPES[w.machine_type] for w in workers]
    assert not cores or sum(min(size[0], 4, cores) for size in sizes) <= cores + 1e-6
    assert not mb or sum(min(size[1], 16_000, mb) for size in sizes) <= mb


def test_a_full_host_says_what_is_missing_and_who_has_it() -> None:
    fleet = [counted("a", 8, 24_000)]
    first = small("a", "L", 1)
    found = put(["L"], 1, fleet, [first])
    assert isinstance(found, Blocked)
    assert found.words == "Waiting for 4 cores and 15 GB of memory (L): all are in use, by o/c (idle)."
    assert put(["L", "XS"], 1, fleet, [first]) == Placed("a", "XS"), "the next type of its own list fits"
    assert put(["L"], 1, [*fleet, counted("b", 8, 24_000)], [first]) == Placed("b", "L")


def test_the_cheapest_make_room_for_one_of_a_cpu_type() -> None:
    fleet = [counted("a", 4, 0)]
    workers = [small("a", "M", 1), small("a", "S", 2), small("a", "S", 3)]
    costs = {"a-1": 5.0, "a-2": 1.0, "a-3": 2.0}
    assert {w.worker_id for w in make_room(Need(("M",)), fleet, workers, costs)} == {"a-2", "a-3"}
    assert make_room(Need(("L",)), fleet, workers, {"a-2": 1.0}) == ()


counted_hosts = st.lists(
    st.builds(
        counted,
        st.sampled_from("abc"),
        st.sampled_from([0.0, 1.0, 4.0, 9.5]),
        st.sampled_from([0, 2048, 20_000, 64_000]),
        st.sampled_from([1, 4, 16]),
        st.sampled_from([2048, 16_000, 64_000]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda h: h.host,
)


def filled(fleet: list[HostRecord], types: list[str]) -> list[WorkerRecord]:
    """One after the other, as long as there is room."""
    there: list[WorkerRecord] = []
    for number, machine_type in enumerate(types):
        found = put([machine_type], 1, fleet, there)
        if isinstance(found, Placed):
            there.append(small(found.host, machine_type, number))
    return there


@given(cpu_types, counted_hosts, st.lists(cpu_types, max_size=20), st.lists(st.none() | st.floats(0.1, 9), max_size=20))
def test_room_is_made_by_those_who_may_go_by_enough_and_by_none_too_many(
    wanted: str, fleet: list[HostRecord], types: list[str], prices: list[float | None]
) -> None:
    there = filled(fleet, types)
    costs = {w.worker_id: price for w, price in zip(there, prices, strict=False) if price is not None}
    going = make_room(Need((wanted,)), fleet, there, costs)
    if isinstance(put([wanted], 1, fleet, there), Placed):
        assert going == (), "there is room without"
        return
    staying = [w for w in there if w not in going]
    assert {w.worker_id for w in going} <= set(costs)
    assert isinstance(put([wanted], 1, fleet, staying), Placed) == bool(going)
    for each in going:
        assert isinstance(put([wanted], 1, fleet, [*staying, each]), Blocked), "this one need not have gone"
    if not going:
        assert isinstance(put([wanted], 1, fleet, [w for w in there if w.worker_id not in costs]), Blocked)


@given(counted_hosts, st.lists(cpu_types, max_size=20))
def test_an_idle_machine_is_filled_before_one_that_has_less_left(fleet: list[HostRecord], types: list[str]) -> None:
    """For the smallest type, which no machine here is too small for: the most cores, of equals the most memory."""
    there = filled(fleet, types)
    found = put(["XS"], 1, fleet, there)
    left: dict[str, tuple[float, float]] = {}
    for each in fleet:
        sizes = [CPU_MACHINE_TYPES[w.machine_type] for w in there if w.host == each.host]
        cores = sum(min(size[0], each.cpus, each.room_cores or each.cpus) for size in sizes)
        mb = sum(min(size[1], each.memory_mb, each.room_mb or each.memory_mb) for size in sizes)
        left[each.host] = ((each.room_cores or each.cpus) - cores, (each.room_mb or each.memory_mb) - mb)
    fits = {
        each.host: left[each.host]
        for each in fleet
        if (not each.room_cores or left[each.host][0] >= 0.5) and (not each.room_mb or left[each.host][1] >= 512)
    }
    if isinstance(found, Placed):
        assert fits[found.host] == max(fits.values())
    else:
        assert fits == {}


def test_a_machine_as_large_as_the_type_is_better_than_one_with_more_to_give_out() -> None:
    board = counted("a-board", 32, 6_000, cpus=4, memory_mb=4_000)
    server = counted("server", 8, 48_000, cpus=16, memory_mb=32_000)
    assert put(["L"], 1, [board, server], []) == Placed("server", "L")
    assert put(["S"], 1, [board, server], []) == Placed("a-board", "S")
    full = [small("server", "L", 1), small("server", "L", 2)]
    assert put(["L"], 1, [board, server], full) == Placed("a-board", "L"), "better the whole of a small one than none"


def test_one_that_makes_room_alone_spares_the_cheaper_one() -> None:
    """An idle XS went with the L whose leaving was enough: its app then started anew for nothing."""
    fleet = [counted("a", 4.5, 0)]
    workers = [small("a", "XS", 1), small("a", "L", 2)]
    assert make_room(Need(("L",)), fleet, workers, {"a-1": 1.0, "a-2": 2.0}) == (workers[1],)
    card = [replace(worker("h0", 0, gpu_memory_mb=mb), worker_id=str(mb)) for mb in (5_000, 60_000)]
    need = Need(("GPU-A100",), 1, 70_000)
    assert make_room(need, [host("h0", "GPU-A100")], card, {"5000": 1.0, "60000": 2.0}) == (card[1],)


def test_a_cpu_that_stands_in_for_a_gpu_takes_no_room_of_others() -> None:
    standing_in = small("a", "GPU-A100", 1, cpu_fallback_for="GPU-A100")
    assert put(["S"], 1, [counted("a", 1, 1024)], [standing_in]) == Placed("a", "S")
