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
