"""A process that has imported what an app's starts import, and forks runners from that in milliseconds.

    python -m fal._runner --zygote FD FILE     FD: a socket to the host's agent. FILE: JSON with ``modules`` to import

Owns importing ahead, the look whether this process may be forked at all, and the births. It runs no user code, holds no
bundle and no secret, and touches no GPU. Leaves when to start and stop it to the agent, and what a forked runner does
first to ``newborn``. Linux only. The order of a birth is in docs/decisions/0006-zygotes.md.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import json
import os
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from fal._runner import cuda_on_cpu
from fal._runner.lessons import installed_modules

#: Descriptors of a birth, in the order in which they come: for the supervisor (its standard streams, the runner's
#: socket, the runner's output and errors), for the runner (its socket, output, errors), and the birth's own report.
FOR_SUPERVISOR, FOR_RUNNER = 6, 3
DESCRIPTORS = FOR_SUPERVISOR + FOR_RUNNER + 1
_ORDER_BYTES = 64 * 1024
#: How long the supervisor-to-be waits for the kernel to hand it to the agent.
_ADOPTION_SECONDS = 1.0


class Birth:
    """In a runner just forked: its socket, and the modules that a plain start would not have loaded by itself."""

    def __init__(self, control: int, ahead: frozenset[str]) -> None:
        self.control = control
        self.ahead = ahead


def serve(fd: int, file: str) -> Birth | None:
    """Import, then fork a runner for each order. Returns in each new runner, and None in the zygote at its end."""
    agent = socket.socket(fileno=fd)
    agent.set_inheritable(False)
    with open(file, encoding="utf-8") as stream:
        wanted: dict[str, Any] = json.load(stream)
    try:
        ahead = _import_all(wanted)
        gc.collect()
        gc.freeze()  # a collection in a runner must not write to every page that it shares with us
        _require_forkable()
    except NotForkable as refusal:
        agent.send(json.dumps({"refused": str(refusal), "package": refusal.package}).encode())
        return None
    agent.send(json.dumps({"ready": len(ahead)}).encode())
    return _attend(agent, ahead)


def _import_all(wanted: dict[str, Any]) -> frozenset[str]:
    """Everything that a runner loads before user code, then the modules of the list; the names of the latter."""
    import fal._routes
    import fal._runner.loading
    import fal._runner.process
    import fal._runner.serving  # noqa: F401

    sys.argv = ["app.py"]
    before = set(sys.modules)
    left_out = frozenset(wanted.get("left_out", ()))
    if stands_for := wanted.get("cpu_fallback_for"):
        cuda_on_cpu.install_on_import(stands_for, _nobody_listens)
    for name in wanted.get("modules", ()):
        package = name.partition(".")[0]
        if package in left_out or name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - its own start imports it, or fails with a traceback for its log
            continue
        if _threads() > 1 and _threads_left():
            raise NotForkable(f"importing {name} starts a thread", package)
    new = set(sys.modules) - before
    _require_the_same(new, frozenset(wanted.get("modules", ())))
    return frozenset(name.partition(".")[0] for name in new)


def _require_the_same(new: set[str], wanted: frozenset[str]) -> None:
    """An app may see to it that a package is found elsewhere, or not at all, before it imports what looks for it."""
    installed = new.intersection(installed_modules())
    if different := sorted(installed - wanted):
        raise NotForkable(f"importing ahead loads {different[0]}, which the app's own start did not load from there")


def _nobody_listens(line: str) -> None:
    """The runner says it again, to the app's log."""


# --- may this process be forked? --------------------------------------------------------------------------------------


class NotForkable(Exception):
    """A fork would break what the imports left behind.

    Args:
        package: without it, it might be different; None: not known.
    """

    def __init__(self, why: str, package: str | None = None) -> None:
        super().__init__(why)
        self.package = package


