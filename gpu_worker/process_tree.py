"""Which processes end with which: parent-death signals, adoption of orphans, killing all that is below us.

Linux does all of it; elsewhere the calls do nothing and runners end because their socket closes. Standard library only:
the supervisor runs this before anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
# Loaded here and not between fork and exec, where importing may deadlock.
_LIBC = ctypes.CDLL(None, use_errno=True) if _LINUX else None


def die_with_parent(number: int) -> None:
    """Ask the kernel to send this process ``number`` when the *thread* that started it ends.

    Hence the house rule that only main threads start workers and runners.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, however it detached itself."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def prefer_for_oom_killer() -> None:
    """Let the kernel take this process before its supervisor or Redis when memory runs out."""
    if _LINUX:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write("500")


def children(pid: int) -> list[int]:
    """Direct children of ``pid``; zombies are children too."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process that has not ended; zombies have."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return False
    return status.split()[0] not in (b"Z", b"X")


def descendants(pid: int) -> list[int]:
    """Everything below ``pid``, nearest first."""
    found = children(pid)
    for child in found:  # grows while it is walked
        found += children(child)
    return found


def namespaces(pid: int | str) -> dict[str, str]:
    """What decides which files a process sees: its user and its mount namespace, in the order in which to enter them.

    Raises:
        OSError: no such process, or not one of ours.
    """
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("user", "mnt")}


def kill_group(leader: int) -> None:
    """SIGKILL the process group of ``leader``, which must have been started as a group's leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill_descendants(seconds: float = 2.0) -> list[int]:
    """SIGKILL and reap everything below this process; whatever is still there after ``seconds`` is returned.

    Works in rounds: killing a process hands its children to us (see adopt_orphans), and one in the middle of a fork may
    slip through a round.
    """
    deadline = time.monotonic() + seconds
    while True:
        reap()
        left = descendants(os.getpid())
        if not left or time.monotonic() > deadline:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def reap() -> None:
    """Collect every child that has ended, adopted ones included."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def reap_adopted(own: Container[int], *, kill: bool = False) -> None:
    """Collect children that this process has adopted, not those in ``own``; with ``kill`` end the living ones too."""
    for pid in children(os.getpid()):
        if pid not in own:
            with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
                if kill:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)


def on_exit(pid: int, wait: Callable[[], int], done: Callable[[int], None], loop: AbstractEventLoop) -> None:
    """Call ``done`` with what ``wait`` returns, on ``loop``, as soon as the child ``pid`` has ended."""
    if hasattr(os, "pidfd_open"):
        watched = os.pidfd_open(pid)

        def ended() -> None:
            loop.remove_reader(watched)
            os.close(watched)
            done(wait())

        loop.add_reader(watched, ended)
    else:
        threading.Thread(target=lambda: loop.call_soon_threadsafe(done, wait()), daemon=True).start()


def describe_exit(code: int) -> str:
    """``exit status 3``, ``signal SIGSEGV``; SIGKILL mentions memory, because the kernel's choice looks like that."""
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"signal {name}{' (out of memory?)' if -code == signal.SIGKILL else ''}"
