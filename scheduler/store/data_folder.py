"""The folder that apps see as ``/data``, for those who look into it from outside.

User code writes there, so every step is taken inside a folder that is already open and no link is followed: a link
would lead the platform to any file of the machine. Calls block on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import NotFound

#: What callers call the folder.
NAME = "/data"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
#: A link on the way, a folder that is not empty or would lie in itself, a socket, a name that is too long.
_CALLERS = frozenset({errno.ELOOP, errno.ENOTEMPTY, errno.EINVAL, errno.ENXIO, errno.ENAMETOOLONG})
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder; ``changed_at`` in unix seconds. Links and sockets are neither file nor folder."""

    path: str
    size: int
    is_file: bool
    changed_at: float


class DataFolder:
    """Paths are as apps spell them, ``/data/…``. All raise ValueError for one that leaves the folder, and NotFound."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self, path: str) -> list[Entry]:
        """What a folder holds, by name; a file is listed as itself."""
        parts = _parts(path)
        if parts and (itself := self._file(path)) is not None:
            return [itself]
        found = []
        with self._folder(parts, path) as folder, os.scandir(folder) as scan:
            for item in scan:
                info = item.stat(follow_symlinks=False)
                if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
                    found.append(_entry((*parts, item.name), info))
        return sorted(found, key=lambda entry: entry.path)

    def open(self, path: str) -> tuple[BinaryIO, int]:
        """A file to read, and its size."""
        with self._parent(path) as (folder, name), _named(path):
            descriptor = os.open(name, _FILE, dir_fd=folder)
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            os.close(descriptor)
            raise NotFound(f'"{path}" is no file.')
        return os.fdopen(descriptor, "rb"), info.st_size

    def check(self, path: str) -> None:
        """Whether something could be put there, by its name."""
        if not _parts(path):
            raise ValueError(f'"{path}" is the folder itself; name something in it')

    def take(self, source: Path, path: str) -> None:
        """Move a file of the platform's there, in place of one of that name; folders on the way are made."""
        with self._parent(path, make=True) as (folder, name), _named(path):
            os.chmod(source, 0o644)
            try:
                os.rename(source, name, dst_dir_fd=folder)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(source, folder, name)  # the operator keeps the folder on another disk
                source.unlink()

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it."""
        with self._parent(path) as (folder, name), _named(path):
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    def rename(self, path: str, destination: str) -> None:
        """Give a file or folder another place."""
        with (
            self._parent(path) as (folder, name),
            self._parent(destination, make=True) as (new_folder, new_name),
            _named(path),
        ):
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)

    def _file(self, path: str) -> Entry | None:
        with self._parent(path) as (folder, name), _named(path):
            info = os.lstat(name, dir_fd=folder)
        return _entry(_parts(path), info) if stat.S_ISREG(info.st_mode) else None

    @contextlib.contextmanager
    def _parent(self, path: str, make: bool = False) -> Iterator[tuple[int, str]]:
        self.check(path)
        parts = _parts(path)
        with self._folder(parts[:-1], path, make) as folder:
            yield folder, parts[-1]

    @contextlib.contextmanager
    def _folder(self, parts: tuple[str, ...], path: str, make: bool = False) -> Iterator[int]:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)  # the operator's own links are followed
        try:
            for part in parts:
                with _named(path):
                    if make:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(part, 0o755, dir_fd=folder)
                    inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f'There is no "{path}".') from None
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ValueError(f'"{path}": {error.strerror}') from None
    except OSError as error:
        if error.errno in _CALLERS:
            raise ValueError(f'"{path}": {error.strerror}') from None
        raise


def _entry(parts: tuple[str, ...], info: os.stat_result) -> Entry:
    return Entry("/".join((NAME, *parts)), info.st_size, stat.S_ISREG(info.st_mode), info.st_mtime)


def _parts(path: str) -> tuple[str, ...]:
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if not parts or parts[0] != NAME[1:] or ".." in parts or "\0" in path:
        raise ValueError(f'"{path[:200]}" is not in {NAME}')
    return parts[1:]


def _copy(source: Path, folder: int, name: str) -> None:
    """Whole or not at all: nobody sees half of it under its name."""
    temporary = f".{secrets.token_hex(8)}.part"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
    try:
        with open(descriptor, "wb") as out, source.open("rb") as original:
            shutil.copyfileobj(original, out, 1024 * 1024)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
