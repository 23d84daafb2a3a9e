"""Every line that user code prints or logs, with its level and the request it belongs to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fal._runner.output import MAX_LINE, LineWriter
from fal._runner.protocol import Log, Response

from tests.runner.harness import Runner, start

SOURCE = """
import asyncio
import logging
import sys
import threading

import fal

print("at import")


class Demo(fal.App):
    def setup(self):
        print("in setup")

    @fal.endpoint("/sync")
    def sync(self):
        print("sync line")
        print("no end", end="")

    @fal.endpoint("/async")
    async def run(self):
        print("before")
        await asyncio.sleep(0)
        print("after")

    @fal.endpoint("/levels")
    def levels(self):
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("careful")
        logging.getLogger("mine").error("broken")
        sys.stdout.buffer.write(b"bytes\\n")
        sys.stdout.writelines(["two\\n", "lines\\n"])

    @fal.endpoint("/flood")
    def flood(self):
        for number in range(500_000):
            print("line", number)

    @fal.endpoint("/surrogate")
    def surrogate(self):
        print("prompt: \\ud800")
        raise ValueError("cannot draw \\ud800")

    @fal.endpoint("/thread")
    def thread(self):
        t = threading.Thread(target=print, args=("from a thread of its own",))
        t.start()
        t.join()
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with start(tmp_path_factory.mktemp("logs"), SOURCE) as runner:
        runner.ready()
        yield runner


def _lines(runner: Runner, seen: int) -> list[tuple[str, str, str | None]]:
    return [(m.level, m.message, m.request_id) for m in runner.heard[seen:] if isinstance(m, Log)]


def test_before_the_first_request(runner: Runner) -> None:
    assert _lines(runner, 0)[:2] == [("STDOUT", "at import", None), ("STDOUT", "in setup", None)]


def test_lines_of_a_sync_handler_even_without_an_end(runner: Runner) -> None:
    seen = len(runner.heard)
    runner.call(path="/sync")
    runner.call(path="/async")
    assert ("STDOUT", "sync line", "r1") in _lines(runner, seen)
    assert ("STDOUT", "no end", "r1") in _lines(runner, seen)


def test_interleaved_async_handlers(runner: Runner) -> None:
    seen = len(runner.heard)
    for name in ("one", "two"):
        runner.request(name, path="/async")
    runner.expect(Response)
    runner.expect(Response)
    lines = _lines(runner, seen)
    for name in ("one", "two"):
        assert [line for line in lines if line[2] == name] == [("STDOUT", "before", name), ("STDOUT", "after", name)]


def test_levels(runner: Runner) -> None:
    seen = len(runner.heard)
    runner.call(path="/levels")
    assert _lines(runner, seen) == [
        ("STDERR", "to stderr", "r1"),
        ("WARN", "careful", "r1"),
        ("ERROR", "broken", "r1"),
        ("STDOUT", "bytes", "r1"),
        ("STDOUT", "two", "r1"),
        ("STDOUT", "lines", "r1"),
    ]


def test_a_lone_surrogate_is_logged_as_a_question_mark(runner: Runner) -> None:
    """JSON may hold one: an app that printed its prompt answered 500, and its log showed our traceback."""
    seen = len(runner.heard)
    assert runner.call(path="/surrogate").status == 500
    runner.call(path="/thread")  # the traceback comes behind its answer
    messages = [message for _, message, _ in _lines(runner, seen)]
    assert messages[0] == "prompt: ?"
    assert any("ValueError: cannot draw ?" in message for message in messages)


def test_a_thread_of_the_apps_own_has_no_request(runner: Runner) -> None:
    seen = len(runner.heard)
    runner.call(path="/thread")
    assert _lines(runner, seen) == [("STDOUT", "from a thread of its own", None)]


def _writer() -> tuple[LineWriter, list[str]]:
    lines: list[str] = []
    return LineWriter("STDOUT", lambda level, line, at, request: lines.append(line), 1, lambda: False), lines


def test_long_lines_are_cut() -> None:
    writer, lines = _writer()
    writer.write("x" * (MAX_LINE * 2 + 3) + "\n")
    assert [len(line) for line in lines] == [MAX_LINE, MAX_LINE, 3]


def test_a_line_that_never_ends_is_passed_on_in_pieces() -> None:
    writer, lines = _writer()
    for _ in range(5):
        writer.write("y" * MAX_LINE)
    assert len(lines) >= 4
    writer.finish()
    assert "".join(lines) == "y" * MAX_LINE * 5


def test_a_progress_bar_gives_few_lines_and_its_last_state() -> None:
    writer, lines = _writer()
    for step in range(1000):
        writer.write(f"\r{step}/1000")
    writer.write("\r1000/1000\n")
    assert lines[-1] == "1000/1000"
    assert len(lines) < 10


def test_windows_line_ends() -> None:
    writer, lines = _writer()
    writer.write("one\r\ntwo\r\n\n")
    assert lines == ["one", "two", ""]


def test_it_is_a_text_stream(tmp_path: Path) -> None:
    writer, _ = _writer()
    assert (writer.writable(), writer.isatty(), writer.fileno(), writer.encoding) == (True, False, 1, "utf-8")
    with pytest.raises(TypeError, match="must be str"):
        writer.write(b"x")  # type: ignore[arg-type]


def test_a_long_text_without_line_ends_costs_time_in_proportion() -> None:
    """An app printed a 40 MB text in one go: its process stood still for 15 seconds, and no other request moved."""
    writer, lines = _writer()
    began = time.process_time()
    writer.write("z" * 40_000_000)
    writer.finish()
    assert time.process_time() - began < 3
    assert sum(map(len, lines)) == 40_000_000


def test_a_line_in_many_pieces_costs_time_in_proportion() -> None:
    """A model printed its tokens one by one without a line end: each was appended to a copy of everything so far."""
    writer, lines = _writer()
    began = time.process_time()
    for number in range(600_000):
        writer.write("0123456789"[number % 10])
    assert time.process_time() - began < 3
    writer.finish()
    assert "".join(lines) == "0123456789" * 60_000
    assert {len(line) for line in lines[:-1]} == {MAX_LINE}


def test_a_flood_of_lines_is_dropped_where_it_begins(runner: Runner) -> None:
    """An app printed 500,000 short lines: its request took 20 seconds, for each line travelled to the supervisor only
    to be dropped there."""
    seen = len(runner.heard)
    began = time.monotonic()
    runner.call(path="/flood")
    seconds = time.monotonic() - began
    runner.call(path="/async")  # what the flood left to say comes before the next answer
    lines = [line for _, line, _ in _lines(runner, seen)]
    notes = [line for line in lines if "were dropped: the app prints more than a log can hold" in line]
    kept = [line for line in lines if line.startswith("line ")]
    lost = sum(int(line.split()[0].strip("[")) for line in lines if "were dropped" in line)
    assert notes
    assert len(notes) <= seconds + 2
    assert len(kept) < 20_000 + 5_000 * seconds
    assert len(kept) + lost == 500_000
    assert kept[0] == "line 0"
