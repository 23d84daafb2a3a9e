"""A command beside a runner that reads what is typed here: its terminal becomes this one, or its input this one's.

Owns this side's terminal. Leaves the connection to ``fal._server``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from fal._problem import Problem
from fal._server import ControlApi

_BLOCK = 32 * 1024
_LAST_SECONDS = 5.0


def converse(api: ControlApi, path: str, command: list[str], *, terminal: bool) -> int:
    """Run a command beside a runner and be its input; returns its exit status, 128 and more for a signal.

    Args:
        path: of the runner's ``exec`` in the control API.
        terminal: give it a terminal of this one's size; else a pipe.

    Raises:
        Problem: there is no terminal here, the server refused, or the connection was lost.
    """
    if terminal and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Problem(
            "-t needs a terminal on both sides, and this command's input or output is none.",
            next_step="leave out -t; -i alone sends the input as it is.",
        )
    with api.socket(path) as socket:
        asked: dict[str, Any] = {"command": command}
        if terminal:
            asked["terminal"] = {**_size(), "kind": os.environ.get("TERM") or "xterm"}
        socket.send(json.dumps(asked))
        session = _Session(socket)
        with (
            _raw() if terminal else contextlib.nullcontext(),
            _resizing(session) if terminal else contextlib.nullcontext(),
        ):
            session.run()
    if session.code is None:
        raise Problem(
            f"The connection to {api.target.url} was lost, and the command was ended.",
            why=session.why,
            next_step="see `fal runners list`.",
        )
    return session.code if session.code >= 0 else 128 - session.code


class _Session:
    """Both directions: what is typed goes out from this thread, what is said is shown by another one."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._over, self._end = os.pipe()
        self.code: int | None = None
        self.why = ""

    def run(self) -> None:
        """Until the command has ended or the connection is lost."""
        showing = threading.Thread(target=self._show, daemon=True)
        showing.start()
        try:
            self._type()
        finally:
            showing.join(_LAST_SECONDS)
            os.close(self._over)
            os.close(self._end)

    def say(self, **message: Any) -> None:
        """One message; a connection that is gone is noticed by whoever reads."""
        with contextlib.suppress(Exception):
            self._socket.send(json.dumps(message))

    def _type(self) -> None:
        source = sys.stdin.fileno()
        while True:
            ready = select.select([source, self._over], [], [])[0]
            if self._over in ready:
                return
            if not (data := os.read(source, _BLOCK)):
                self.say(type="end")
                select.select([self._over], [], [])
                return
            self.say(type="input", data=base64.b64encode(data).decode())

    def _show(self) -> None:
        try:
            for text in self._socket:
                said = json.loads(text)
                if said.get("type") == "exit":
                    self.code = int(said["code"])
                    return
                if (stream := {"stdout": sys.stdout, "stderr": sys.stderr}.get(said.get("type"))) is not None:
                    stream.buffer.write(base64.b64decode(said["data"]))
                    stream.buffer.flush()
            self.why = self._socket.close_reason or ""
        except Exception as error:  # noqa: BLE001 - whatever it is, the session is over
            self.why = str(error)
        finally:
            os.write(self._end, b".")


def _size() -> dict[str, int]:
    try:  # not COLUMNS and LINES, which some shells export and nobody keeps up to date
        size = os.get_terminal_size(sys.stdin.fileno())
    except (OSError, ValueError):
        size = shutil.get_terminal_size()
    return {"rows": max(1, size.lines), "columns": max(1, size.columns)}


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Every key goes to the other side, Ctrl-C too; the terminal is put back however this ends."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        raise Problem("-t needs a terminal as Linux and macOS have it.", next_step="leave out -t.") from None
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin, termios.TCSADRAIN)  # what was typed ahead stays
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizing(session: _Session) -> Iterator[None]:
    """The other side is told when this terminal gets another size."""

    def tell(number: int, frame: FrameType | None) -> None:
        # Not from the handler: the interrupted code may be in the middle of a message.
        threading.Thread(target=lambda: session.say(type="size", **_size()), daemon=True).start()

    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
