"""Files that users see: what apps return as images and what callers upload.

``FileStore`` is the seam where an object store can stand beside the local folder. Ids are unguessable and chosen by
who stores; names and types are metadata and never become paths.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import orjson

from .disk import FLOOR_BYTES, whole_file

_ID = re.compile(r"^[A-Za-z0-9_-]{8,128}$")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file to serve; ``size`` in bytes."""

    path: Path
    size: int
    name: str
    content_type: str


class FileStore(Protocol):
    """Where user-visible files are kept."""

    def adopt(self, path: Path, file_id: str, name: str, content_type: str) -> None:
        """Takes over a file that a runner left; ``path`` is gone afterwards."""

    def put(self, data: bytes, file_id: str, name: str, content_type: str) -> None:
        """Stores bytes under an id."""

    def open(self, file_id: str) -> StoredFile | None:
        """What is stored under the id, or None."""

    def sweep(self, older_than_s: float) -> int:
        """Deletes files stored longer ago than this; returns how many."""


class LocalFileStore:
    """Files in a folder: ``ab/abcd…`` with ``abcd….json`` beside it. Calls block on the disk.

    Args:
        root: the folder.
        floor: bytes of the disk to leave.
    """

    def __init__(self, root: Path, floor: int = FLOOR_BYTES) -> None:
        self.root = root
        self._floor = floor

    def adopt(self, path: Path, file_id: str, name: str, content_type: str) -> None:
        """Takes over a file that a runner left; ``path`` is gone afterwards.

        Raises:
            ValueError: the id is malformed, or ``path`` is a link or no plain file. OSError: it cannot be read.
            StoreFull: the disk has no room for it; ``path`` stays.
        """
        target = self._path(file_id)
        info = os.lstat(path)
        # user code wrote it: a link could make us serve any file of the machine
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            raise ValueError(f"{path.name} is not a plain file of its own")
        with self._described(target, name, content_type):
            try:
                path.rename(target)
            except OSError:
                with whole_file(target, info.st_size, self._floor) as copy:
                    _copy(path, copy)
                path.unlink()
        target.chmod(0o600)

    def put(self, data: bytes, file_id: str, name: str, content_type: str) -> None:
        """Stores bytes under an id; whole or not at all.

        Raises:
            ValueError: the id is malformed. StoreFull: the disk has no room for them.
        """
        target = self._path(file_id)
        with self._described(target, name, content_type), whole_file(target, len(data), self._floor) as file:
            file.write(data)

    def open(self, file_id: str) -> StoredFile | None:
        """What is stored under the id, or None."""
        if not _ID.match(file_id):
            return None
        path = self._path(file_id)
        try:
            size = path.stat().st_size
            described = orjson.loads(path.with_name(f"{path.name}.json").read_bytes())
        except FileNotFoundError:
            return None
        return StoredFile(path, size, described["name"], described["content_type"])

    def sweep(self, older_than_s: float) -> int:
        """Deletes files stored longer ago than this; returns how many."""
        limit = time.time() - older_than_s
        old = [path for path in self.root.glob("*/*") if path.suffix != ".json" and path.stat().st_mtime < limit]
        for path in old:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)
        return len(old)

    def _path(self, file_id: str) -> Path:
        if not _ID.match(file_id):
            raise ValueError(f"{file_id!r} is no file id")
        return self.root / file_id[:2] / file_id

    @contextlib.contextmanager
    def _described(self, target: Path, name: str, content_type: str) -> Iterator[None]:
        """Name and type first, so that a file is never there without them; taken back when the file does not come."""
        beside = target.with_name(f"{target.name}.json")
        described = orjson.dumps({"name": name[:255], "content_type": content_type})
        with whole_file(beside, len(described), floor=0) as file:
            file.write(described)
        try:
            yield
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _copy(source: Path, writer: BinaryIO) -> None:
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as reader:
        shutil.copyfileobj(reader, writer)
