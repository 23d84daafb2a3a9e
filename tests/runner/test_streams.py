"""Streamed answers, back-pressure, and requests that are cancelled half way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fal._runner.protocol import (
    Cancel,
    Credit,
    Log,
    Ping,
    Pong,
    Response,
    ResponseChunk,
    ResponseEnd,
    ResponseStart,
)
from fal._runner.serving import FIRST_CREDIT, MAX_CHUNK_BYTES

from tests.runner.harness import Runner, header, start

SOURCE = """
import asyncio
import threading

import fal
from fastapi import Request
from fastapi.responses import StreamingResponse

release = threading.Event()


class Demo(fal.App):
    @fal.endpoint("/events")
    async def events(self):
        async def lines():
            for number in range(3):
                yield f"data: {number}\\n\\n"
        return StreamingResponse(lines(), media_type="text/event-stream")

    @fal.endpoint("/count")
    def count(self, request: Request):
        async def pieces():
            for number in range(200):
                yield b"%d," % number
        return StreamingResponse(pieces())

    @fal.endpoint("/slow/stream")
    def slow(self):
        def pieces():
            yield b"first"
            release.wait(30)
            yield b"second"
        return StreamingResponse(pieces())

    @fal.endpoint("/big")
    async def big(self):
        async def pieces():
            yield b"x" * (3 * 1024 * 1024 + 5)
        return StreamingResponse(pieces())

    @fal.endpoint("/breaks")
    async def breaks(self):
        async def pieces():
            yield b"first"
            raise ValueError("half way")
        return StreamingResponse(pieces())

    @fal.endpoint("/endless")
    async def endless(self):
        async def pieces():
            try:
                while True:
                    yield b"more"
            finally:
                print("stream closed")
        return StreamingResponse(pieces())

    @fal.endpoint("/wait")
    async def wait(self):
        print("waiting")
        try:
            await asyncio.sleep(60)
        finally:
            print("stopped waiting")

    @fal.endpoint("/polls")
    async def polls(self, request: Request):
        print("waiting")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        return {"disconnected": await request.is_disconnected()}

    @fal.endpoint("/blocks")
    def blocks(self):
        print("waiting")
        release.wait(30)
        return {"done": True}

    @fal.endpoint("/release")
    async def free(self):
        release.set()
        return {}

    @fal.endpoint("/own")
    async def own(self):
        self.stop = asyncio.Event()
        print("waiting")
        await self.stop.wait()
        raise fal.exceptions.RequestCancelledException("stopped by its own route")

    @fal.endpoint("/own/cancel")
    async def own_cancel(self):
        print("cancelling", self.current_request.request_id)
        self.stop.set()
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    with start(tmp_path, SOURCE) as runner:
        runner.ready()
        yield runner


def _collect(runner: Runner) -> tuple[ResponseStart, list[bytes], ResponseEnd]:
    begin = runner.expect(ResponseStart)
    chunks: list[bytes] = []
    while True:
        message = runner.hear()
        if isinstance(message, ResponseChunk):
            chunks.append(message.body)
            runner.send(Credit(message.id, 1))
        elif isinstance(message, ResponseEnd):
            return begin, chunks, message


def _wait_for_line(runner: Runner, text: str) -> Log:
    while True:
        log = runner.expect(Log)
        if log.message == text:
            return log


def test_a_stream_arrives_piece_by_piece(runner: Runner) -> None:
    runner.request(path="/events")
    begin, chunks, end = _collect(runner)
    assert begin.status == 200
    assert header(begin.headers, b"content-type") == b"text/event-stream; charset=utf-8"
    assert chunks == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert end.error is None


def test_the_start_does_not_wait_for_the_second_piece(runner: Runner) -> None:
    runner.request(path="/slow/stream")
    runner.expect(ResponseStart)
    assert runner.expect(ResponseChunk).body == b"first"
    runner.request("r2", path="/release")
    assert runner.expect(Response).id == "r2"
    assert runner.expect(ResponseChunk).body == b"second"
    runner.expect(ResponseEnd)


