"""How the fal command speaks: ticks, rules, log lines and tables; plain lines where nobody looks at a terminal.

Owns the look. Knows nothing of apps or servers. A line is never wrapped, so that what is printed can be copied.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from fal._problem import Problem

_LEVEL_STYLES = {"error": "red", "critical": "red", "warning": "yellow", "warn": "yellow", "debug": "dim"}
#: Columns of a table in a pipe or file, where no terminal gives a width.
_PIPE_WIDTH = 200
_RULE_WIDTH = 78


class Screen:
    """One output stream. ``to_stderr`` keeps stdout free for a command's JSON."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        from rich.console import Console

        stream = sys.stderr if to_stderr else sys.stdout
        width = None if stream.isatty() else _PIPE_WIDTH
        self._console: Console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)

    def line(self, text: str = "", style: str = "") -> None:
        """One line, as long as it is."""
        self._console.print(text, style=style or None, soft_wrap=True)

    def parts(self, *parts: tuple[str, str]) -> None:
        """One line of (text, style) pieces."""
        from rich.text import Text

        self._console.print(Text.assemble(*parts), soft_wrap=True)

    def exact(self, text: str) -> None:
        """Text that scripts look for: no style, no change, at once."""
        self._console.file.write(f"{text}\n")
        self._console.file.flush()

    def tick(self, text: str) -> None:
        """Something has succeeded."""
        self.parts(("✓ ", "green"), (text, ""))

    def note(self, text: str) -> None:
        """Something worth knowing that is no error."""
        self.parts(("! ", "yellow"), (text, "yellow"))

    def warning(self, text: str) -> None:
        """Something to act on."""
        self.parts(("Warning: ", "bold yellow"), (text, ""))

    def rule(self, title: str = "", style: str = "green") -> None:
        """A line across, with a title in it."""
        width = min(self._console.width, _RULE_WIDTH)
        text = f" {title} " if title else ""
        left = max(3, (width - len(text)) // 2)
        self.line(f"{'─' * left}{text}{'─' * max(3, width - left - len(text))}", style)

    def log(self, entry: dict[str, Any]) -> None:
        """One entry of an app's or a build's log."""
        style = _LEVEL_STYLES.get(str(entry.get("level", "")).lower(), "")
        for number, text in enumerate(str(entry.get("message", "")).rstrip("\n").split("\n")):
            head = clock(entry.get("at")) if number == 0 else " " * 12
            self.parts((f"{head} ", "dim"), (text, style))

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for a transfer of ``total`` bytes, on a terminal; hands out what to call with each number of bytes."""
        if not self._console.is_terminal or total == 0:
            yield lambda count: None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "") -> None:
        """Rows under bold headings; ``empty`` is said instead when there are none."""
        from rich.table import Table

        listed = [[("" if cell is None or cell is False else str(cell)) for cell in row] for row in rows]
        if not listed:
            if empty:
                self.line(empty, "dim")
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name, overflow="fold", no_wrap=not self._console.is_terminal)
        for row in listed:
            table.add_row(*row)
        self._console.print(table)


def clock(at: Any) -> str:
    """A moment (unix seconds, or ISO 8601) as local HH:MM:SS.mmm; blank when it is neither."""
    try:
        moment = (
            datetime.fromtimestamp(float(at))
            if isinstance(at, (int, float))
            else datetime.fromisoformat(str(at).replace("Z", "+00:00")).astimezone()
        )
    except (ValueError, OverflowError, OSError):
        return " " * 12
    return moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def when(at: Any) -> str:
    """A moment (ISO 8601) as local date and time; empty when unknown."""
    try:
        moment = datetime.fromisoformat(str(at).replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):
        return ""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def unix_time(at: Any) -> float:
    """A moment (ISO 8601) as unix seconds; 0 when unknown."""
    try:
        return datetime.fromisoformat(str(at).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def amount(size: float) -> str:
    """A number of bytes as people say it."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def print_json(value: Any) -> None:
    """A command's machine-readable answer, on one line of stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_problem(problem: Problem) -> None:
    """Say on stderr what is wrong, why, and what to do next."""
    screen = Screen(to_stderr=True)
    first, *rest = problem.what.split("\n")
    screen.parts(("✗ ", "bold red"), (first, "bold"))
    for line in rest:
        screen.line(f"  {line}")
    for line in problem.detail:
        screen.line(f"    {line}", "dim")
    if problem.why:
        screen.parts(("  Cause: ", "bold"), (problem.why, ""))
    if problem.next_step:
        screen.parts(("  Next:  ", "bold green"), (problem.next_step, ""))
