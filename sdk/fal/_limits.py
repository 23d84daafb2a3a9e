"""The numbers that settings may hold, and the words for one that is out of bounds.

The command line refuses with them before anything is sent, and the gateway refuses whoever did not ask. Standard
library only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

_YEAR = 366 * 86400
_MOST_WORKERS = 10_000
_APP_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
#: What an app's name looks like, in words.
APP_NAME_RULE = "lower-case letters, digits and hyphens, at most 63"
_ENV_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
#: Between an app's name and the environment that it was deployed to, unless that is ``main``.
ENV_MARK = "--"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: Variables that the platform sets itself, or that would change how a runner starts rather than what its code knows.
_NOT_FOR_SECRETS = re.compile(
    r"PATH|HOME|VIRTUAL_ENV|IS_ISOLATE_AGENT|FAL_(?!KEY(_ID|_SECRET)?$).*|(LD|DYLD|PYTHON|KEEPWARM|CUDA|NVIDIA)_?.*"
)
MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True)
class _Limit:
    """``above``: the lowest number itself is not allowed."""

    low: int
    high: int
    unit: str = ""
    whole: bool = True
    above: bool = False

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            return False
        if self.whole and value != int(value):
            return False
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        kind = f"a {'whole ' if self.whole else ''}number{self.unit}"
        return f"{kind}, {'above' if self.above else 'at least'} {self.low} and at most {self.high}"


_TIMEOUT = _Limit(0, _YEAR, " of seconds", whole=False, above=True)
_SECONDS = _Limit(0, _YEAR, " of seconds", whole=False)
_LIMITS = {
    "request_timeout": _TIMEOUT,
    "request_start_timeout": _TIMEOUT,
    "startup_timeout": _TIMEOUT,
    "termination_grace_period_seconds": _SECONDS,
    "cancel_grace_seconds": _SECONDS,
    "scaling_delay": _SECONDS,
    "keep_alive": _Limit(0, _YEAR, " of seconds"),
    "min_concurrency": _Limit(0, _MOST_WORKERS),
    "max_concurrency": _Limit(1, _MOST_WORKERS),
    "concurrency_buffer": _Limit(0, _MOST_WORKERS),
    "concurrency_buffer_perc": _Limit(0, 1000),
    "max_multiplexing": _Limit(1, 10_000),
    "num_gpus": _Limit(1, 64),
    "gpu_memory_mb": _Limit(0, 1 << 24, " of MiB"),
    "recycle_after_requests": _Limit(0, 1 << 40),
    "recycle_after_seconds": _SECONDS,
    "recycle_above_mb": _Limit(0, 1 << 30, " of MiB"),
    "app_priority": _Limit(-100, 100),
    "start_period_seconds": _SECONDS,
    "timeout_seconds": _TIMEOUT,
    "failure_threshold": _Limit(1, 1000),
}
#: Settings that are numbers within bounds.
NUMBERS = frozenset(_LIMITS)


def number_fault(setting: str, value: Any) -> str | None:
    """What is wrong with a setting's number, as a clause that begins with the setting's name; None when it is fine."""
    limit = _LIMITS[setting]
    if limit.allows(value):
        return None
    return f"{setting} is {_shown(value)}; it must be {limit}"


def bounds(setting: str) -> dict[str, Any]:
    """The same bounds as JSON Schema has them."""
    limit = _LIMITS[setting]
    kind = "integer" if limit.whole else "number"
    return {"type": kind, "exclusiveMinimum" if limit.above else "minimum": limit.low, "maximum": limit.high}


def is_app_name(name: str) -> bool:
    """Whether ``name`` can be an app's name, without the owner."""
    return _APP_NAME.fullmatch(name) is not None


def env_fault(name: Any) -> str | None:
    """What is wrong with the name of a new environment, as in ``--env``; None when it is fine."""
    if name == "main":
        return "the environment main is always there"
    if isinstance(name, str) and len(name) <= 24 and _ENV_NAME.fullmatch(name):
        return None
    return (
        f"{_shown(name)} is no name for an environment; use lower-case letters, digits and single hyphens, at most 24"
    )


def env_of(app: str) -> str:
    """The environment that an app's name says it was deployed to: ``owner/hello--staging`` is of ``staging``."""
    return app.rpartition(ENV_MARK)[2] if ENV_MARK in app else "main"


def name_in_env(name: str, env: str) -> str:
    """What an app is called in an environment."""
    return name if env == "main" or name.endswith(ENV_MARK + env) else f"{name}{ENV_MARK}{env}"


def secret_fault(name: Any, value: Any) -> str | None:
    """What is wrong with a secret, without telling its value; None when it is fine."""
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        return f"{_shown(name)} is no name for a secret; use letters, digits and _, as in HF_TOKEN"
    if _NOT_FOR_SECRETS.fullmatch(name):
        return f"{name} is a variable of the platform's own; give the secret another name"
    if not isinstance(value, str) or "\0" in value or not _encodable(value):
        return f"the value of {name} must be text"
    if not value:
        return f"the value of {name} is empty; `fal secrets unset {name}` takes it away"
    size = len(value.encode())
    if size > MAX_SECRET_BYTES:
        return f"the value of {name} has {size} bytes; at most {MAX_SECRET_BYTES} fit"
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}…"
