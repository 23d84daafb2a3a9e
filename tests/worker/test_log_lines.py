"""What an app prints reaches the log cut into lines, bounded, and never at the cost of the platform's memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from gpu_worker import log_lines
from gpu_worker.log_lines import BACKLOG, BURST, LINE_LIMIT, LogLines, PipeLines
from scheduler.store.errors import StoreUnavailable
from scheduler.store.records import LogEntry
from tests.support.loop import run


class Kept:
    """A store that keeps entries, or is away."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.away = False

    async def append(self, entries: Sequence[LogEntry]) -> None:
        if self.away:
            raise StoreUnavailable
        self.entries += entries

    @property
    def messages(self) -> list[str]:
        return [entry.message for entry in self.entries]


def test_a_pipe_is_cut_at_line_ends_and_redraws() -> None:
    async def story() -> list[str]:
        kept = Kept()
        lines = LogLines(kept.append, "w")
        pipe = PipeLines(lines, "STDOUT")
        for data in (b"hel", b"lo\r\n10%\r20%\rhalf a ", "zeichen ä\n".encode(), b"rest"):
            pipe.data_received(data)
        pipe.connection_lost(None)
        await lines.flush()
        return kept.messages

    assert run(story()) == ["hello", "10%", "20%", "half a zeichen ä", "rest"]


def test_an_endless_line_is_cut() -> None:
    async def story() -> tuple[list[str], int]:
        kept = Kept()
        lines = LogLines(kept.append, "w")
        pipe = PipeLines(lines, "STDOUT")
        for _ in range(100):
            pipe.data_received(b"x" * 65536)
            assert len(pipe._rest) <= LINE_LIMIT + 1
        pipe.data_received(b"\nnext\n")
        await lines.flush()
        return kept.messages, len(kept.messages[0])

    messages, length = run(story())
    assert messages[-1] == "next"
    assert length < LINE_LIMIT + 100


def test_a_flood_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> Kept:
        # all at one moment, however busy this machine is
        monkeypatch.setattr(log_lines, "time", SimpleNamespace(monotonic=lambda: 0.0, time=time.time))
        kept = Kept()
        lines = LogLines(kept.append, "w")
        for _ in range(BURST // 1000 + 2000):
            lines.add("STDOUT", "y" * 1000)
        lines._allowance = BURST
        lines.add("STDOUT", "after")
        await lines.flush()
        return kept

    kept = run(story())
    assert sum(len(message) for message in kept.messages) <= BURST + 1000
    assert "log lines were dropped" in kept.messages[-2]
    assert kept.messages[-1] == "after"


def test_a_store_that_is_away_gets_the_lines_later() -> None:
    async def story() -> tuple[list[str], int]:
        kept = Kept()
        kept.away = True
        lines = LogLines(kept.append, "w")
        lines.add("STDOUT", "one")
        await lines.flush()
        assert lines.pending()
        kept.away = False
        lines.add("STDOUT", "two")
        await lines.flush()
        kept.away = True
        for number in range(BACKLOG * 2):
            lines.add("STDOUT", str(number))
        return kept.messages, len(lines._waiting)

    messages, waiting = run(story())
    assert messages == ["one", "two"]
    assert waiting <= BACKLOG


def test_lines_leave_by_themselves() -> None:
    async def story() -> list[str]:
        kept = Kept()
        LogLines(kept.append, "w").add("INFO", "hello", request_id="r")
        async with asyncio.timeout(5):
            while not kept.entries:
                await asyncio.sleep(0.01)
        assert kept.entries[0].request_id == "r"
        assert kept.entries[0].worker_id == "w"
        return kept.messages

    assert run(story()) == ["hello"]
