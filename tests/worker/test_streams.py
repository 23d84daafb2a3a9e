"""The bound on a streamed answer: what the runner may send, and what may lie unread."""

from __future__ import annotations

import asyncio

import pytest
from fal._runner import serving as runner

from gpu_worker.streams import FIRST_CREDIT, AnswerStream, Kind, StreamBroken
from scheduler.store.errors import StoreUnavailable
from scheduler.store.records import Claimed
from tests.support.loop import run

CLAIM = Claimed("a/b", "r", 1, "direct", "POST", "/", "", (), b"", "http://x", "g", 0, "w")


class Store:
    """Where pieces go; ``answers`` is what each append returns."""

    def __init__(self, answer: int = 1) -> None:
        self.pieces: list[tuple[Kind, bytes]] = []
        self.answer = answer
        self.granted = 0

    async def append(self, claim: Claimed, kind: Kind, data: bytes) -> int:
        self.pieces.append((kind, data))
        await asyncio.sleep(0)
        return self.answer

    async def unread(self, app: str, request_id: str) -> int:
        return 0

    def grant(self, chunks: int) -> None:
        self.granted += chunks


def test_both_sides_begin_with_the_same_credit() -> None:
    assert FIRST_CREDIT == runner.FIRST_CREDIT


def test_pieces_that_wait_travel_together_and_are_granted_again() -> None:
    async def story() -> Store:
        store = Store()
        stream = AnswerStream(CLAIM, store.append, store.unread, store.grant)
        for number in range(10):
            stream.chunk(b"%d" % number)
        stream.end()
        assert await stream.run(200, [(b"Content-Type", b"text/plain")])
        return store

    store = run(story())
    assert [kind for kind, _ in store.pieces] == ["start", "chunk", "end"]
    assert store.pieces[1][1] == b"0123456789"
    assert store.granted == 10


def test_more_than_was_granted_is_a_breach() -> None:
    async def story() -> None:
        store = Store()
        stream = AnswerStream(CLAIM, store.append, store.unread, store.grant)
        for _ in range(FIRST_CREDIT):
            stream.chunk(b"x")
        with pytest.raises(StreamBroken):
            stream.chunk(b"x")

    run(story())


def test_nothing_more_is_stored_for_a_cancelled_request() -> None:
    async def story() -> Store:
        store = Store(answer=-1)
        stream = AnswerStream(CLAIM, store.append, store.unread, store.grant)
        stream.chunk(b"x")
        stream.end()
        assert await stream.run(200, [])
        return store

    store = run(story())
    assert [kind for kind, _ in store.pieces] == ["start"]
    assert store.granted == 1


def test_a_store_that_is_away_ends_the_stream() -> None:
    class Away(Store):
        async def append(self, claim: Claimed, kind: Kind, data: bytes) -> int:
            raise StoreUnavailable

    async def story() -> bool:
        store = Away()
        return await AnswerStream(CLAIM, store.append, store.unread, store.grant).run(200, [])

    assert run(story()) is False
