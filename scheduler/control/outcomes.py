"""How requests end when the scheduler ends them because no worker will serve them. Pure."""

from __future__ import annotations

from scheduler.store.outcomes import NOT_READY_IN_TIME, infrastructure_error
from scheduler.store.records import Outcome


def startup_failed(app: str, error: str) -> Outcome:
    """No worker of the app gets ready; ``error`` is the app's own one-line cause."""
    if error.startswith(NOT_READY_IN_TIME):
        step = f"Its log says what it did until then: fal logs {app}; a longer startup_timeout gives it more time"
        return infrastructure_error(504, "startup_timeout", f"{app} did not start: {error.rstrip('.')}. {step}")
    where = f"The traceback is in its log: fal logs {app}"
    return infrastructure_error(503, "runner_scheduling_failure", f"{app} did not start: {error.rstrip('.')}. {where}")


def environment_failed(app: str, error: str | None) -> Outcome:
    """The app's environment is gone and cannot be built again."""
    cause = error or "its build failed."
    return infrastructure_error(503, "runner_scheduling_failure", f"The environment of {app} cannot be built: {cause}")


def no_place(reason: str) -> Outcome:
    """No host offers what the app needs."""
    return infrastructure_error(503, "runner_scheduling_failure", reason)


def worker_lost(worker_id: str) -> Outcome:
    """The worker stopped renewing its lease: its process or host is gone or frozen."""
    detail = f"Runner {worker_id} went silent while it worked on the request."
    return infrastructure_error(503, "runner_disconnected", detail)
