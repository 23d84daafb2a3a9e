"""``sys.stdout`` and ``sys.stderr`` of user code: whole lines become Log messages with the request they belong to.

Owns line splitting and attribution. Descriptors 1 and 2 stay as they are, for native code that writes to them.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from fal._context import current_request

#: Longer lines are cut into pieces of this many characters.
MAX_LINE = 16 * 1024
#: A progress bar redraws its line with \\r; one redraw in so many seconds is passed on.
_REDRAW_SECONDS = 1.0
#: Characters per second that user code may print for long, how much may come at once, and what each line counts beside
#: its text. Less than the supervisor lets pass, and more lines at once than an app's log keeps.
_RATE = 1000 * 1000
_BURST = 4 * _RATE
_LINE_COST = 256
_LEVELS = ((logging.ERROR, "ERROR"), (logging.WARNING, "WARN"), (logging.INFO, "INFO"))

#: level, line, unix seconds, request id
Sink = Callable[[str, str, float, "str | None"], None]


class _Partial:
    """The beginning of a line, in the pieces that it was printed in."""

    __slots__ = ("pieces", "size")

    def __init__(self, text: str = "") -> None:
        self.pieces = [text] if text else []
        self.size = len(text)

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.size += len(text)

    def text(self) -> str:
        return "".join(self.pieces)


class Budget:
    """Passes lines on to ``sink`` as long as there are not too many; drops the others here, where that costs least.

    The supervisor drops what is beyond a budget as well; but a line that travels there first costs the app its time.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._allowance = float(_BURST)
        self._refilled = time.monotonic()
        self._dropped = 0
        self._said = 0.0
        self._lock = threading.RLock()  # a signal handler may print in the middle of a print

    def __call__(self, level: str, line: str, at: float, request_id: str | None) -> None:
        """Pass the line on, or drop it; how many were dropped is said once a second."""
        now = time.monotonic()
        size = len(line) + _LINE_COST
        with self._lock:
            self._allowance = min(float(_BURST), self._allowance + (now - self._refilled) * _RATE)
            self._refilled = now
            kept = self._allowance > size
            if kept:
                self._allowance -= size
            else:
                self._dropped += 1
        if self._dropped and now - self._said >= 1.0:
            self.say(request_id)
        if kept:
            self._sink(level, line, at, request_id)

    def say(self, request_id: str | None) -> None:
        """Tell how many lines were dropped since the last time, if any were."""
        with self._lock:
            dropped, self._dropped, self._said = self._dropped, 0, time.monotonic()
        if dropped:
            note = f"{dropped} log lines were dropped: the app prints more than a log can hold"
            self._sink("WARN", note, time.time(), request_id)


class LineWriter(io.TextIOBase):
    """A text stream that gives each whole line to ``sink``.

    Args:
        level: ``STDOUT`` or ``STDERR``.
        sink: receives the lines.
        descriptor: what ``fileno()`` tells; also where a forked child of this process writes.
        is_foreign: True in such a child.
    """

    def __init__(self, level: str, sink: Sink, descriptor: int, is_foreign: Callable[[], bool]) -> None:
        super().__init__()
        self._level = level
        self._sink = sink
        self._descriptor = descriptor
        self._is_foreign = is_foreign
        self._partial: dict[tuple[str | None, int], _Partial] = {}
        self._redrawn = 0.0
        self.buffer = _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "replace"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._is_foreign():
            os.write(self._descriptor, text.encode("utf-8", "replace"))
            return len(text)
        request = current_request()
        request_id = request.request_id if request is not None else None
        key = (request_id, threading.get_ident())
        partial = self._partial.pop(key, None) or _Partial()
        if "\n" not in text and "\r" not in text and partial.size + len(text) <= MAX_LINE:
            partial.add(text)  # joined once per line: a line printed in a thousand pieces must not be copied as often
            self._partial[key] = partial
            return len(text)
        *lines, rest = (partial.text() + text).split("\n")
        for line in lines:
            self._emit(line.removesuffix("\r").rpartition("\r")[2], request_id)
        if "\r" in rest:
            rest = self._redraw(rest, request_id)
        whole = (len(rest) - 1) // MAX_LINE * MAX_LINE if rest else 0
        for start in range(0, whole, MAX_LINE):
            self._emit(rest[start : start + MAX_LINE], request_id)
        if rest:
            self._partial[key] = _Partial(rest[whole:])
        return len(text)

    def _redraw(self, text: str, request_id: str | None) -> str:
        drawn, _, rest = text.rpartition("\r")
        now = time.monotonic()
        line = drawn.rpartition("\r")[2]
        if line.strip() and now - self._redrawn >= _REDRAW_SECONDS:
            self._redrawn = now
            self._emit(line, request_id)
        return "\r" + rest if rest else ""

    def _emit(self, line: str, request_id: str | None) -> None:
        at = time.time()
        for start in range(0, len(line) or 1, MAX_LINE):
            self._sink(self._level, line[start : start + MAX_LINE], at, request_id)

    def end_request(self, request_id: str) -> None:
        """Pass on what the request left without a line end."""
        for key in [key for key in list(self._partial) if key[0] == request_id]:  # other threads print meanwhile
            partial = self._partial.pop(key, None)
            rest = partial.text().strip("\r") if partial is not None else ""
            if rest:
                self._emit(rest, request_id)

    def finish(self) -> None:
        """Pass on everything left without a line end."""
        for key in list(self._partial):
            partial = self._partial.pop(key, None)
            rest = partial.text().strip("\r") if partial is not None else ""
            if rest:
                self._emit(rest, key[0])


