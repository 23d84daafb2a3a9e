"""The platform that ``fal run`` starts for itself when there is none, and the lock by which several runs share one.

Leaves the processes to ``keepwarm up --ephemeral`` and finding a running platform to ``fal._platform``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from fal._config import Target
from fal._platform import data_dir, read_record, running_platform
from fal._problem import Problem

#: Seconds for an embedded platform to answer; a cold disk is slow.
START_TIMEOUT = 90.0
#: Seconds for it to be gone after its last run has ended.
STOP_TIMEOUT = 45.0
#: Bytes of log kept from earlier starts.
LOG_LIMIT = 5 * 1024 * 1024
#: Seconds that a platform without work may take to stop before anybody is told to wait.
_QUIET_STOP = 2.5


class RunLock:
    """Held by every ``fal run`` that may use an ephemeral platform; the platform leaves once nobody holds it.

    The platform takes it for itself when it leaves, so waiting for it here is waiting for the old one to be gone.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run-sessions.lock"
        self._handle: IO[str] | None = None

    def acquire(self, waiting: Callable[[], None]) -> None:
        """Take it; calls ``waiting`` once when another platform is just leaving."""
        import fcntl

        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = self._path.open("a", encoding="ascii")
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_SH)
        self._handle = handle

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Alone in looking for a platform and starting one, so that two runs at once share the first one's."""
        import fcntl

        with self._path.with_name("run-start.lock").open("a", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def platform_is_leaving(self) -> bool:
        """Whether a platform holds the lock alone; only meaningful after ``release``."""
        import fcntl

        with self._path.open("a", encoding="ascii") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def release(self) -> None:
        """Give it back; safe to call twice."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


class EmbeddedPlatform:
    """``keepwarm up --ephemeral`` for as long as somebody's ``fal run`` lasts. Its output goes to a log file.

    Args:
        cpu_fallback: let the CPU stand in for GPU machine types.
    """

    def __init__(self, *, cpu_fallback: bool, environ: Mapping[str, str] | None = None) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._folder = data_dir(self._environ)
        self.log = self._folder / "logs" / "fal-run.log"
        self._cpu_fallback = cpu_fallback
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def run(self) -> Target:
        """Start it and wait until it answers.

        Raises:
            Problem: it is not installed beside this command, ended, or did not answer in time.
        """
        try:
            self._start()
            return self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        if find_spec("keepwarm") is None:
            raise Problem(
                "No platform to talk to, and the Keepwarm server is not installed beside this fal command.",
                why=f"{sys.executable} has no package keepwarm, and KEEPWARM_URL is not set.",
                next_step="install keepwarm in this Python environment, or set KEEPWARM_URL.",
            )
        command = [
            sys.executable,
            "-P",
            "-m",
            "keepwarm",
            "up",
            "--ephemeral",
            "--port",
            "0",
            "--data",
            str(self._folder),
        ]
        if self._cpu_fallback:
            command.append("--cpu-fallback")
        try:
            self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
                self.log.unlink()
            with self.log.open("ab") as output:
                self._log_start = output.tell()
                # A session of its own: Ctrl-C must reach this command first, which then lets the platform go.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=self._environ | {"PYTHONUNBUFFERED": "1"},
                )
        except OSError as error:
            raise Problem("The embedded platform could not be started.", why=str(error)) from error

    def _wait_ready(self) -> Target:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if (target := running_platform(self._environ)) is not None:
                return target
            if self._process is None or self._process.poll() is not None:
                raise self._failed("ended before it was ready")
            time.sleep(0.02)
        raise self._failed(f"did not answer within {START_TIMEOUT:.0f} seconds")

    def _failed(self, how: str) -> Problem:
        return Problem(
            f"The embedded platform {how}.",
            detail=self.last_lines(),
            next_step=f"`keepwarm doctor` says what this machine lacks; the whole log is {self.log}.",
        )

    def last_lines(self, count: int = 15) -> list[str]:
        """The end of this start's output."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(self._log_start)
                text = stream.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]

    @property
    def ended(self) -> bool:
        """Whether the process that this command started is gone."""
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """Ask the process to stop now, whoever uses it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait_gone(self, lock: RunLock, waiting: Callable[[], None] = lambda: None) -> str | None:
        """Wait until the platform has left by itself after ``lock`` was released.

        Args:
            waiting: called once when it takes longer than a platform without work would need.

        Returns:
            None when it is gone, else one sentence saying why it is still there.
        """
        if self._process is None:
            return None
        begun, said = time.monotonic(), False
        while time.monotonic() < begun + STOP_TIMEOUT:
            try:
                self._process.wait(0.1)
                return None
            except subprocess.TimeoutExpired:
                pass
            if not said and time.monotonic() > begun + _QUIET_STOP:
                said = True
                waiting()
            # It looks four times a second whether anybody is left, and withdraws its address first of all.
            record = read_record(self._folder)
            here = record is not None and record.pid == self._process.pid
            if here and time.monotonic() > begun + 1.5 and not lock.platform_is_leaving():
                return "The platform stays: another fal run uses it."
        return f"The platform (process {self._process.pid}) is still stopping; its log is {self.log}."
