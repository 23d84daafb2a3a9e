"""Users' files in a folder: ``ab/abcd…`` with ``abcd….json`` beside it.

What expires has an empty file more, ``expiring/{second}.{id}``, so that deleting it needs no look at all others. Calls
block on the disk.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .disk import FLOOR_BYTES, whole_file
from .files import KEPT, Lifecycle, StoredFile, describe, described_file, is_file_id

_BLOCK = 256 * 1024


class LocalFileStore:
    """Files below ``root``. ``floor``: bytes of the disk to leave."""

    def __init__(self, root: Path, floor: int = FLOOR_BYTES) -> None:
        self.root = root
        self._expiring = root / "expiring"
        self._floor = floor

    def adopt(self, path: Path, file_id: str, name: str, content_type: str, lifecycle: Lifecycle = KEPT) -> None:
        """Takes over a file on this machine's disk; ``path`` is gone afterwards.

        Raises:
            ValueError: the id is malformed, or ``path`` is a link or no plain file. OSError: it cannot be read.
            StoreFull: the disk has no room for it; ``path`` stays.
        """
        target = self._path(file_id)
        info = os.lstat(path)
        # user code wrote it: a link could make us serve any file of the machine
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            raise ValueError(f"{path.name} is not a plain file of its own")
        with self._described(target, name, content_type, lifecycle):
            try:
                path.rename(target)
            except OSError:
                with whole_file(target, info.st_size, self._floor) as copy:
                    _copy(path, copy)
                path.unlink()
        target.chmod(0o600)

    def put(self, data: bytes, file_id: str, name: str, content_type: str, lifecycle: Lifecycle = KEPT) -> None:
        """Stores bytes under an id; whole or not at all.

        Raises:
            ValueError: the id is malformed. StoreFull: the disk has no room for them.
        """
        target = self._path(file_id)
        with (
            self._described(target, name, content_type, lifecycle),
            whole_file(target, len(data), self._floor) as file,
        ):
            file.write(data)

    def open(self, file_id: str) -> StoredFile | None:
        """What is stored under the id and has not expired, or None."""
        if not is_file_id(file_id):
            return None
        path = self._path(file_id)
        try:
            size = path.stat().st_size
            return described_file(file_id, size, _beside(path).read_bytes())
        except FileNotFoundError:
            return None

    def blocks(self, file: StoredFile, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` up to, not including, ``end``; fewer when the file is gone by then."""
        try:
            opened = self._path(file.file_id).open("rb", buffering=0)
        except FileNotFoundError:
            return
        with opened:
            while start < end and (block := os.pread(opened.fileno(), min(_BLOCK, end - start), start)):
                start += len(block)
                yield block

    def sweep_expired(self) -> int:
        """Deletes files whose time is over; returns how many."""
        count = 0
        now = time.time()
        for mark in sorted(self._expiring.glob("*.*")):
            due, _, file_id = mark.name.partition(".")
            if int(due) > now:
                break
            # Stored again meanwhile with a longer life, it has a later mark.
            if self.open(file_id) is None:
                self._delete(self._path(file_id))
                count += 1
            mark.unlink(missing_ok=True)
        return count

    def sweep(self, older_than_s: float) -> int:
        """Deletes files stored longer ago than this; returns how many."""
        limit = time.time() - older_than_s
        old = [path for path in self.root.glob("??/*") if path.suffix != ".json" and path.stat().st_mtime < limit]
        for path in old:
            self._delete(path)
        return len(old)

    def _path(self, file_id: str) -> Path:
        if not is_file_id(file_id):
            raise ValueError(f"{file_id!r} is no file id")
        return self.root / file_id[:2] / file_id

    @staticmethod
    def _delete(path: Path) -> None:
        path.unlink(missing_ok=True)
        _beside(path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _described(self, target: Path, name: str, content_type: str, lifecycle: Lifecycle) -> Iterator[None]:
        """What is known of a file first, so that it is never there without; taken back when the file does not come."""
        beside = _beside(target)
        if lifecycle.expires_in is not None:
            self._expiring.mkdir(parents=True, exist_ok=True)
            due = math.ceil(time.time() + lifecycle.expires_in)
            (self._expiring / f"{due:012d}.{target.name}").touch()
        described = describe(name, content_type, lifecycle)
        with whole_file(beside, len(described), floor=0) as file:
            file.write(described)
        try:
            yield
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _copy(source: Path, writer: BinaryIO) -> None:
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as reader:
        shutil.copyfileobj(reader, writer)
