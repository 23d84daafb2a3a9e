"""Pseudo-terminals for commands beside a runner: opened, resized, read and written without holding up the loop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Mapping, Sequence

from scheduler.store.records import Terminal

_BLOCK = 32 * 1024
#: Ctrl-D: what ends the input of a program at a terminal.
_END = b"\x04"
#: A terminal is controlled by the process that has no other one and asks for it, which must be the command's own: no
#: code of ours may run between fork and exec in a process with threads.
_ASK = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    print(f"{sys.argv[1]}: {error.strerror}", file=sys.stderr)
    raise SystemExit(127)
"""


class PseudoTerminal:
    """Our end of a terminal; ``close`` it."""

    def __init__(self, terminal: Terminal) -> None:
        self._kind = terminal.kind
        self._ours, self._theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.resize(terminal.rows, terminal.columns)

    async def start(
        self, arguments: Sequence[str], environ: Mapping[str, str], folder: str
    ) -> asyncio.subprocess.Process:
        """Start a command that the terminal belongs to, in a session of its own."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _ASK, *arguments),
            env={**environ, "TERM": self._kind},
            cwd=folder,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
        )
        os.close(self._theirs)
        self._theirs = -1
        return process

    def resize(self, rows: int, columns: int) -> None:
        """Another size; the programs at the terminal are told."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def read(self) -> bytes:
        """What was written to the terminal; empty once nobody has it open any more."""
        while True:
            try:
                return os.read(self._ours, _BLOCK)
            except BlockingIOError:
                await self._until(asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader)
            except OSError:  # EIO: the last process has closed it
                return b""

    async def write(self, data: bytes) -> None:
        """Type something."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._ours, view) :]
            except BlockingIOError:
                await self._until(asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer)
            except OSError:
                return

    async def end(self) -> None:
        """No more will be typed."""
        await self.write(_END)

    async def _until(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        ready = asyncio.Event()
        add(self._ours, ready.set)
        try:
            await ready.wait()
        finally:
            remove(self._ours)

    def close(self) -> None:
        """Hang up: whatever is still at the terminal is told."""
        for end in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(end)
        self._ours = self._theirs = -1
