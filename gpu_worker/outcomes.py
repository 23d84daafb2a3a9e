"""What follows from how an attempt ended: keep the answer, try again, end the runner. The retry table, and pure.

Leaves doing it to ``serving``. Whether attempts are left, and that direct requests are never tried again, the store
decides; here only the kind of ending counts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scheduler.store.outcomes import infrastructure_error
from scheduler.store.records import Outcome
from scheduler.store.retry_rules import RetryRules

StopRunner = Literal["no", "drain", "kill"]

#: Read and removed here: instructions for the platform, not for the caller.
_STOP_RUNNER = b"x-fal-stop-runner"
#: An instruction on 5xx and 429, where callers may see it too; noise on everything else.
_NEEDS_RETRY = b"x-fal-needs-retry"
#: The app asks to be asked for its health.
_HEALTH_CHECK = b"x-fal-runner-health-check"
_TRUE = (b"1", b"true", b"yes")
_RETRIED_STATUSES = (503, 504)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with an answer: keep ``outcome``, or retry with it as the last word; and what of the runner.

    ``budget`` is how many retries of the kind ``condition`` the request may have, None for as many as it has attempts.
    ``check``: the app asks for a health check.
    """

    outcome: Outcome
    retry: bool
    stop: StopRunner
    budget: int | None = None
    condition: str = "server_error"
    check: bool = False


def judge(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    rules: RetryRules,
    seconds: float | None = None,
    call: Mapping[str, int] | None = None,
    fault: str | None = None,
) -> Verdict:
    """The verdict on the app's answer.

    Args:
        seconds: how long the app took. call: the caller's own wishes, as for ``RetryRules.budget``.
        fault: what the GPU did meanwhile, a kind of ``GpuFault``.
    """
    kept: list[tuple[str, str]] = []
    needs_retry = stop_runner = None
    check = False
    failing = status >= 500 or status == 429
    for name, value in headers:
        lowered = name.lower()
        if lowered == _STOP_RUNNER:
            stop_runner = value.strip().lower() in _TRUE
        elif lowered == _HEALTH_CHECK:
            check = value.strip().lower() in _TRUE
        elif lowered == _NEEDS_RETRY:
            needs_retry = value.strip().lower() in _TRUE
            if failing:
                kept.append((lowered.decode("latin-1"), value.decode("latin-1")))
        else:
            kept.append((lowered.decode("latin-1"), value.decode("latin-1")))
    outcome = Outcome(status, tuple(kept), body, inference_seconds=seconds)
    if fault is not None:
        return _after_fault(fault, outcome, needs_retry if failing else None, stop_runner, rules, call)
    if not failing and stop_runner is None:
        return Verdict(outcome, False, "no", check=check)
    if needs_retry is not None and failing:
        retry, budget = needs_retry, None  # the app's word on this very answer is stronger than any budget
    else:
        budget = rules.budget("server_error", call)
        retry = status in _RETRIED_STATUSES and budget != 0
    stop: StopRunner = "kill" if status == 503 else "no"
    if stop_runner is not None:
        stop = "no" if not stop_runner else "kill" if status == 503 else "drain"
    return Verdict(outcome, retry, stop, budget, check=check)


def _after_fault(
    fault: str,
    outcome: Outcome,
    needs_retry: bool | None,
    stop_runner: bool | None,
    rules: RetryRules,
    call: Mapping[str, int] | None,
) -> Verdict:
    """The GPU failed. What the app still answered below 500 is an answer; anything else is tried on another runner.

    A full GPU gets one more try, on an empty one. Whoever keeps a broken one for its next request only fails that too.
    """
    full = fault == "out_of_memory"
    stop: StopRunner = "no" if full and stop_runner is False else "kill"
    if needs_retry is not None:
        return Verdict(outcome, needs_retry, stop)
    budget = rules.budget("server_error", call)
    if full:
        budget = 1 if budget is None else min(budget, 1)
    retry = outcome.status >= 500 and budget != 0
    return Verdict(outcome, retry, stop, budget, "out_of_memory" if full else "server_error")


def retry_delay_ms(attempt: int) -> int:
    """Back-off before the next attempt: half a second doubling to half a minute, spread by +-50 %."""
    return int(min(500 * 2 ** (attempt - 1), 30_000) * random.uniform(0.5, 1.5))


def request_timeout(seconds: float) -> Outcome:
    """The attempt took longer than the app allows."""
    return infrastructure_error(
        504, "request_timeout", f"The request took longer than request_timeout ({seconds:g} s)."
    )


def runner_disconnected(reason: str) -> Outcome:
    """The runner ended while it worked on the request."""
    return infrastructure_error(503, "runner_disconnected", f"The runner ended before it answered: {reason}.")


def runner_hung(seconds: float) -> Outcome:
    """The runner was there but answered nothing any more."""
    detail = f"The runner did not react for {seconds:g} s and was ended."
    return infrastructure_error(503, "runner_connection_timeout", detail)


def incomplete_response(reason: str) -> Outcome:
    """A streamed answer that broke off."""
    return infrastructure_error(502, "runner_incomplete_response", f"The answer broke off: {reason}.")
