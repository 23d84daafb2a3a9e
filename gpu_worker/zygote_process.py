"""One zygote as its host's agent sees it: how it is started, asked for a worker, and ended.

Owns its socket and the check that what it gave birth to is a supervisor of ours. Leaves which zygotes there are to
``zygotes`` and what happens inside to ``fal._runner.zygote``. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_worker import process_tree
from gpu_worker.assignment import Assignment
from gpu_worker.child import AdoptedChild

#: A zygote that takes longer is not waited for: a plain start is under way by then.
ANSWER_SECONDS = 1.0
_ANSWER_BYTES = 64 * 1024
_MAX_WORDS = 8
_MAX_REASON = 200


class NoBirth(Exception):
    """The zygote did not give birth to a worker; the message says why."""


class ZygoteProcess:
    """A zygote of one app in one environment.

    Args:
        assignment: of a worker like those to come.
        modules: what it imports ahead; also in the assignment's lessons file.
        held: closed when it is ended.
    """

    def __init__(self, assignment: Assignment, modules: Sequence[str], held: ExitStack) -> None:
        self.modules = tuple(modules)
        self.platform_environ = dict(assignment.platform_environ)
        self.ready = False
        #: why it must not be used, once it has said so
        self.refusal: str | None = None
        #: the next one would refuse as well
        self.lasting = False
        self.package: str | None = None
        self.started_at = self.used_at = time.monotonic()
        self._held = held
        self._room: dict[str, str] = {}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        try:
            self._popen = self._start(assignment, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def _start(self, assignment: Assignment, theirs: socket.socket) -> subprocess.Popen[bytes]:
        # It must know nothing that a runner may not know: not the store, not the bundle.
        known = replace(assignment, redis_url="", files={}, secrets={}, bundle_dir="", files_dir="", storage_hosts=())
        known = replace(known, app=f"{assignment.app.partition('/')[0]}/", worker_id="", revision="")
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpu_worker.zygote_room", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ},
            start_new_session=True,
        )
        assert popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            popen.stdin.write(known.to_json())
            popen.stdin.close()
        return popen

    def hear(self) -> None:
        """Take in what it has said since the last time; sets ``ready`` or ``refusal``."""
        for _ in range(_MAX_WORDS):
            try:
                data = self._socket.recv(_ANSWER_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.refusal = self.refusal or "its process ended"
                return
            if not self._understand(data):
                self.refuse("it cannot be understood")
                return

    def _understand(self, data: bytes) -> bool:
        """What an imported package may have written in its place must not harm us."""
        try:
            word: dict[str, Any] = json.loads(data)
            self._room = self._room or dict(word.get("room", {}))
            self.ready = self.ready or "ready" in word
            if "refused" in word:
                package = word.get("package")
                self.refuse(str(word["refused"])[:_MAX_REASON], str(package)[:_MAX_REASON] if package else None)
        except (ValueError, TypeError, AttributeError):
            return False
        return True

    def refuse(self, why: str, package: str | None = None) -> None:
        """It must not be used, nor any later one of the same environment that imports ``package``."""
        self.refusal = self.refusal or why
        self.package = package
        self.lasting = True

    def memory(self) -> int:
        """Bytes of it that are in memory, those shared with its runners included; 0 when it has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
                "SC_PAGESIZE"
            )
        return 0

    def end(self) -> None:
        """End it, and everything below it that is no worker."""
        process_tree.kill_group(self.pid)
        self._popen.wait()
        self._socket.close()
        self._held.close()

    # --- births -------------------------------------------------------------------------------------------------------

    async def bear(self, command: Sequence[str], environ: Mapping[str, str]) -> Newborn:
        """A supervisor, waiting for its assignment, with a runner below it, waiting for the supervisor.

        Raises:
            NoBirth: it did not answer in time, or with something that is not a supervisor.
        """
        self.used_at = time.monotonic()
        with ExitStack() as ours:
            ends = _Ends(ours)
            order = {
                "parent": os.getpid(),
                "command": list(command),
                "environ": dict(environ),
                "cwd": os.getcwd(),
                "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii")),
            }
            try:
                socket.send_fds(self._socket, [json.dumps(order).encode()], ends.theirs)
            except OSError as error:
                raise NoBirth(f"its process does not listen: {error}") from error
            ends.close_theirs()
            report = await _read_all(ends.report)
            word, _, number = report.partition(": ")
            if word != "born" or re.fullmatch(r"[0-9]{1,9}\n", number) is None:
                raise NoBirth(report[:_ANSWER_BYTES] or "it ended without a word")
            pid = int(number)
            if (wrong := self._not_a_supervisor(pid, command, environ)) is not None:
                raise NoBirth(f"process {pid} {wrong}")
            runner = process_tree.children(pid)
            if len(runner) != 1:
                raise NoBirth(f"the runner below process {pid} has ended")
            in_room = self._room != process_tree.namespaces("self")
            return Newborn(AdoptedChild(pid), runner[0], ends.keep_stdin(), in_room)

    def _not_a_supervisor(self, pid: int, command: Sequence[str], environ: Mapping[str, str]) -> str | None:
        """Whoever gets an assignment learns the store's address: what does not run our program is told nothing."""
        proc = Path(f"/proc/{pid}")
        try:
            status = _status(pid)
            if int(status["PPid"]) != os.getpid():
                return "is no child of ours"
            if status["TracerPid"] != "0" or status.get("Seccomp") != _status("self").get("Seccomp"):
                return "is under somebody's eyes"
            if not os.path.samefile(proc / "exe", sys.executable):
                return "runs another program"
            if (proc / "cmdline").read_bytes() != b"".join(os.fsencode(word) + b"\0" for word in command):
                return "was started in another way"
            seen = set(filter(None, (proc / "environ").read_bytes().split(b"\0")))
            if seen != {os.fsencode(f"{name}={value}") for name, value in environ.items()}:
                return "has other variables"
            if process_tree.namespaces(pid) != self._room:
                return "sees other files"
        except (OSError, KeyError, ValueError) as error:
            return f"has ended: {error}"
        return None


