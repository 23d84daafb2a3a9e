"""Files that users see: what apps return as images and what callers upload.

``FileStore`` is the seam where an object store stands beside the local folder. Ids are unguessable and chosen by who
stores; names and types are metadata and never become paths.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

#: What somebody who knows a file's URL gets: the file, "forbidden", or no word of its being there.
Decision = Literal["allow", "forbid", "hide"]

_ID = re.compile(r"[A-Za-z0-9_-]{8,128}")


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How long a file is kept and who may fetch it.

    Args:
        expires_in: seconds from now; None: for ever.
        owner: who may always fetch it.
        default: for everybody who is not named in ``decisions``, pairs of an owner and what they get.
    """

    expires_in: float | None = None
    owner: str | None = None
    default: Decision = "allow"
    decisions: tuple[tuple[str, Decision], ...] = ()


KEPT = Lifecycle()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file to serve; ``size`` in bytes, ``expires_at`` in unix seconds."""

    file_id: str
    size: int
    name: str
    content_type: str
    expires_at: float | None = None
    owner: str | None = None
    default: Decision = "allow"
    decisions: tuple[tuple[str, Decision], ...] = ()

    def decision(self, owner: str | None) -> Decision:
        """What a caller gets who acts for ``owner`` (None: nobody known)."""
        if self.default == "allow" and not self.decisions:
            return "allow"
        if owner is not None and owner == self.owner:
            return "allow"
        return dict(self.decisions).get(owner or "", self.default)


class FileStore(Protocol):
    """Where user-visible files are kept. Calls block; large ones belong in a thread."""

    def adopt(self, path: Path, file_id: str, name: str, content_type: str, lifecycle: Lifecycle = KEPT) -> None:
        """Takes over a file on this machine's disk; ``path`` is gone afterwards."""

    def put(self, data: bytes, file_id: str, name: str, content_type: str, lifecycle: Lifecycle = KEPT) -> None:
        """Stores bytes under an id."""

    def open(self, file_id: str) -> StoredFile | None:
        """What is stored under the id and has not expired, or None."""

    def blocks(self, file: StoredFile, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` up to, not including, ``end``; fewer when the file is gone by then."""

    def sweep_expired(self) -> int:
        """Deletes files whose time is over; returns how many."""

    def sweep(self, older_than_s: float) -> int:
        """Deletes files stored longer ago than this; returns how many."""


def is_file_id(file_id: str) -> bool:
    """Whether it could be one."""
    return _ID.fullmatch(file_id) is not None


def describe(name: str, content_type: str, lifecycle: Lifecycle, size: int | None = None) -> bytes:
    """What is kept beside a file's bytes; the size where asking for it costs a round trip."""
    described: dict[str, Any] = {"name": name[:255], "content_type": content_type}
    if size is not None:
        described["size"] = size
    if lifecycle.expires_in is not None:
        described["expires_at"] = time.time() + lifecycle.expires_in
    if lifecycle.owner is not None:
        described["owner"] = lifecycle.owner
    if lifecycle.default != "allow" or lifecycle.decisions:
        described["default"], described["decisions"] = lifecycle.default, lifecycle.decisions
    return orjson.dumps(described)


def described_file(file_id: str, size: int | None, described: bytes) -> StoredFile | None:
    """The file that was described (with its size, unless that is given); None when its time is over."""
    found = orjson.loads(described)
    expires_at = found.get("expires_at")
    if expires_at is not None and expires_at <= time.time():
        return None
    return StoredFile(
        file_id,
        found["size"] if size is None else size,
        found["name"],
        found["content_type"],
        expires_at,
        found.get("owner"),
        found.get("default", "allow"),
        tuple((owner, decision) for owner, decision in found.get("decisions", ())),
    )
