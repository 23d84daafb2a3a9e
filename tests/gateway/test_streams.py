"""Streamed answers: piece by piece as the app makes them, no faster than the caller takes them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import httpx
import msgpack
import pytest

from scheduler.store.records import Claimed, Outcome, RequestState
from tests.gateway.platform import JSON, RunningGateway, StubWorker
from tests.support.waiting import wait_until

EVENTS = [["content-type", "text/event-stream"], ["x-fal-stop-runner", "true"], ["transfer-encoding", "chunked"]]


def start(status: int = 200) -> bytes:
    packed: bytes = msgpack.packb([status, EVENTS])
    return packed


async def finish(worker: StubWorker, claim: Claimed, error: bytes = b"") -> Outcome:
    await worker.store.requests.append_output(claim, "end", error)
    return Outcome(200, (), b"")


def test_pieces_arrive_while_the_app_still_works(gateway: RunningGateway) -> None:
    """Were the answer collected first, the second piece would wait for ever: the app makes it only after the caller
    has seen the first."""
    seen_first = asyncio.Event()

    async def handler(worker: StubWorker, claim: Claimed) -> Outcome:
        append = worker.store.requests.append_output
        await append(claim, "start", start())
        await append(claim, "chunk", b'data: {"step": 1}\n\n')
        await seen_first.wait()
        await append(claim, "chunk", b"")
        await append(claim, "chunk", b'data: {"step": 2}\n\n')
        return await finish(worker, claim)

    app = gateway.app()
    worker = gateway.worker(app, handler)
    with gateway.client() as client, client.stream("POST", f"/{app}/stream", json={}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-fal-request-id"] == worker.claims[0].request_id
        assert "x-fal-stop-runner" not in answer.headers
        pieces = answer.iter_raw()
        assert next(pieces) == b'data: {"step": 1}\n\n'
        gateway.loop.call_soon_threadsafe(seen_first.set)
        assert b"".join(pieces) == b'data: {"step": 2}\n\n'


def test_the_connection_stays_usable_after_a_stream(gateway: RunningGateway) -> None:
    async def handler(worker: StubWorker, claim: Claimed) -> Outcome:
        if claim.path == "/plain":
            return Outcome(200, JSON, b"{}")
        await worker.store.requests.append_output(claim, "start", start(404))
        await worker.store.requests.append_output(claim, "chunk", b"nothing")
        return await finish(worker, claim)

    app = gateway.app()
    gateway.worker(app, handler)
    with gateway.client() as client:
        first = client.post(f"/{app}/stream")
        assert (first.status_code, first.content) == (404, b"nothing")
        assert client.post(f"/{app}/plain").content == b"{}"


def test_the_app_is_held_back_while_the_caller_takes_nothing(gateway: RunningGateway) -> None:
    """A slow reader of a fast app filled the store without bound."""
    piece = b"x" * 64 * 1024
    unread: list[int] = []

    async def handler(worker: StubWorker, claim: Claimed) -> Outcome:
        append = worker.store.requests.append_output
        await append(claim, "start", start())
        for _ in range(400):
            unread.append(await append(claim, "chunk", piece))
            while unread[-1] > 16:
                await asyncio.sleep(0.02)
                unread.append(await append(claim, "chunk", b""))
        return await finish(worker, claim)

    app = gateway.app()
    gateway.worker(app, handler)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.settimeout(10)
        connection.connect(gateway.address)
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % app.encode())
        wait_until(lambda: len(unread) > 40 and min(unread[-5:]) > 16, "the app waits for its reader")
        sent = len([count for count in unread if count <= 17])
        assert sent < 300
        received = 0
        while block := connection.recv(1 << 20):
            received += len(block)
    assert received > 400 * len(piece)


@pytest.mark.parametrize("ending", ["the app says so", "the worker is gone"])
def test_an_answer_that_breaks_off_does_not_look_complete(gateway: RunningGateway, ending: str) -> None:
    async def handler(worker: StubWorker, claim: Claimed) -> Outcome:
        await worker.store.requests.append_output(claim, "start", start())
        await worker.store.requests.append_output(claim, "chunk", b"half")
        if ending == "the app says so":
            return await finish(worker, claim, b"boom")
        return Outcome(503, JSON, b"{}", error_type="runner_disconnected")

    app = gateway.app()
    gateway.worker(app, handler)
    with gateway.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.post(f"/{app}/stream")


def test_a_caller_who_leaves_in_the_middle_stops_the_app(gateway: RunningGateway) -> None:
    async def handler(worker: StubWorker, claim: Claimed) -> None:
        await worker.store.requests.append_output(claim, "start", start())
        for _ in range(1000):
            if await worker.store.requests.append_output(claim, "chunk", b"more") < 0:
                return
            await asyncio.sleep(0.01)

    app = gateway.app()
    worker = gateway.worker(app, handler)
    with gateway.client() as client, client.stream("POST", f"/{app}/stream") as answer:
        next(answer.iter_raw())
    wait_until(lambda: worker.cancelled, "the worker was told to stop")
    state = gateway.call(gateway.store.requests.state(app, worker.claims[0].request_id))
    assert state is RequestState.CANCELLED


def test_a_caller_who_takes_nothing_is_cut_off(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(write_timeout=0.3)

    async def handler(worker: StubWorker, claim: Claimed) -> None:
        append = worker.store.requests.append_output
        await append(claim, "start", start())
        while await append(claim, "chunk", b"x" * 65536) >= 0:
            await asyncio.sleep(0.005)

    app = gateway.app()
    worker = gateway.worker(app, handler)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect(gateway.address)
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: x\r\n\r\n" % app.encode())
        wait_until(lambda: worker.cancelled, "the request was cancelled")
