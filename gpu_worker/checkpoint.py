"""``python -m gpu_worker.checkpoint probe|suspend|resume [PID ...]``: what processes have on their cards, into the
host's memory and back, by the NVIDIA driver's checkpoint functions (driver 570 and later, Linux).

A process of its own: the driver's library takes 100 MB of whoever loads it, and a call that hangs can be ended.
Prints one line of JSON: ``{"done": [pids]}`` or ``{"error": "..."}``.

Source of names, states and structures: CUDA Driver API, "CUDA Checkpointing", and its CUcheckpointLockArgs.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

LIBRARY = "libcuda.so.1"
#: Milliseconds that CUDA calls under way may take until they stand still; more is a worker that is not idle.
LOCK_MS = 10_000
_PREFIX = "cuCheckpointProcess"
_FUNCTIONS = ("GetState", "Lock", "Checkpoint", "Restore", "Unlock")


class State(IntEnum):
    """Of a process, as the driver has it (CUprocessState)."""

    RUNNING = 0
    LOCKED = 1
    CHECKPOINTED = 2
    FAILED = 3


class CheckpointFailed(Exception):
    """The driver cannot, or did not; the message says what."""


class _LockArgs(ctypes.Structure):
    _fields_ = (
        ("timeout_ms", ctypes.c_uint),
        ("reserved0", ctypes.c_uint),
        ("reserved1", ctypes.c_uint64 * 7),
    )


class Driver:
    """The driver's functions.

    Args:
        library: an opened ``libcuda``, or what behaves like one.

    Raises:
        CheckpointFailed: it has none of them, or finds no card.
    """

    def __init__(self, library: Any) -> None:
        missing = [name for name in _FUNCTIONS if not hasattr(library, _PREFIX + name)]
        if missing:
            raise CheckpointFailed("the NVIDIA driver cannot suspend processes; 570 and later can")
        self._library = library
        self._call("cuInit", 0)

    def state(self, pid: int) -> State | None:
        """None for a process that does not use CUDA."""
        found = ctypes.c_int(-1)
        if self._library.cuCheckpointProcessGetState(pid, ctypes.byref(found)) != 0:
            return None
        return State(found.value) if found.value in set(State) else None

    def suspend(self, pids: Sequence[int]) -> list[int]:
        """All or none; returns those that use CUDA.

        Raises:
            CheckpointFailed: none of them does, or the driver refuses. What was suspended runs again.
        """
        using = [pid for pid in pids if self.state(pid) is not None]
        if not using:
            raise CheckpointFailed("no process of the runner uses a card")
        done: list[int] = []
        try:
            for pid in using:
                done.append(pid)
                self._suspend_one(pid)
        except CheckpointFailed:
            self.resume(done)
            raise
        return using

    def _suspend_one(self, pid: int) -> None:
        if self.state(pid) is State.CHECKPOINTED:
            return
        if self.state(pid) is not State.LOCKED:
            self._call(f"{_PREFIX}Lock", pid, ctypes.byref(_LockArgs(timeout_ms=LOCK_MS)))
        self._call(f"{_PREFIX}Checkpoint", pid, None)

    def resume(self, pids: Sequence[int]) -> list[int]:
        """Returns those that run again; one that ran is none of them.

        Raises:
            CheckpointFailed: the driver refuses: the process is lost.
        """
        done = []
        for pid in pids:
            state = self.state(pid)
            if state is State.FAILED:
                raise CheckpointFailed(f"process {pid} was lost while it was suspended")
            if state is State.CHECKPOINTED:
                self._call(f"{_PREFIX}Restore", pid, None)
            if state in (State.CHECKPOINTED, State.LOCKED):
                self._call(f"{_PREFIX}Unlock", pid, None)
                done.append(pid)
        return done

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise CheckpointFailed(f"{name} failed: {self._named(code)}")

    def _named(self, code: int) -> str:
        name = ctypes.c_char_p()
        if self._library.cuGetErrorName(code, ctypes.byref(name)) == 0 and name.value:
            return name.value.decode()
        return f"CUDA error {code}"


def load() -> Driver:
    """This machine's driver.

    Raises:
        CheckpointFailed: there is none, or it cannot.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise CheckpointFailed(f"this machine has no NVIDIA driver ({LIBRARY} is not there)") from None
    return Driver(library)


def main(arguments: Sequence[str], driver: Callable[[], Driver] = load) -> int:
    """The command; 0 when it did what it says."""
    action, pids = arguments[0], [int(pid) for pid in arguments[1:]]
    try:
        found = driver()
        done = {"probe": lambda _: [], "suspend": found.suspend, "resume": found.resume}[action](pids)
    except CheckpointFailed as failure:
        print(json.dumps({"error": str(failure)}))
        return 1
    print(json.dumps({"done": done}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
