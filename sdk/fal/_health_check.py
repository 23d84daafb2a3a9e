"""What an app says of its health check, and the form that the platform stores.

Owns the user's class, its checks, and which of an app's words counts. Leaves asking to the supervisor. Standard library
only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fal._limits import number_fault
from fal._spec import HealthCheckSpec

#: The route that every app has: ``GET`` of it is answered by the app's ``health()``.
HEALTH_PATH = "/health"
_NUMBERS = ("start_period_seconds", "timeout_seconds", "failure_threshold")


@dataclass(frozen=True)
class HealthCheck:
    """How the platform asks a runner whether it still works. Times in seconds; ``None`` is the platform's default.

    Args:
        start_period_seconds: failures within this time after the start do not count until a check has passed (30);
            raised to ``startup_timeout``.
        timeout_seconds: an answer later than this is a failure (5).
        failure_threshold: failures in a row after which the runner is replaced (3).
        call_regularly: ask every 15 s (the default); otherwise only after an answer of 500, 502 or 504, or one with the
            header ``x-fal-runner-health-check: 1``.
        method: HTTP method of the check. ``GET`` is for ``/health`` alone, where ``health()`` answers it.

    Raises:
        ValueError: a number out of bounds, or another method; says which, the value and what to write.
    """

    start_period_seconds: int | None = None
    timeout_seconds: int | None = None
    failure_threshold: int | None = None
    call_regularly: bool | None = None
    method: Literal["GET", "POST"] = "POST"

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (fault := number_fault(name, value)) is not None:
                raise ValueError(f"HealthCheck: {fault}")
        if self.call_regularly not in (None, True, False):
            raise ValueError(f"HealthCheck: call_regularly is {self.call_regularly!r}; write True or False")
        if self.method not in ("GET", "POST"):
            raise ValueError(f"HealthCheck: method is {self.method!r}; write 'POST', or 'GET' for /health")


def spec_of(path: str, check: HealthCheck) -> HealthCheckSpec:
    """``check`` of the route ``path`` as the platform stores it."""
    given = {name: value for name, value in vars(check).items() if value is not None}
    return HealthCheckSpec(path, **given)


def spec_of_table(owner: str, table: Any, paths: Collection[str]) -> HealthCheckSpec:
    """A project file's ``health_check`` table.

    Args:
        owner: name of the class, for messages.
        paths: the app's endpoints that answer POST.

    Raises:
        ValueError: an unknown key, a value that cannot be meant, or a path that is no endpoint.
    """
    known = {"path", *(field.name for field in fields(HealthCheck))}
    if not isinstance(table, Mapping) or not isinstance(table.get("path"), str):
        raise ValueError(f'{owner}: health_check is {table!r}; write a table with a path, as in path = "/check"')
    for key in table.keys() - known:
        raise ValueError(f"{owner}: health_check has the unknown key {key!r}; it may have {', '.join(sorted(known))}")
    options = {key: value for key, value in table.items() if key != "path"}
    if table["path"] == HEALTH_PATH and HEALTH_PATH not in paths:
        options.setdefault("method", "GET")
    try:
        spec = spec_of(table["path"], HealthCheck(**options))
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error
    if (fault := health_check_fault(spec, paths)) is not None:
        raise ValueError(f"{owner}: {fault}")
    return spec


def method_fault(path: str, method: str) -> str | None:
    """What is wrong with checking ``path`` by ``method``, None when nothing is."""
    if method == "POST" or path == HEALTH_PATH:
        return None
    return (
        f"the health check of {path!r} uses method={method!r}, but endpoints answer POST only: leave method out, or "
        f"write def health(self), which answers GET {HEALTH_PATH}"
    )


def health_check_fault(check: HealthCheckSpec, paths: Collection[str]) -> str | None:
    """What is wrong with a stored health check of an app with these POST endpoints, None when nothing is."""
    for name in _NUMBERS:
        if (fault := number_fault(name, getattr(check, name))) is not None:
            return f"health_check: {fault}"
    if (fault := method_fault(check.path, check.method)) is not None:
        return fault
    if check.method == "POST" and check.path not in paths:
        listing = ", ".join(sorted(paths)) or "none"
        return f"the health check's path {check.path!r} is no endpoint that answers POST; there are: {listing}"
    return None
