"""Payloads too large for Redis, as files that belong to one request each.

Owns the folder ``blobs/``. A reference is the file's path inside it and names its request, so that ``sweep`` can
remove what no request needs any more. Calls block on the disk: large ones belong in a thread.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from .disk import FLOOR_BYTES, whole_file


class BlobStore:
    """Files under ``root``; a reference is ``owner/name/request.random``. ``floor``: bytes of the disk to leave."""

    def __init__(self, root: Path, floor: int = FLOOR_BYTES) -> None:
        self.root = root
        self._floor = floor

    def put(self, data: bytes, *, app: str = "_/_", request_id: str = "_") -> str:
        """Stores ``data`` for a request and returns its reference; whole or not at all.

        Raises:
            StoreFull: the disk has no room for it.
        """
        ref = f"{app}/{request_id}.{uuid.uuid4().hex}"
        with whole_file(self._path(ref), len(data), self._floor) as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        return ref

    def get(self, ref: str) -> bytes:
        """What was stored.

        Raises:
            FileNotFoundError: it was deleted. ValueError: not a reference.
        """
        return self._path(ref).read_bytes()

    def size(self, ref: str) -> int | None:
        """Bytes of what was stored; None when it was deleted."""
        try:
            return self._path(ref).stat().st_size
        except FileNotFoundError:
            return None

    def link(self, ref: str, *, app: str, request_id: str) -> str:
        """Gives what was stored to a second request, which then has a reference of its own to it.

        Raises:
            FileNotFoundError: it was deleted. StoreFull: it had to be copied, and there is no room.
        """
        source, new = self._path(ref), f"{app}/{request_id}.{uuid.uuid4().hex}"
        target = self._path(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # a filesystem without hard links
            return self.put(source.read_bytes(), app=app, request_id=request_id)
        os.utime(target)  # counts as just stored: its request is stored after it
        return new

    def delete(self, ref: str) -> None:
        """Removes it; gone already is fine."""
        self._path(ref).unlink(missing_ok=True)

    def older_than(self, age_s: float) -> Iterator[tuple[str, str, str]]:
        """``(ref, app, request id)`` of every blob not touched for ``age_s`` seconds."""
        limit = time.time() - age_s
        for path in self.root.glob("*/*/*"):
            if path.stat().st_mtime < limit:
                ref = path.relative_to(self.root).as_posix()
                yield ref, ref.rpartition("/")[0], path.name.lstrip(".").partition(".")[0]

    def _path(self, ref: str) -> Path:
        parts = ref.split("/")
        if len(parts) != 3 or any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise ValueError(f"{ref!r} is no blob reference")
        return self.root.joinpath(*parts)
