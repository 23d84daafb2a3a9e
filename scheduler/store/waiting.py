"""Why an app's requests wait, in one sentence that says since when and what it would take. Pure.

For people: the gateway shows it, nobody decides by it. Reads the same records as the scheduler's policy, in the order
in which that lets one thing after the other hold a request up.
"""

from __future__ import annotations

import time

from .back_off import next_start_ms
from .records import (
    AppRecord,
    AppSeen,
    EnvironmentRecord,
    EnvironmentState,
    RevisionRecord,
    RevisionState,
    WorkerRecord,
    WorkerState,
)

_STARTING = (WorkerState.PENDING, WorkerState.SETUP)
_READY = (WorkerState.IDLE, WorkerState.RUNNING)
#: The stages of a start in their order, as the supervisor measures them, and what happens meanwhile.
_STAGES = {
    "environment": "its host prepares the environment",
    "spawn": "its process starts",
    "boot": "Python starts",
    "import": "the app's file is imported",
    "setup": "setup() runs",
}


def why_waiting(
    app: AppRecord,
    seen: AppSeen,
    revision: RevisionRecord | None,
    environment: EnvironmentRecord | None,
    blocked: str | None,
) -> str | None:
    """One sentence, or None when nothing waits.

    Args:
        revision: the one that the app points at, None before its first deploy is built.
        environment: that revision's. blocked: what the scheduler said about a place for the next worker.
    """
    if seen.queued + seen.delayed == 0:
        return None
    if seen.queued == 0:
        left = max(0, (seen.next_delayed_at_ms or seen.now_ms) - seen.now_ms)
        return f"{_requests(seen.delayed)} again in {_span(left)}: the last attempt failed, and a retry is not at once."
    return f"{_requests(seen.queued)}{_since(seen)}: {_cause(app, seen, revision, environment, blocked)}."


def _cause(
    app: AppRecord,
    seen: AppSeen,
    revision: RevisionRecord | None,
    environment: EnvironmentRecord | None,
    blocked: str | None,
) -> str:
    if revision is None or revision.state is not RevisionState.READY:
        return "the app's first revision is still being built"
    current = [w for w in seen.workers if w.revision == revision.revision and w.takes_requests]
    supply = [w for w in current if not w.unhealthy]
    starting = [w for w in supply if w.state in _STARTING]
    ready = [w for w in supply if w.state in _READY]
    if any(w.stop_requested == "resume" for w in starting) and not ready:
        return "a suspended runner is taking its cards again"
    if starting and not ready:
        return _starting(max(starting, key=lambda w: len(w.stages)), revision, seen.now_ms)
    if len(supply) >= app.scaling.max_concurrency:
        count = f"all {len(ready)} runners are" if len(ready) > 1 else "the only runner is"
        more = f", {len(starting)} more {'is' if len(starting) == 1 else 'are'} starting" if starting else ""
        return f"{count} busy{more}, and max_concurrency is {app.scaling.max_concurrency}"
    leaving = sum(1 for w in seen.workers if w.revision == revision.revision and _leaves(w))
    if len(supply) + leaving >= app.scaling.max_concurrency:
        return f"{leaving} of its runners are leaving, and max_concurrency is {app.scaling.max_concurrency}"
    if environment is None or environment.state is EnvironmentState.QUEUED:
        return "the app's environment waits to be built"
    if environment.state is EnvironmentState.BUILDING:
        return f"the app's environment has been building for {_span(seen.now_ms - environment.updated_at_ms)}"
    if environment.state is EnvironmentState.FAILED:
        return f"the app's environment could not be built ({_first_line(environment.error)})"
    if (next_start := next_start_ms(revision)) > seen.now_ms:
        trouble, what = (revision.last_crash, "its runners fail one after the other")
        if revision.startup_failures >= revision.crash_streak:
            trouble, what = (revision.last_startup_error, "its last start failed")
        left = f"the next try is in {_span(next_start - seen.now_ms)}, at {_clock(next_start)}"
        return f"{what} ({_first_line(trouble)}), and {left}"
    if blocked is not None:
        return f"{blocked[:1].lower()}{blocked[1:]}".rstrip(".")
    waited = seen.now_ms - (seen.oldest_queued_at_ms or seen.now_ms)
    if waited < (delay := round(app.scaling.scaling_delay * 1000)):
        rule = f"another runner starts when a request has waited {app.scaling.scaling_delay:g} s (scaling_delay)"
        return f"{rule}, in {_span(delay - waited)}"
    if starting:
        return _starting(starting[0], revision, seen.now_ms)
    return "a runner is about to be started"


def _leaves(worker: WorkerRecord) -> bool:
    return not worker.takes_requests and worker.state is not WorkerState.SUSPENDED


def _starting(worker: WorkerRecord, revision: RevisionRecord, now_ms: int) -> str:
    """How far the start is, and how long the last one took."""
    what = next((words for stage, words in _STAGES.items() if stage not in worker.stages), "it is about to be ready")
    so_far = f"a runner has been starting for {_span(now_ms - worker.created_at_ms)} ({what})"
    usual = revision.last_start.get("total")
    return f"{so_far}; the last start took {usual:.1f} s" if usual else f"{so_far}; it is the revision's first"


def _requests(count: int) -> str:
    return "1 request waits" if count == 1 else f"{count} requests wait"


def _since(seen: AppSeen) -> str:
    return (
        "" if seen.oldest_queued_at_ms is None else f", the first for {_span(seen.now_ms - seen.oldest_queued_at_ms)}"
    )


def _span(ms: int) -> str:
    seconds = max(0, ms) / 1000
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _clock(ms: int) -> str:
    return time.strftime("%H:%M:%S UTC", time.gmtime(ms / 1000))


def _first_line(text: str | None) -> str:
    lines = (text or "no reason is known").strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else "no reason is known"