def _status(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


class Newborn:
    """What a zygote gave birth to: a supervisor that awaits its assignment on a pipe, and below it a runner."""

    def __init__(self, supervisor: AdoptedChild, runner_pid: int, stdin: int, in_room: bool) -> None:
        self.supervisor = supervisor
        self.runner_pid = runner_pid
        self._stdin = stdin
        self._in_room = in_room

    def assign(self, assignment: Assignment) -> None:
        """Tell the supervisor what to do; it may have ended, and its exit status then says so."""
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._stdin, "wb") as stdin:
            told = replace(assignment, runner_pid=self.runner_pid, in_zygotes_room=self._in_room)
            stdin.write(told.to_json())


class _Ends:
    """The pipes and the socketpair between a supervisor and its runner; closed with ``stack`` unless they are kept."""

    def __init__(self, stack: ExitStack) -> None:
        stdin, self._stdin = os.pipe()
        supervisors, runners = socket.socketpair()
        output, output_end = os.pipe()
        errors, errors_end = os.pipe()
        self.report, report_end = os.pipe()
        control, runners_control = supervisors.detach(), runners.detach()
        #: in the order that ``fal._runner.zygote`` expects
        self.theirs = [stdin, 1, 2, control, output, errors, runners_control, output_end, errors_end, report_end]
        self._given: list[int] | None = [descriptor for descriptor in self.theirs if descriptor not in (1, 2)]
        self._kept = False
        stack.callback(self._close)

    def close_theirs(self) -> None:
        """They have been sent, so that from now on the report ends with the last of the others' ends."""
        for descriptor in self._given or ():
            os.close(descriptor)
        self._given = None

    def keep_stdin(self) -> int:
        self._kept = True
        return self._stdin

    def _close(self) -> None:
        self.close_theirs()
        os.close(self.report)
        if not self._kept:
            os.close(self._stdin)


async def _read_all(descriptor: int) -> str:
    """What is written to a pipe until its last writer is gone.

    Raises:
        NoBirth: that took too long.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bytes] = loop.create_future()
    found = bytearray()

    def readable() -> None:
        more = os.read(descriptor, 4096)
        found.extend(more[: _ANSWER_BYTES - len(found)])
        if not more and not ended.done():
            ended.set_result(bytes(found))

    loop.add_reader(descriptor, readable)
    try:
        return (await asyncio.wait_for(ended, ANSWER_SECONDS)).decode(errors="replace")
    except TimeoutError:
        raise NoBirth(f"it did not answer within {ANSWER_SECONDS:g} s") from None
    finally:
        loop.remove_reader(descriptor)
