"""Filesystems of a test's own: small ones that fill up, and one whose power can be cut. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr} (these tests need root)"
    return done.stdout


@dataclass
class SmallDisk:
    """A tmpfs."""

    path: Path

    def resize(self, megabytes: int) -> None:
        """Give it room, or take some."""
        _run("mount", "-o", f"remount,size={megabytes}m", self.path)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """As the kernel leaves a filesystem on which it found an error."""
        _run("mount", "-o", "remount,ro", self.path)
        try:
            yield
        finally:
            _run("mount", "-o", "remount,rw", self.path)

    def fill(self, leave: int = 0) -> Path:
        """A file over all that is free but for ``leave`` bytes."""
        state = os.statvfs(self.path)
        ballast = self.path / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            file.write(b"\0" * max(0, state.f_bavail * state.f_frsize - leave))
        return ballast


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """A disk of that size, empty."""
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "keepwarm-test", folder)
    try:
        yield SmallDisk(folder)
    finally:
        _run("umount", folder)
        folder.rmdir()


@contextlib.contextmanager
def loop_disk(image: Path) -> Iterator[Path]:
    """The ext4 filesystem in a file, mounted; made when the file is not there yet.

    The file holds what reached the device: what an application wrote and nobody flushed is not in it, exactly as on a
    disk whose power is cut.
    """
    folder = Path(tempfile.mkdtemp(prefix="kwt-"))
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(96 << 20)
        _run("mkfs.ext4", "-q", "-F", image)
    device = _run("losetup", "--find", "--show", image).strip()
    try:
        # nothing is written back before its time: a page that the kernel flushed by chance would hide a missing fsync
        _run("mount", "-o", "commit=300", device, folder)
        try:
            yield folder
        finally:
            _run("umount", folder)
    finally:
        _run("losetup", "--detach", device)
        shutil.rmtree(folder, ignore_errors=True)
