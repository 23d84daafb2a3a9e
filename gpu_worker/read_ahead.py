"""Brings the files that an app's last start read into the page cache while its runner comes up.

Owns which files of those that a start named are worth it. Standard library only: the supervisor begins with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Beside a file that Python code opened (a model's configuration), native code reads these, which nobody hears of.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx")
#: Bytes that one start reads ahead at most.
MAX_BYTES = 64 * 1024**3
_SMALLEST = 256 * 1024
_MAX_FOLDER = 1000
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def begin(files: Sequence[str], folders: Sequence[str]) -> threading.Thread | None:
    """Read ``files`` ahead, in a thread of its own; only what lies in ``folders``, for user code has named them."""
    if not files or not hasattr(os, "posix_fadvise"):
        return None
    thread = threading.Thread(target=_read, args=(files, folders), name="read-ahead", daemon=True)
    thread.start()
    return thread


def worth_reading(opened: Iterable[str], folders: Sequence[str]) -> list[str]:
    """Of a start that is over: the files that it opened and the weights beside them that it has read.

    Whether weights were read is seen by the page cache, which holds them then: a model's folder often has the same ones
    in several formats.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()
    for path in opened:
        for candidate in (path, *_weights_beside(path, seen)):
            with contextlib.suppress(OSError, ValueError), _opened(candidate, folders) as descriptor:
                size = os.fstat(descriptor).st_size
                if size >= _SMALLEST and _is_resident(descriptor, size):
                    found[candidate] = None
    return list(found)


def _weights_beside(path: str, seen: set[str]) -> list[str]:
    folder = os.path.dirname(path)
    if folder in seen:
        return []
    seen.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry, _ in zip(entries, range(_MAX_FOLDER), strict=False) if _is_weights(entry.name)]
    return []


def _is_weights(name: str) -> bool:
    return name.endswith(WEIGHTS)


def _read(files: Sequence[str], folders: Sequence[str]) -> None:
    left = MAX_BYTES
    for path in files:
        with contextlib.suppress(OSError, ValueError), _opened(path, folders) as descriptor:
            left -= os.fstat(descriptor).st_size
            if left < 0:
                return
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)


class _opened:  # noqa: N801 - used as a function
    """A descriptor of a regular file that lies in one of ``folders``, links followed."""

    def __init__(self, path: str, folders: Sequence[str]) -> None:
        real = os.path.realpath(path)
        if not any(Path(real).is_relative_to(os.path.realpath(folder)) for folder in folders):
            raise PermissionError(f"{real} lies in none of the apps' folders")
        self._descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise OSError(f"{real} is not a file")

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _is_resident(descriptor: int, size: int) -> bool:
    """Whether half of a file is in the page cache."""
    assert _LIBC is not None
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        residency = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        try:
            if _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), residency) != 0:
                return False
        finally:
            del start
        return bytes(residency).count(1) * 2 >= pages
