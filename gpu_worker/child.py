"""A child of this process that it did not start itself: born to a zygote, handed to us by the kernel.

Has of ``subprocess.Popen`` what supervisors and the agent use of it. Standard library only: the supervisor needs it
before anything heavier is imported.
"""

from __future__ import annotations

import os
from typing import IO, Protocol


class Process(Protocol):
    """A child process, whoever started it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        ...

    def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        ...

    def send_signal(self, sig: int) -> None:
        """Signal it, unless it has been reaped."""
        ...


class AdoptedChild:
    """A child known by its number alone.

    Args:
        pid: a child of this process that nobody else waits for, so that the number cannot be reused.
    """

    def __init__(self, pid: int, stdout: IO[bytes] | None = None, stderr: IO[bytes] | None = None) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        code = self._reap(0)
        assert code is not None
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # somebody reaped all children; the same answer as subprocess gives then
                self.returncode = 0
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode
