"""Environments on disk: where they lie, which are complete, who uses them. Knows nothing of how they are made.

``<environments>/<key>/environment.json`` says that the key is ready and names the venv beside it; it appears last, in
one step. Every try has a folder name of its own and is built where it will stay: a killed builder's leftovers are never
taken for anything, no second builder writes into them, and every absolute path inside a venv is true for ever.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from envbuilder.errors import EnvironmentGone
from envbuilder.settings import BuildSettings

_FORMAT = 1
_MARK = "environment.json"
_LOCKS = ".locks"


@dataclass(frozen=True)
class Environment:
    """A complete environment. Times in seconds, size in bytes.

    Args:
        path: the venv's folder; ``python``: its interpreter.
        resolved: which set of versions it holds: ``as written``, ``as of the pins 2024-06-10``, ...
        packages: ``name==version``, sorted.
        seconds: length of each stage of its build, and ``total``.
        cpu_only: torch was held to its CPU build because the machine had no GPU.
        smoked: modules that were imported in it.
        cached: it was there already.
    """

    key: str
    path: Path
    python: Path
    resolved: str
    packages: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_only: bool = False
    smoked: tuple[str, ...] = ()
    size: int = 0
    cached: bool = False


def find(key: str, settings: BuildSettings) -> Environment | None:
    """The ready environment of ``key``, or None. One small file is read; nothing is written.

    An environment that was held to the CPU is not found on a machine that has a GPU now, nor one whose interpreter has
    vanished: both are built anew.
    """
    found = read_mark(settings.environments / key)
    if found is None or (found.cpu_only and not settings.cpu_only) or not found.python.exists():
        return None
    return found


def read_mark(folder: Path) -> Environment | None:
    """What ``folder`` holds, whether or not this machine can use it."""
    try:
        raw: dict[str, Any] = json.loads((folder / _MARK).read_bytes())
        if raw.pop("format") != _FORMAT:
            return None
        path = folder / raw.pop("venv")
        return Environment(
            path=path,
            python=path / "bin" / "python",
            packages=tuple(raw.pop("packages")),
            smoked=tuple(raw.pop("smoked")),
            cached=True,
            **raw,
        )
    except (OSError, ValueError, KeyError, TypeError):  # absent, or written by a release that we do not know
        return None


def write_mark(environment: Environment) -> None:
    """Publish ``environment``; its files must be on the disk by now (``flush_to_disk``)."""
    folder = environment.path.parent
    raw = asdict(replace(environment, cached=False)) | {"format": _FORMAT, "venv": environment.path.name}
    for derived in ("path", "python", "cached"):
        del raw[derived]
    new = folder / f".{_MARK}.new"
    with new.open("w") as file:
        json.dump(raw, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / _MARK)


def touch(environment: Environment) -> None:
    """Note a use now; eviction goes by it."""
    try:
        os.utime(environment.path.parent / _MARK)
    except FileNotFoundError:  # evicted this moment; whoever needs it will notice by ``hold``
        pass


def last_used(folder: Path) -> float:
    """Unix time of the last use, 0 when never ready."""
    try:
        return (folder / _MARK).stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def hold(environment: Environment) -> Iterator[Environment]:
    """Keep ``environment`` from being evicted while the block runs.

    The kernel lets go when the holding process dies, however it dies. Starting and ending count as uses.

    Raises:
        EnvironmentGone: it was evicted after it was found.
    """
    folder = environment.path.parent
    with try_lock(folder.parent, environment.key, "use", shared=True) as locked:
        if not locked or read_mark(folder) is None or not environment.path.is_dir():
            raise EnvironmentGone("The environment was removed a moment ago. Next: build it again.")
        touch(environment)
        try:
            yield environment
        finally:
            touch(environment)


@contextmanager
def try_lock(environments: Path, key: str, purpose: str, *, shared: bool = False) -> Iterator[bool]:
    """Take the ``build`` or ``use`` lock of a key for the block, or yield False at once.

    Lock files stay: removing one would let two processes lock two different files of the same name.
    """
    locks = environments / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(locks / f"{key}.{purpose}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def size_of(folder: Path) -> int:
    """Bytes on disk below ``folder``, each inode once."""
    total, seen, waiting = 0, set(), [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink == 1 or status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_blocks * 512
    return total


def flush_to_disk(folder: Path) -> float:
    """Write out the filesystem of ``folder``; returns the seconds it took.

    Without it a power cut may leave a ready mark over empty files.
    """
    started = time.monotonic()
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None)
    if syncfs is None:  # not Linux
        os.sync()
        return time.monotonic() - started
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        syncfs(descriptor)
    finally:
        os.close(descriptor)
    return time.monotonic() - started
