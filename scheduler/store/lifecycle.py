"""What a caller wants for a file, as it stands in a header: how long it is kept, and who may fetch it. Pure."""

from __future__ import annotations

import math
from typing import Any, cast

import orjson

from .files import Decision, Lifecycle

_DECISIONS = frozenset({"allow", "forbid", "hide"})
_LONGEST = 100 * 366 * 86400
_MOST_RULES = 100


def parse_lifecycle(text: str | bytes, owner: str | None) -> Lifecycle:
    """The lifecycle that a header asks for, for a file of ``owner``.

    Raises:
        ValueError: it cannot be read; a file that was to be private must not become public by a typing error.
    """
    try:
        wanted = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    if not isinstance(wanted, dict):
        raise ValueError("it must be a JSON object")
    default, decisions = _access(wanted.get("initial_acl"))
    return Lifecycle(_seconds(wanted.get("expiration_duration_seconds")), owner, default, decisions)


def _seconds(given: Any) -> float | None:
    if given is None:
        return None
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not math.isfinite(given) or not 0 < given <= _LONGEST:
        raise ValueError(
            f"expiration_duration_seconds is {str(given)[:40]}; give seconds above 0, or null to keep the file"
        )
    return float(given)


def _access(given: Any) -> tuple[Decision, tuple[tuple[str, Decision], ...]]:
    if given is None:
        return "allow", ()
    if not isinstance(given, dict):
        raise ValueError("initial_acl must be a JSON object")
    rules = [] if given.get("rules") is None else given["rules"]
    if not isinstance(rules, list) or len(rules) > _MOST_RULES:
        raise ValueError(f"initial_acl.rules must be a list of at most {_MOST_RULES} rules")
    decisions: list[tuple[str, Decision]] = []
    for rule in rules:
        if not isinstance(rule, dict) or not isinstance(rule.get("user"), str):
            raise ValueError('Every rule of initial_acl must be an object with "user" and "decision"')
        decisions.append((rule["user"], _decision(rule.get("decision"))))
    return _decision("allow" if given.get("default") is None else given["default"]), tuple(decisions)


def _decision(given: Any) -> Decision:
    if not isinstance(given, str) or given not in _DECISIONS:
        raise ValueError(f"initial_acl decides {str(given)[:40]!r}; use allow, forbid or hide")
    return cast(Decision, given)
