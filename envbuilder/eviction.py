"""Frees disk: unused environments, longest unused first, and what killed builders left behind.

Nothing in use and nothing being built is touched: both hold a lock that the kernel releases when their process dies.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from envbuilder.settings import BuildSettings
from envbuilder.shelf import last_used, read_mark, size_of, try_lock

_TRASH = ".trash-"


@dataclass(frozen=True)
class Evicted:
    """One environment, or leftover, that was removed; ``size`` in bytes."""

    key: str
    size: int
    reason: str


def evict(
    settings: BuildSettings,
    *,
    max_bytes: int | None = None,
    unused_for: float | None = None,
    now: float | None = None,
) -> list[Evicted]:
    """Remove environments until the rest fits. Blocking: it deletes files.

    Args:
        max_bytes: keep at most this much, by size on disk; ``None``: no bound.
        unused_for: seconds; remove what nobody has used for so long; ``None``: keep.
        now: unix time, for tests.
    """
    moment = time.time() if now is None else now
    removed = [done for folder in _folders(settings) if (done := _sweep_leftovers(settings, folder)) is not None]
    for trash in settings.environments.glob(f"{_TRASH}*"):  # of an eviction that was killed while deleting
        shutil.rmtree(trash, ignore_errors=True)
    ready = [(last_used(folder), folder, found) for folder in _folders(settings) if (found := read_mark(folder))]
    ready.sort(key=lambda entry: entry[0])
    total = sum(found.size for _, _, found in ready)
    for used, folder, found in ready:
        if unused_for is not None and moment - used > unused_for:
            reason = f"unused for {moment - used:.0f} s"
        elif max_bytes is not None and total > max_bytes:
            reason = f"longest unused while all take {total} of {max_bytes} bytes"
        else:
            continue
        if _remove(settings, folder, used):
            removed.append(Evicted(folder.name, found.size, reason))
            total -= found.size
    return removed


def _folders(settings: BuildSettings) -> list[Path]:
    if not settings.environments.is_dir():
        return []
    return sorted(p for p in settings.environments.iterdir() if p.is_dir() and not p.name.startswith("."))


def _remove(settings: BuildSettings, folder: Path, used: float) -> bool:
    """Take ``folder`` away in one step, then delete it; False when somebody uses, builds or has just used it."""
    trash = settings.environments / f"{_TRASH}{folder.name}-{uuid.uuid4().hex[:8]}"
    with _alone(settings, folder.name) as alone:
        if not alone or last_used(folder) != used:
            return False
        folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
    return True


def _sweep_leftovers(settings: BuildSettings, folder: Path) -> Evicted | None:
    """What no ready mark names: tries of builders that were killed."""
    with try_lock(settings.environments, folder.name, "build") as locked:
        leftovers = unfinished(folder) if locked else []
        size = sum(size_of(leftover) for leftover in leftovers)
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        if locked and not any(folder.iterdir()):
            folder.rmdir()
    return Evicted(folder.name, size, "left behind by a build that was ended") if leftovers else None


def unfinished(folder: Path) -> list[Path]:
    """Folders of tries in ``folder`` that are not its ready environment. Only to be removed under the build lock."""
    found = read_mark(folder)
    keep = found.path if found else None
    return [place for place in folder.iterdir() if place.is_dir() and place != keep]


@contextmanager
def _alone(settings: BuildSettings, key: str) -> Iterator[bool]:
    """Both locks of a key, or False."""
    with (
        try_lock(settings.environments, key, "build") as building,
        try_lock(settings.environments, key, "use") as using,
    ):
        yield building and using