class _Bytes(io.RawIOBase):
    """``sys.stdout.buffer``."""

    def __init__(self, text: LineWriter) -> None:
        super().__init__()
        self._text = text

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._text.write(raw.decode("utf-8", "replace"))
        return len(raw)


class _LoggedLines(logging.Handler):
    """Where ``logging`` goes when the app configures nothing: lines with their level."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.WARNING)
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        level = next((name for number, name in _LEVELS if record.levelno >= number), "DEBUG")
        request = current_request()
        for line in self.format(record).splitlines():
            self._sink(level, line[:MAX_LINE], record.created, request.request_id if request else None)


class Output:
    """The two streams of this process, replaced while user code runs."""

    def __init__(self, sink: Sink, is_foreign: Callable[[], bool]) -> None:
        self._sink = sink
        self._budget = budget = Budget(sink)
        self._streams = (LineWriter("STDOUT", budget, 1, is_foreign), LineWriter("STDERR", budget, 2, is_foreign))

    def install(self) -> None:
        """Replace ``sys.stdout`` and ``sys.stderr``."""
        sys.stdout, sys.stderr = self._streams
        logging.lastResort = _LoggedLines(self._budget)

    def end_request(self, request_id: str) -> None:
        """Pass on the request's unfinished lines."""
        for stream in self._streams:
            if stream._partial:
                stream.end_request(request_id)
        self._budget.say(request_id)

    def finish(self) -> None:
        """Pass on all unfinished lines."""
        for stream in self._streams:
            stream.finish()
        self._budget.say(None)

    def error(self, message: str, request_id: str | None = None) -> None:
        """Log a line of the platform's own."""
        for line in message.splitlines():
            self._sink("ERROR", line[:MAX_LINE], time.time(), request_id)

    def warn(self, message: str) -> None:
        """Log a line of the platform's own that is no error."""
        self._sink("WARN", message[:MAX_LINE], time.time(), None)

    def exception(self, error: BaseException, request_id: str | None = None) -> None:
        """Log a traceback, starting in user code."""
        self.error("".join(traceback.format_exception(type(error), error, user_frames(error))), request_id)


_SDK = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_FRAMEWORK = tuple(f"{os.sep}{name}{os.sep}" for name in ("fastapi", "starlette", "anyio"))


def user_frames(error: BaseException) -> TracebackType | None:
    """The traceback of ``error`` from the first frame of user code on; the whole one when there is none."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace if trace is not None else error.__traceback__


def _is_ours(file: str) -> bool:
    if file.startswith(("<frozen", _SDK)) or any(part in file for part in _FRAMEWORK):
        return True
    return file.startswith(_STDLIB) and "site-packages" not in file
