"""Which sets are tried, in which order. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from envbuilder import plan
from envbuilder.errors import SmokeImportFailed, Unsatisfiable
from envbuilder.requirements import parse

MOMENT = datetime(2024, 6, 10, 12, tzinfo=UTC)
DATED = "as of the pins 2024-06-10"


def hows(*lines: str, moment: datetime | None = MOMENT) -> list[str]:
    return [attempt.how for attempt in plan.attempts(parse([lines]), moment, ())]


def test_pins_beside_floating_names_are_resolved_as_of_the_pins_first() -> None:
    assert hows("diffusers==0.28.0", "accelerate") == [DATED, f"{DATED}, runtime newer", "as written"]


def test_pins_alone_are_taken_as_written_first() -> None:
    assert hows("diffusers==0.28.0") == ["as written", DATED, f"{DATED}, runtime newer"]


def test_without_a_moment_only_as_written() -> None:
    assert hows("diffusers==0.28.0", "accelerate", moment=None) == ["as written"]


def test_the_app_overrides() -> None:
    dated = parse([["a==1", "b"]], exclude_newer="2024-01-01")
    assert [a.exclude_newer for a in plan.attempts(dated, None, ())] == ["2024-01-02T00:00:00Z"]
    constrained = parse([["a==1", "b"]], ["numpy<2"])
    assert [a.how for a in plan.attempts(constrained, None, ())] == ["as written, with constraints"]
    assert not plan.wants_the_moment_of_its_pins(dated)
    assert not plan.wants_the_moment_of_its_pins(constrained)
    assert not plan.wants_the_moment_of_its_pins(parse([["a", "b>=1"]]))
    assert plan.wants_the_moment_of_its_pins(parse([["a==1"]]))


def test_a_held_torch_is_let_go_only_after_a_failure_that_names_it() -> None:
    held, free = plan.attempts(parse([["torch"]]), None, ("torch==2.13.0+cpu",))
    assert (held.cpu_constraints, free.cpu_constraints) == (("torch==2.13.0+cpu",), ())
    assert held.worth_trying([])
    assert not free.worth_trying([Unsatisfiable("six was not found")])
    assert free.worth_trying([SmokeImportFailed("operator torchvision::nms does not exist")])


def test_the_runner_is_freed_from_the_date_only_when_it_was_in_the_way() -> None:
    _, newer, _ = plan.attempts(parse([["a==1", "b"]]), MOMENT, ())
    assert newer.worth_trying([Unsatisfiable("only fastapi<=0.65 is available")])
    assert not newer.worth_trying([Unsatisfiable("only b<=3 is available")])
    assert not newer.worth_trying([SmokeImportFailed("fastapi")])
    assert not newer.worth_trying([])


@pytest.mark.parametrize(("line", "seconds"), [("six", 900), ("torch==2.3.0", 3600), ("nvidia-cudnn-cu12", 3600)])
def test_more_time_where_cuda_may_come(line: str, seconds: float) -> None:
    assert plan.wall_limit(parse([[line]])) == seconds
