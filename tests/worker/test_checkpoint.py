# ruff: noqa: N802 # the driver's names
"""The driver's checkpoint functions, played by a stand-in with their names, arguments and states; a machine without.

That the real ones do it is for ``tests/gpu`` to say, where there is a card.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

import pytest

from gpu_worker.checkpoint import CheckpointFailed, Driver, State, main
from gpu_worker.suspension import SuspensionFailed, run_checkpoint
from tests.support.loop import run


class Library:
    """Processes by their state, and what was called. ``refuses``: names of functions that fail."""

    def __init__(self, states: dict[int, State], refuses: tuple[str, ...] = ()) -> None:
        self.states = states
        self.refuses = refuses
        self.calls: list[tuple[str, int]] = []

    def cuInit(self, flags: int) -> int:
        return 100 if "cuInit" in self.refuses else 0

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = b"CUDA_ERROR_NO_DEVICE" if code == 100 else b"CUDA_ERROR_NOT_SUPPORTED"
        return 0

    def cuCheckpointProcessGetState(self, pid: int, state: Any) -> int:
        if pid not in self.states:
            return 1
        state._obj.value = self.states[pid]
        return 0

    def cuCheckpointProcessLock(self, pid: int, arguments: Any) -> int:
        assert ctypes.sizeof(arguments._obj) == 64
        assert arguments._obj.timeout_ms > 0
        return self._move("Lock", pid, State.RUNNING, State.LOCKED)

    def cuCheckpointProcessCheckpoint(self, pid: int, arguments: None) -> int:
        return self._move("Checkpoint", pid, State.LOCKED, State.CHECKPOINTED)

    def cuCheckpointProcessRestore(self, pid: int, arguments: None) -> int:
        return self._move("Restore", pid, State.CHECKPOINTED, State.LOCKED)

    def cuCheckpointProcessUnlock(self, pid: int, arguments: None) -> int:
        return self._move("Unlock", pid, State.LOCKED, State.RUNNING)

    def _move(self, name: str, pid: int, before: State, after: State) -> int:
        self.calls.append((name, pid))
        if name in self.refuses or self.states[pid] is not before:
            return 801
        self.states[pid] = after
        return 0


def test_what_uses_a_card_is_suspended_and_comes_back() -> None:
    library = Library({11: State.RUNNING, 13: State.RUNNING})
    driver = Driver(library)
    assert driver.suspend([11, 12, 13]) == [11, 13], "12 does not use CUDA"
    assert set(library.states.values()) == {State.CHECKPOINTED}
    assert driver.suspend([11, 12, 13]) == [11, 13], "asked again it is the same"
    assert driver.resume([11, 12, 13]) == [11, 13]
    assert set(library.states.values()) == {State.RUNNING}
    assert driver.resume([11, 12, 13]) == []


def test_a_refusal_leaves_nothing_suspended() -> None:
    library = Library({11: State.RUNNING}, refuses=("Checkpoint",))
    with pytest.raises(CheckpointFailed, match="cuCheckpointProcessCheckpoint failed: CUDA_ERROR_NOT_SUPPORTED"):
        Driver(library).suspend([11])
    assert library.states == {11: State.RUNNING}
    assert library.calls[-1] == ("Unlock", 11)


def test_a_process_that_the_driver_has_lost_does_not_come_back() -> None:
    with pytest.raises(CheckpointFailed, match="process 11 was lost"):
        Driver(Library({11: State.FAILED})).resume([11])


def test_a_runner_without_cuda_has_nothing_to_suspend() -> None:
    with pytest.raises(CheckpointFailed, match="no process of the runner uses a card"):
        Driver(Library({})).suspend([11])


def test_an_old_driver_and_one_without_a_card_say_so() -> None:
    class Old:
        def cuInit(self, flags: int) -> int:
            return 0

    with pytest.raises(CheckpointFailed, match="570 and later can"):
        Driver(Old())
    with pytest.raises(CheckpointFailed, match="cuInit failed: CUDA_ERROR_NO_DEVICE"):
        Driver(Library({}, refuses=("cuInit",)))


def test_the_command_prints_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    library = Library({11: State.RUNNING})
    assert main(["suspend", "11", "12"], lambda: Driver(library)) == 0
    assert json.loads(capsys.readouterr().out) == {"done": [11]}
    assert main(["resume", "11"], lambda: Driver(library)) == 0
    assert main(["suspend", "12"], lambda: Driver(library)) == 1
    assert "error" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_machine_without_a_driver_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(SuspensionFailed, match="this machine has no NVIDIA driver"):
            run(run_checkpoint("probe"))
