"""The first moments of a runner that a zygote forked: it becomes what a plainly started one would be.

Its supervisor hands it environment variables, working directory and view of the file system; what cannot be made equal
after the fact sends it through a plain start instead, in the same process. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

from fal._runner.zygote import Birth

_LENGTH = struct.Struct(">I")
_MAX_NAMESPACES = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_CAPABILITY_VERSION_3 = 0x2008_0522
# Loaded in the zygote, where it costs no runner anything.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def settle(birth: Birth) -> list[str]:
    """Wait for the supervisor's word and follow it; the arguments with which the runner goes on.

    Does not return when the supervisor has gone, or where a plain start is needed: that replaces this process's image
    and keeps its number, its parent and its socket.
    """
    control = socket.socket(fileno=birth.control)
    word, namespaces = _hear(control)
    _enter(namespaces)
    _die_with(word["parent"])
    os.chdir(word["cwd"])
    os.environ.clear()
    os.environ.update(word["environ"])
    arguments = ["--fd", str(control.detach())]
    if _shadows(word["bundle_dir"], word["entry_file"], birth.ahead):
        _start_plainly(arguments)
    _reseed()
    _forget_cards()
    return arguments


def _hear(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, namespaces, _, _ = socket.recv_fds(control, _LENGTH.size, _MAX_NAMESPACES)
    data = b""
    if len(head) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        while len(data) < length and (more := control.recv(length - len(data))):
            data += more
    if not data:
        os._exit(0)  # the supervisor has gone before it said anything
    word: dict[str, Any] = json.loads(data)
    return word, namespaces


def _enter(namespaces: list[int]) -> None:
    """See the file system as the supervisor does: its user namespace first, where it has one of its own."""
    assert _LIBC is not None
    for descriptor in namespaces:
        if _LIBC.setns(descriptor, 0) != 0:
            raise OSError(ctypes.get_errno(), "this runner cannot enter its supervisor's namespaces")
        os.close(descriptor)
    if len(namespaces) == _MAX_NAMESPACES and os.geteuid() != 0:
        # Entering a user namespace gives every capability in it; a program that is started there by a user has none.
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        if _LIBC.capset(header, bytes(24)) != 0:
            raise OSError(ctypes.get_errno(), "this runner cannot give its capabilities back")
        _LIBC.prctl(_PR_SET_DUMPABLE, 1)


def _die_with(parent: int) -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it died before the kernel knew that we want to hear of it


def _shadows(bundle_dir: str, entry_file: str, ahead: frozenset[str]) -> bool:
    """Whether the app brings a module whose name the zygote has already given to another one."""
    bundle = Path(bundle_dir)
    for folder in {bundle, (bundle / entry_file).parent}:
        try:
            if any(name.partition(".")[0] in ahead for name in os.listdir(folder)):
                return True
        except OSError:
            return True  # a plain start says best what is missing
    return False


def _start_plainly(arguments: list[str]) -> NoReturn:
    os.set_inheritable(int(arguments[1]), True)
    os.execv(sys.executable, [sys.executable, "-m", "fal._runner", *arguments])


def _reseed() -> None:
    """As after a start of its own: ``random`` has seen to it by itself; torch begins with the same seed each time."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _forget_cards() -> None:
    """Which GPUs are visible was asked with the zygote's variables, if at all, and torch remembers the answer."""
    cuda = sys.modules.get("torch.cuda")
    clear = getattr(getattr(cuda, "device_count", None), "cache_clear", None)
    if clear is not None:
        clear()
    if hasattr(cuda, "_cached_device_count"):
        cuda._cached_device_count = None  # type: ignore[union-attr]