def _require_forkable() -> None:
    refusal = _probe() or ("its imports started a thread" if _threads() > 1 else None) or _open_things()
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as children:
        if children.read().split():
            refusal = refusal or "its imports started a process"
    if refusal is not None:
        raise NotForkable(refusal)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _threads_left() -> bool:
    """Whether there are threads that would simply be missing in a runner.

    Pools that know how to be forked (OpenBLAS) end theirs at that moment, and start anew when they are used.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return _threads() > 1


def _probe() -> str | None:
    """What a forked child finds broken."""
    heard, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(said, (_cuda_state() or "").encode())
        finally:
            os._exit(0)
    os.close(said)
    with open(heard, "rb") as stream:
        answer = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    return answer or (f"a forked child ended with status {status}" if status else None)


def _cuda_state() -> str | None:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda._is_in_bad_fork():
        return "its imports touched CUDA"
    if cuda is not None and cuda.is_initialized():
        return "its imports initialised CUDA"
    return None


def _open_things() -> str | None:
    targets = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            targets.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the listing's own
    if any(target.startswith("/dev/nvidia-uvm") for target in targets):
        return "its imports opened the GPU"
    sockets = [target for target in targets if target.startswith("socket:")]
    return f"its imports left {len(sockets) - 1} socket(s) open" if len(sockets) > 1 else None


# --- births -----------------------------------------------------------------------------------------------------------


def _attend(agent: socket.socket, ahead: frozenset[str]) -> Birth | None:
    while True:
        data, received = _receive(agent)
        if not data:
            return None  # the agent has gone
        pid = os.fork()
        if pid == 0:
            control = _deliver(agent, json.loads(data), received)
            return Birth(control, ahead)
        for descriptor in received:
            os.close(descriptor)
        os.waitpid(pid, 0)


def _receive(agent: socket.socket) -> tuple[bytes, list[int]]:
    numbers = array.array("i")
    data, ancillary, _, _ = agent.recvmsg(_ORDER_BYTES, socket.CMSG_SPACE(DESCRIPTORS * numbers.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    for descriptor in numbers:
        os.set_inheritable(descriptor, False)
    return data, list(numbers)


def _deliver(agent: socket.socket, order: dict[str, Any], received: list[int]) -> int:
    """In a child of the zygote. Returns in the runner, with its socket; every other way out ends a process."""
    report = received[-1]
    try:
        agent.close()
        if os.fork():
            os._exit(0)  # so that what comes is nobody's, and the kernel hands it to the agent
        os.setsid()
        _wait_for_adoption(order["parent"])
        if os.fork() == 0:
            return _become_runner(received)
        _become_supervisor(order, received)
    except BaseException:  # noqa: BLE001 - a process of ours must never fall back into the loop of the zygote
        os.write(report, f"failed: {traceback.format_exc()}".encode())
        os._exit(1)


def _wait_for_adoption(parent: int) -> None:
    deadline = time.monotonic() + _ADOPTION_SECONDS
    while os.getppid() != parent:
        if time.monotonic() > deadline:
            raise TimeoutError(f"this process belongs to {os.getppid()}, not to the agent, {parent}")
        time.sleep(0.0005)


def _become_supervisor(order: dict[str, Any], received: list[int]) -> NoReturn:
    """The image of the zygote ends here; the runner stays this process's child."""
    report = received[-1]
    given = _move_up(received[:FOR_SUPERVISOR])
    report = _move_up([report])[0]
    for number, descriptor in enumerate(given):
        os.dup2(descriptor, number)
    _set_oom_score(order["oom_score_adj"])
    os.chdir(order["cwd"])
    os.write(report, f"born: {os.getpid()}\n".encode())
    command = order["command"]
    os.execve(command[0], command, order["environ"])


def _become_runner(received: list[int]) -> int:
    os.setpgid(0, 0)
    high, output, errors = _move_up(received[FOR_SUPERVISOR : FOR_SUPERVISOR + FOR_RUNNER])
    for descriptor in received:
        os.close(descriptor)
    for number, descriptor in ((1, output), (2, errors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _set_oom_score(500)
    (control,) = _copies([high], 3)  # a low number, as after a plain start
    os.close(high)
    return control


def _move_up(descriptors: list[int]) -> list[int]:
    """Copies above all numbers that are about to be given away."""
    return _copies(descriptors, 64)


def _copies(descriptors: list[int], lowest: int) -> list[int]:
    return [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest) for descriptor in descriptors]


def _set_oom_score(value: int) -> None:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write(str(value))
    except OSError:
        pass  # as with plain starts: a wish, not a condition
