"""The one sentence that says why a request waits: the first thing in its way, in words that name it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fal._spec import AppSpec, EnvironmentSpec, ScalingSpec

from scheduler.store.records import (
    AppRecord,
    AppSeen,
    EnvironmentRecord,
    EnvironmentState,
    RevisionRecord,
    RevisionState,
    WorkerRecord,
    WorkerState,
)
from scheduler.store.waiting import why_waiting

NOW = 1_800_000_000_000
APP = "alice/painter"
ALIAS = AppRecord(APP, "r1", "private", ScalingSpec(max_concurrency=2), False, 0)
REVISION = RevisionRecord(
    APP, "r1", AppSpec("painter", "Painter", "app.py", EnvironmentSpec("3.11")), "b", (), "e1", RevisionState.READY, 0
)
READY = EnvironmentRecord("e1", EnvironmentState.READY)
SEEN = AppSeen(APP, NOW, 3, 0, 0, NOW - 12_000, (), None)


def worker(name: str, state: WorkerState = WorkerState.RUNNING, **changes: Any) -> WorkerRecord:
    plain = WorkerRecord(APP, name, "r1", "box", state, "S", (), NOW - 4_000, ready_at_ms=NOW - 3_000)
    return replace(plain, **changes)


def environment(state: EnvironmentState, error: str | None = None) -> EnvironmentRecord:
    return EnvironmentRecord("e1", state, None, error, NOW - 90_000)


STARTED = {"environment": 0.0, "spawn": 0.1, "boot": 0.3}
SETUP = worker("new", WorkerState.SETUP, stages=STARTED | {"import": 0.5})
FIRST = "3 requests wait, the first for 12 s: "
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "first build": ({"revision": None}, "the app's first revision is still being built"),
    "first start": (
        {"workers": (SETUP,)},
        "a runner has been starting for 4.0 s (setup() runs); it is the revision's first",
    ),
    "later start": (
        {"workers": (replace(SETUP, stages=STARTED),), "last_start": {"total": 31.25}},
        "a runner has been starting for 4.0 s (the app's file is imported); the last start took 31.2 s",
    ),
    "all busy": (
        {"workers": (worker("a"), worker("b"))},
        "all 2 runners are busy, and max_concurrency is 2",
    ),
    "one busy": (
        {"workers": (worker("a"),), "scaling": ScalingSpec(max_concurrency=1)},
        "the only runner is busy, and max_concurrency is 1",
    ),
    "one busy, one starts": (
        {"workers": (worker("a"), SETUP)},
        "the only runner is busy, 1 more is starting, and max_concurrency is 2",
    ),
    "leaving": (
        {"workers": (worker("a", stop_requested="drain"), worker("b", stop_requested="drain"))},
        "2 of its runners are leaving, and max_concurrency is 2",
    ),
    "environment lost": ({"environment": None}, "the app's environment waits to be built"),
    "environment builds": (
        {"environment": environment(EnvironmentState.BUILDING)},
        "the app's environment has been building for 90 s",
    ),
    "environment failed": (
        {"environment": environment(EnvironmentState.FAILED, "No solution found\nbecause")},
        "the app's environment could not be built (No solution found)",
    ),
    "start failed": (
        {"startup_failures": 3, "last_startup_error": "setup() failed: KeyError", "last_startup_failure_at_ms": NOW},
        "its last start failed (setup() failed: KeyError), and the next try is in 4.0 s, at 08:00:04 UTC",
    ),
    "crashes": (
        {"crash_streak": 5, "last_crash": "signal SIGSEGV", "last_crash_at_ms": NOW - 1_000},
        "its runners fail one after the other (signal SIGSEGV), and the next try is in 15 s, at 08:00:15 UTC",
    ),
    "no card": (
        {"blocked": "Waiting for a free GPU-A100: all are in use, by bob/talker (running)."},
        "waiting for a free GPU-A100: all are in use, by bob/talker (running)",
    ),
    "scaling_delay": (
        {"workers": (worker("a"),), "scaling": ScalingSpec(max_concurrency=3, scaling_delay=20)},
        "another runner starts when a request has waited 20 s (scaling_delay), in 8.0 s",
    ),
    "about to": ({}, "a runner is about to be started"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_holds_a_request_up(case: str) -> None:
    given, cause = CASES[case]
    of_revision = {name: value for name, value in given.items() if name in RevisionRecord.__dataclass_fields__}
    revision = None if "revision" in given else replace(REVISION, **of_revision)
    said = why_waiting(
        replace(ALIAS, scaling=given.get("scaling", ALIAS.scaling)),
        replace(SEEN, workers=given.get("workers", ())),
        revision,
        given.get("environment", READY),
        given.get("blocked"),
    )
    assert said == f"{FIRST}{cause}."


def test_nothing_waits() -> None:
    assert why_waiting(ALIAS, replace(SEEN, queued=0, in_progress=2), REVISION, READY, None) is None


def test_all_of_it_waits_for_a_retry() -> None:
    seen = replace(SEEN, queued=0, delayed=1, next_delayed_at_ms=NOW + 7_500)
    said = why_waiting(ALIAS, seen, REVISION, READY, None)
    assert said == "1 request waits again in 7.5 s: the last attempt failed, and a retry is not at once."
