"""Somebody who sits at a terminal in which a command runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: The command gets a session and the terminal as its own, as a terminal's window does it.
_OWN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class TerminalUser:
    """Types, reads the screen, and sees how the command ends."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(30, 100, tell=False)
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN, *command],
            env={**environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        self._theirs = theirs
        self.screen = ""

    def resize(self, rows: int, columns: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if tell:
            os.kill(self.process.pid, signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def reads(self, text: str, timeout: float = 30) -> None:
        """Wait until the text is on the screen, after what was read before."""
        deadline = time.monotonic() + timeout
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} is not on the screen: {self.screen!r}"
            if select.select([self._ours], [], [], 0.2)[0]:
                self.screen += os.read(self._ours, 65536).decode(errors="replace")
            else:
                assert self.process.poll() is None, f"it has ended before {text!r}: {self.screen!r}"
        self.screen = self.screen.partition(text)[2]

    def ends(self) -> int:
        """The exit status, after which the terminal is as it was."""
        code = self.process.wait(30)
        assert termios.tcgetattr(self._theirs) == self.before
        return code

    def leave(self) -> None:
        """Close the window."""
        for end in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(end)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
