"""What an app and a caller wish about retries: which kinds of endings, and how many of each. Pure.

Leaves what kind an ending is to whoever saw it, and counting to the ``retry`` verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fal._spec import AppSpec

#: ``server_error``: the app answered 503 or 504, or its runner ended before the answer was whole. ``timeout``: over
#: the app's ``request_timeout``. ``connection_error``: the runner is there but cannot be talked to, or its worker went
#: silent.
Condition = Literal["timeout", "server_error", "connection_error"]


@dataclass(frozen=True, slots=True)
class RetryRules:
    """An app's own wishes: conditions never retried, and how many retries others get at most."""

    skipped: frozenset[str] = frozenset()
    budgets: Mapping[str, int] | None = None

    @classmethod
    def of(cls, spec: AppSpec) -> RetryRules:
        """The wishes of a revision."""
        return cls(frozenset(spec.skip_retry_conditions), spec.retry_config)

    def budget(self, condition: Condition, call: Mapping[str, int] | None = None) -> int | None:
        """How many retries a request may have for ``condition``; None when only the attempts in all are counted.

        The caller's own ``X-Fal-Retry-Config`` (``call``) comes before the app's. A time-out is only retried on
        request: the same input takes the same time.
        """
        if call is not None and condition in call:
            return call[condition]
        if condition in self.skipped:
            return 0
        budget = (self.budgets or {}).get(condition)
        return 0 if budget is None and condition == "timeout" else budget