def test_a_stream_waits_for_credit(runner: Runner) -> None:
    """A caller who reads slowly must not make the platform hold the whole answer in memory."""
    runner.request(path="/count")
    runner.expect(ResponseStart)
    for _ in range(FIRST_CREDIT):
        runner.expect(ResponseChunk)
    assert runner.call(id="side", path="/release").status == 200, "others are served meanwhile"
    seen = len(runner.all(ResponseChunk))
    assert seen == FIRST_CREDIT
    runner.send(Credit("r1", 10))
    for _ in range(10):
        runner.expect(ResponseChunk)
    runner.call(id="side", path="/release")
    assert len(runner.all(ResponseChunk)) == FIRST_CREDIT + 10
    runner.send(Credit("r1", 1000))
    runner.expect(ResponseEnd)
    assert b"".join(c.body for c in runner.all(ResponseChunk)) == b"".join(b"%d," % n for n in range(200))


def test_large_pieces_are_cut(runner: Runner) -> None:
    runner.request(path="/big")
    _, chunks, _ = _collect(runner)
    assert [len(chunk) for chunk in chunks] == [MAX_CHUNK_BYTES] * 3 + [5]


def test_a_caller_who_wants_one_answer_gets_one(runner: Runner) -> None:
    response = runner.call(path="/events", stream=False)
    assert response.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_a_stream_that_fails_says_so_at_its_end(runner: Runner) -> None:
    runner.request(path="/breaks")
    _, chunks, end = _collect(runner)
    assert chunks == [b"first"]
    assert end.error == "ValueError: half way"
    assert any("ValueError: half way" in line for line in runner.logs("ERROR"))


def test_cancel_stops_an_async_handler(runner: Runner) -> None:
    runner.request(path="/wait")
    _wait_for_line(runner, "waiting")
    runner.send(Cancel("r1"))
    response = runner.expect(Response)
    assert response.status == 499
    assert "stopped waiting" in runner.logs("STDOUT")
    assert not runner.logs("ERROR")


def test_cancel_is_seen_by_a_handler_that_asks(runner: Runner) -> None:
    runner.request(path="/polls")
    _wait_for_line(runner, "waiting")
    runner.send(Cancel("r1"))
    assert json.loads(runner.expect(Response).body) == {"disconnected": True}


def test_cancel_right_behind_its_request_still_gets_an_answer(runner: Runner) -> None:
    """A task that is cancelled before its first step never runs: the supervisor would count the slot as taken."""
    for _ in range(20):
        runner.request(path="/wait")
        runner.send(Cancel("r1"))
        assert runner.expect(Response).status == 499


def test_a_sync_handler_keeps_its_place_until_it_ends(runner: Runner) -> None:
    """Threads cannot be stopped. Reporting the slot as free would put a second model run on the same GPU."""
    runner.request(path="/blocks")
    _wait_for_line(runner, "waiting")
    runner.send(Cancel("r1"))
    runner.request("r2", path="/release")
    assert runner.expect(Response).id == "r2"
    cancelled = runner.expect(Response)
    assert (cancelled.id, cancelled.status) == ("r1", 499)


def test_cancel_ends_a_stream_without_credit(runner: Runner) -> None:
    runner.request(path="/endless")
    for _ in range(FIRST_CREDIT):
        runner.expect(ResponseChunk)
    runner.send(Cancel("r1"))
    assert runner.expect(ResponseEnd).error is not None
    runner.call(id="side", path="/release")
    assert "stream closed" in runner.logs("STDOUT")
    assert not runner.logs("ERROR")


def test_an_app_with_a_cancel_route_stops_in_its_own_way(runner: Runner) -> None:
    runner.request(path="/own")
    _wait_for_line(runner, "waiting")
    runner.send(Cancel("r1"))
    response = runner.expect(Response)
    assert (response.status, json.loads(response.body)) == (499, {"detail": "stopped by its own route"})
    assert "cancelling r1" in runner.logs("STDOUT")


def test_ping_is_answered_while_a_handler_runs(runner: Runner) -> None:
    runner.request(path="/blocks")
    _wait_for_line(runner, "waiting")
    runner.send(Ping(7))
    assert runner.expect(Pong).n == 7
    runner.request("r2", path="/release")
    runner.expect(Response)
