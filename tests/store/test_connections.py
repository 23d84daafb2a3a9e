"""Input of connections, and the lanes that both directions travel by: in order, once, and no more than is read."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from scheduler.store import Lane, keys
from scheduler.store.errors import StoreFull
from scheduler.store.lanes import MOST_HELD, MOST_UNREAD, MOST_UNREAD_BYTES, PIECE_BYTES
from scheduler.store.pieces import unpack_close, unpack_messages
from tests.store.scene import APP, Scene, scene
from tests.support.waiting import await_until

pytestmark = pytest.mark.anyio


def lane_of(s: Scene, request_id: str) -> Lane:
    """A lane as the gateway has it."""
    numbers = iter(range(1, 1_000_000))

    async def append(kind: str, data: bytes) -> int:
        return await s.store.connections.append_input(APP, request_id, next(numbers), kind, data)  # type: ignore[arg-type]

    return Lane(append, partial(s.store.connections.unread_input, APP, request_id))


async def test_input_tells_the_worker_and_is_deleted_when_read(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        inbox = await s.worker("w1")
        claim = await s.claimed(inbox, mode="direct")
        heard: list[str] = []
        inbox.heard = heard.append
        connections, request_id = s.store.connections, claim.request_id
        assert await connections.append_input(APP, request_id, 1, "messages", b"one") == 1
        assert await connections.append_input(APP, request_id, 2, "messages", b"two") == 2
        pieces = await connections.read_input(APP, request_id)
        assert [data for _, _, data in pieces] == [b"one", b"two"]
        assert await connections.unread_input(APP, request_id) == 2
        assert await connections.read_input(APP, request_id, pieces[-1][0]) == []
        assert await connections.unread_input(APP, request_id) == 0

        async def told() -> bool:
            return heard == [request_id] * 2

        await await_until(told, "the worker to be told")
        await connections.append_input(APP, request_id, 3, "close", b"")
        assert 0 < await s.redis("PTTL", keys.input(APP, request_id)) <= 600_000
        await connections.drop_input(APP, request_id)
        assert await s.redis("EXISTS", keys.input(APP, request_id)) == 0


async def test_input_of_a_connection_that_waits_or_is_over_is_refused(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        waiting = await s.submit(mode="direct")
        assert await s.store.connections.append_input(APP, waiting, 1, "messages", b"early") == -1
        inbox = await s.worker("w1")
        claim = await inbox.next()
        assert await s.store.connections.unread_input(APP, claim.request_id) == 0
        await s.requests.cancel(APP, claim.request_id)
        assert await s.store.connections.append_input(APP, claim.request_id, 1, "messages", b"late") == -1
        assert await s.store.connections.unread_input(APP, claim.request_id) == -1
        assert await s.redis("EXISTS", keys.input(APP, claim.request_id)) == 0


async def test_input_is_refused_when_memory_is_full(redis_url: str, tmp_path: Path) -> None:
    """Answers must find room, so what would make more work is what is refused."""
    async with scene(redis_url, tmp_path) as s:
        claim = await s.claimed(await s.worker("w1"), mode="direct", gateway="g1")
        await s.redis("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(StoreFull):
                await s.store.connections.append_input(APP, claim.request_id, 1, "messages", b"more")
            assert await s.requests.append_output(claim, "messages", b"answer") == 1
        finally:
            await s.redis("CONFIG", "SET", "maxmemory", 0)


async def test_a_lane_keeps_the_order_packs_small_messages_and_ends_with_the_close(
    redis_url: str, tmp_path: Path
) -> None:
    async with scene(redis_url, tmp_path) as s:
        claim = await s.claimed(await s.worker("w1"), mode="direct")
        lane = lane_of(s, claim.request_id)
        sent: list[str | bytes] = ["text", b"bytes", "", b"x" * (PIECE_BYTES - 20), b"y" * 100, "last"]
        for message in sent:
            lane.add(message)
        lane.close(4000, "done")
        lane.close(1000, "not this one")
        lane.add("nor this")
        assert await lane.run()
        pieces = await s.store.connections.read_input(APP, claim.request_id)
        assert [kind for _, kind, _ in pieces] == ["messages", "messages", "close"]
        assert [message for _, _, data in pieces[:-1] for message in unpack_messages(data)] == sent
        assert unpack_close(pieces[-1][2]) == (4000, "done")


@pytest.mark.parametrize(("size", "most"), [(10, MOST_UNREAD + 1), (1024 * 1024, MOST_UNREAD_BYTES // (1024 * 1024))])
async def test_a_lane_stores_no_more_than_its_reader_takes(
    redis_url: str, tmp_path: Path, size: int, most: int
) -> None:
    """Whoever writes waits for room; what is stored is bounded by pieces and by bytes."""
    async with scene(redis_url, tmp_path) as s:
        claim = await s.claimed(await s.worker("w1"), mode="direct")
        request_id, connections = claim.request_id, s.store.connections
        lane = lane_of(s, request_id)
        running = asyncio.create_task(lane.run())
        count = 40 if size > 1000 else 4000
        written: list[int] = []

        async def write() -> None:
            for number in range(count):
                lane.add(b"%d " % number + b"x" * size)
                await lane.room()
                written.append(number)
            lane.close(1000, "")

        writing = asyncio.create_task(write())

        async def full() -> bool:
            return await connections.unread_input(APP, request_id) == most

        await await_until(full, "the lane to be full")
        got: list[int] = []
        after = "0"
        while not running.done():
            assert await connections.unread_input(APP, request_id) <= most
            assert len(written) - len(got) <= 100 * (most + MOST_HELD)
            pieces = await connections.read_input(APP, request_id, after)
            for piece_id, kind, data in pieces:
                after = piece_id
                if kind == "messages":
                    got += [int(bytes(m).split(b" ")[0]) for m in unpack_messages(data) if isinstance(m, bytes)]
            await asyncio.sleep(0)
        await writing
        assert await running
        for _, kind, data in await connections.read_input(APP, request_id, after):
            if kind == "messages":
                got += [int(bytes(m).split(b" ")[0]) for m in unpack_messages(data) if isinstance(m, bytes)]
        assert got == list(range(count))


async def test_a_lane_ends_when_nobody_reads_any_more(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path) as s:
        claim = await s.claimed(await s.worker("w1"), mode="direct")
        lane = lane_of(s, claim.request_id)
        await s.requests.cancel(APP, claim.request_id)
        lane.add("lost")
        assert not await lane.run()
        for _ in range(2 * MOST_HELD):
            lane.add("lost")
        await lane.room()
