"""Writing files: whole or not at all, and never the last of the disk.

The append-only file of Redis usually lies on the same disk, and a Redis that cannot append takes nothing any more. So
one payload too many fails alone, while there is still room. Leaves names and folders to those who keep the files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import StoreFull

#: Bytes of the disk that no payload may take.
FLOOR_BYTES = 64 * 1024 * 1024


def require_room(folder: Path, size: int, floor: int = FLOOR_BYTES) -> None:
    """Refuse what would fill the disk.

    Args:
        folder: an existing one on the disk in question.
        size: bytes about to be written.
        floor: bytes that must stay free.

    Raises:
        StoreFull: less than ``floor`` would be left.
    """
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free - size < floor:
        raise StoreFull(
            f"The platform's disk is full: {size} bytes were not stored, for {free} bytes are free and {floor} of them "
            "are kept for its own work. Free some space, or send less."
        )


@contextlib.contextmanager
def whole_file(target: Path, size: int, floor: int = FLOOR_BYTES) -> Iterator[BinaryIO]:
    """A file to write that appears as ``target`` when the block ends; after a failure nothing is left of it.

    Args:
        target: replaced if it is there; its folder is made.
        size: bytes about to be written.
        floor: see ``require_room``.

    Raises:
        StoreFull: there is no room, or the disk did not take the bytes.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")  # two may write the same target at once
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        require_room(target.parent, size, floor)
        with open(partial, "wb") as file:
            yield file
        partial.rename(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StoreFull(f"The platform's disk took no {size} bytes: {error.strerror or error}.") from error
        raise
