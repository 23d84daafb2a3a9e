"""Runs one child command of a build: streamed lines, limits, nothing left behind. Knows nothing of packages."""

from __future__ import annotations

import asyncio
import codecs
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import psutil

from envbuilder.errors import DiskFull, LimitReached, hide

_LIFELINE = str(Path(__file__).with_name("lifeline.py"))
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_LINE_CHARS = 16 * 1024
_MAX_LINES = 20_000
_HEARTBEAT_S = 15.0
_KILL_S = 10.0
#: Processor seconds between two looks that count as work: far above an idle event loop, far below a slow download.
_WORK_S = 0.02


@dataclass
class BuildLog:
    """Where a build's lines go: to the caller, one by one, and into the tail that an error carries.

    ``hidden``: values that no line shows.
    """

    on_line: Callable[[str], None]
    hidden: Sequence[str] = ()
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=80))
    lines: int = 0

    def say(self, text: str) -> None:
        """Pass on every line of ``text`` without terminal codes and without the credentials of URLs."""
        for line in text.splitlines() or [""]:
            self.lines += 1
            if self.lines > _MAX_LINES:
                continue
            clean = clean_line(hide(line, self.hidden)) if self.lines < _MAX_LINES else "[further lines are left out]"
            self.tail.append(clean)
            self.on_line(clean)


def clean_line(line: str) -> str:
    """``line`` as text that is safe to show anywhere."""
    return _CREDENTIALS.sub("****@", _CONTROLS.sub("", _ESCAPES.sub("", line)))[:_LINE_CHARS].rstrip()


@dataclass
class Limits:
    """What one build may use. ``deadline`` on the monotonic clock; ``silence`` in seconds; disk sizes in bytes."""

    deadline: float
    wall: float
    silence: float
    disk: Path
    disk_floor: int

    def check_disk(self) -> None:
        free = shutil.disk_usage(self.disk).free
        if free < self.disk_floor:
            raise DiskFull(
                f"Only {free / 1e9:.1f} GB are free on the disk of {self.disk}, and builds stop at "
                f"{self.disk_floor / 1e9:.1f} GB. Next: free some room or evict unused environments, then build again."
            )

    def check_time(self, doing: str) -> None:
        if time.monotonic() > self.deadline:
            raise LimitReached(
                f"{doing} was ended: the build passed its limit of {self.wall:.0f} s. "
                "Next: ask for less, or raise KEEPWARM_BUILD_WALL_SECONDS on the builder."
            )


@dataclass(frozen=True)
class Finished:
    """How a child ended; ``lines`` are the last few hundred of its own."""

    status: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


async def run_child(
    command: Sequence[str], *, doing: str, environment: Mapping[str, str], cwd: Path, limits: Limits, log: BuildLog
) -> Finished:
    """Run ``command`` to its end; its output goes to ``log`` line by line.

    Args:
        doing: what this step is called in messages, such as ``"The install"``.

    Raises:
        LimitReached, DiskFull: a limit was reached; the command and all its children have been ended.
    """
    limits.check_disk()
    limits.check_time(doing)
    loop = asyncio.get_running_loop()
    argv = [sys.executable, "-I", "-S", _LIFELINE, *command]
    transport, child = await loop.subprocess_exec(
        lambda: _Child(log), *argv, stderr=subprocess.STDOUT, cwd=cwd, env=dict(environment), start_new_session=True
    )
    try:
        await _watch(transport.get_pid(), child, doing, limits, log)
    finally:
        cast(asyncio.WriteTransport, transport.get_pipe_transport(0)).close()
        try:
            await asyncio.wait_for(child.ended.wait(), _KILL_S)
        except TimeoutError:
            log.say(f"{doing} does not end although it was killed; it is left behind (process {transport.get_pid()}).")
        transport.close()
    child.flush()
    return Finished(transport.get_returncode() or 0, tuple(child.lines))


async def _watch(pid: int, child: _Child, doing: str, limits: Limits, log: BuildLog) -> None:
    """Return when the child has ended; raise when it must not go on."""
    started = heard = looked = beat = time.monotonic()
    worked = _processor_seconds(pid)
    while not child.ended.is_set():
        try:
            await asyncio.wait_for(child.ended.wait(), min(1.0, limits.silence / 4))
        except TimeoutError:
            pass
        now = time.monotonic()
        limits.check_disk()
        limits.check_time(doing)
        heard = max(heard, child.heard)
        beat = max(beat, child.heard)
        if now - looked >= limits.silence / 4:
            looked, before, worked = now, worked, _processor_seconds(pid)
            heard = now if abs(worked - before) > _WORK_S else heard
        if now - heard > limits.silence:
            raise LimitReached(
                f"{doing} was ended: no output and no work for {limits.silence:.0f} s. "
                "Next: see its last lines; a package's build script or an index may be waiting for something."
            )
        if now - beat >= _HEARTBEAT_S:
            beat = now
            log.say(f"... {doing[0].lower()}{doing[1:]} goes on ({now - started:.0f} s)")


def _processor_seconds(pid: int) -> float:
    """Processor time of the whole tree; differs between two looks when anything in it did any work."""
    total = 0.0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    except psutil.Error:  # one of them has just ended: that is work too, and the next look will see the rest
        return total
    return total


class _Child(asyncio.SubprocessProtocol):
    """Cuts a child's output into lines as it comes, in bounded memory whatever the child prints."""

    def __init__(self, log: BuildLog) -> None:
        self.ended = asyncio.Event()
        self.heard = time.monotonic()
        self.lines: deque[str] = deque(maxlen=400)
        self._log = log
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.heard = time.monotonic()
        *lines, self._rest = re.split(r"\r\n|\n|\r", self._rest + self._decoder.decode(data))
        for line in lines:
            self._pass_on(line)
        if len(self._rest) > _LINE_CHARS:
            self.flush()

    def flush(self) -> None:
        rest, self._rest = self._rest, ""
        if rest:
            self._pass_on(rest)

    def _pass_on(self, line: str) -> None:
        clean = clean_line(line)
        self.lines.append(clean)
        self._log.say(clean)

    def connection_lost(self, exc: Exception | None) -> None:
        """The child has exited and its output is read to the end."""
        self.ended.set()

    def process_exited(self) -> None:
        # A process that escaped into its own session may hold the output open for ever: do not wait for it.
        asyncio.get_running_loop().call_later(2.0, self.ended.set)
