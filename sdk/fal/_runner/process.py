"""The process inside the user's environment: the order in which its parts exist, and how it ends."""

from __future__ import annotations

import atexit
import faulthandler
import os
import socket
import time

from fal._runner.channel import Channel
from fal._runner.life import EXIT_OK, Life, python_version
from fal._runner.output import Output
from fal._runner.protocol import PROTOCOL_VERSION, Hello, Log, Message, Start


class _Process:
    def __init__(self, fd: int, start_kind: str, born: float | None) -> None:
        self._start_kind = start_kind
        self._born = born
        self.life: Life | None = None
        self.channel = Channel(socket.socket(fileno=fd), self._receive, self._lost)
        self.output = Output(self._log, lambda: self.channel.is_foreign)

    def _log(self, level: str, message: str, at: float, request_id: str | None) -> None:
        self.channel.send(Log(level, message, at, request_id))

    def _receive(self, message: Message) -> None:
        if self.life is not None:
            self.life.receive(message)

    def _lost(self) -> None:
        if self.life is not None:
            self.life.lost()

    def run(self) -> int:
        self.channel.send(Hello(PROTOCOL_VERSION, python_version(), os.getpid(), self._start_kind))
        first = self.channel.wait_for_first()
        if first is None:
            return EXIT_OK
        if not isinstance(first, Start):
            raise SystemExit(f"the first message must be start, not {first.tag}")
        self.output.install()
        faulthandler.enable(file=2)  # a crash in native code leaves its Python traceback on the raw pipe
        self.channel.watch()
        self.life = Life(first, self.channel, self.output, self.leave, self._born)
        return self.life.run()

    def leave(self, code: int) -> None:
        """End the process; what was said is still heard."""
        self.channel.drain()
        # An ordinary exit would first wait for threads of user code, which may never end.
        atexit._run_exitfuncs()
        os._exit(code)


def main(arguments: list[str]) -> None:
    """Run one app and leave with its exit code; or be a zygote, and do so in each process that it forks."""
    start_kind, born = "spawn", None
    if len(arguments) == 3 and arguments[0] == "--zygote" and arguments[1].isdigit():
        from fal._runner import newborn, zygote

        birth = zygote.serve(int(arguments[1]), arguments[2])
        if birth is None:
            os._exit(EXIT_OK)
        arguments = newborn.settle(birth)
        start_kind, born = "zygote", time.monotonic()
    if len(arguments) != 2 or arguments[0] != "--fd" or not arguments[1].isdigit():
        raise SystemExit("usage: python -m fal._runner --fd N (started by the platform, not by hand)")
    process = _Process(int(arguments[1]), start_kind, born)
    process.leave(process.run())
