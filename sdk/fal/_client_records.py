"""What ``fal.api.SyncServerlessClient`` answers: the server's JSON under the names that scripts for fal know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any


@dataclass(frozen=True)
class AppInfo:
    """An app. ``alias`` is its name without the owner; times in seconds; ``raw`` is all that the server says."""

    alias: str
    owner: str
    revision: str | None
    auth_mode: str
    keep_alive: int
    min_concurrency: int
    max_concurrency: int
    concurrency_buffer: int
    concurrency_buffer_perc: int
    scaling_delay: float
    request_timeout: float
    active_runners: int
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> AppInfo:
        """From an app of the control API."""
        owner, _, name = str(item["app"]).partition("/")
        scaling = item["scaling"]
        names = (
            *("keep_alive", "min_concurrency", "max_concurrency", "concurrency_buffer", "concurrency_buffer_perc"),
            *("scaling_delay", "request_timeout"),
        )
        return cls(
            alias=name,
            owner=owner,
            revision=item.get("revision"),
            auth_mode=str(item["auth"]),
            active_runners=len(item.get("workers") or ()),
            raw=item,
            **{key: scaling[key] for key in names},
        )


@dataclass(frozen=True)
class RunnerInfo:
    """A runner. ``alias`` names its app without the owner."""

    runner_id: str
    alias: str
    revision: str
    state: str
    machine_type: str
    in_flight_requests: int
    created_at: datetime
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> RunnerInfo:
        """From a worker of the control API."""
        return cls(
            runner_id=str(item["worker_id"]),
            alias=str(item["app"]).partition("/")[2],
            revision=str(item["revision"]),
            state=str(item["state"]),
            machine_type=str(item["machine_type"]),
            in_flight_requests=int(item["in_flight"]),
            created_at=moment(item["created_at"]),
            raw=item,
        )


@dataclass(frozen=True)
class KeyInfo:
    """An API key without its secret; ``alias`` is the note on what it is for."""

    key_id: str
    alias: str
    created_at: datetime
    revoked: bool
    scope: str

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> KeyInfo:
        """From a key of the control API."""
        return cls(
            key_id=str(item["key_id"]),
            alias=str(item["name"]),
            created_at=moment(item["created_at"]),
            revoked=bool(item["revoked"]),
            scope=str(item["scope"]),
        )


@dataclass(frozen=True)
class SecretInfo:
    """A secret without its value."""

    name: str
    created_at: datetime
    environment_name: str
    exposed: bool


@dataclass(frozen=True)
class EnvironmentInfo:
    """A named environment. ``created_at``: None for ``main``, which was always there."""

    name: str
    description: str
    created_at: datetime | None = None


@dataclass(frozen=True)
class Deployment:
    """A revision that serves. ``app_id`` is ``owner/name``; ``urls`` has ``sync`` and ``queue``."""

    app_id: str
    app_name: str
    revision: str
    auth_mode: str
    urls: Mapping[str, Any]


def moment(text: Any) -> datetime:
    """A time of the control API."""
    at = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)
