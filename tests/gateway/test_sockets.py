"""Connections at the gateway: handshakes that wait, are refused or cannot be read, and what ends one from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from scheduler.store.pieces import pack_accept, pack_close, pack_messages, unpack_close, unpack_messages
from scheduler.store.records import Claimed, Outcome, RequestState
from tests.gateway.platform import JSON, RunningGateway, StubWorker
from tests.support.waiting import wait_until

SWITCHED = Outcome(101, (), b"")


@contextmanager
def opened(gateway: RunningGateway, path: str, **options: Any) -> Iterator[ClientConnection]:
    with connect(f"ws{gateway.url.removeprefix('http')}{path}", proxy=None, open_timeout=20, **options) as found:
        yield found


def closed(found: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as end:
        found.recv(20)
    assert end.value.rcvd is not None
    return end.value.rcvd.code, end.value.rcvd.reason


def refused(gateway: RunningGateway, path: str) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as end, opened(gateway, path):
        pass
    return end.value.response.status_code, json.loads(end.value.response.body or b"null")


async def accept(worker: StubWorker, claim: Claimed, subprotocol: str | None = None) -> None:
    await worker.store.requests.append_output(claim, "accept", pack_accept(subprotocol, (("x-app", "here"),)))


async def hear(worker: StubWorker, claim: Claimed) -> tuple[list[str | bytes], tuple[int, str]]:
    """Everything that the caller says, up to its close."""
    said: list[str | bytes] = []
    after = "0"
    while True:
        for piece_id, kind, data in await worker.store.connections.read_input(claim.app, claim.request_id, after):
            after = piece_id
            if kind == "close":
                return said, unpack_close(data)
            said += unpack_messages(data)
        await asyncio.sleep(0.005)


async def greet(worker: StubWorker, claim: Claimed) -> Outcome:
    await accept(worker, claim)
    await worker.store.requests.append_output(claim, "messages", pack_messages(["hello", b"\x00"]))
    said, (code, reason) = await hear(worker, claim)
    return Outcome(101, JSON, json.dumps([said, code, reason]).encode())


def test_a_connection_is_a_direct_request(gateway: RunningGateway) -> None:
    app = gateway.app()
    worker = gateway.worker(app, greet)
    with opened(gateway, f"/{app}/live?a=1") as found:
        assert [found.recv(20), found.recv(20)] == ["hello", b"\x00"]
        found.send("over")
        found.close(4000, "and out")
    [claim] = worker.claims
    assert (claim.mode, claim.method, claim.path, claim.query) == ("direct", "WEBSOCKET", "/live", "a=1")
    record = ended(gateway, claim)
    assert record.state is RequestState.COMPLETED
    assert json.loads(record.outcome.body) == [["over"], 4000, "and out"]


def ended(gateway: RunningGateway, claim: Claimed) -> Any:
    def look() -> Any:
        record = gateway.call(gateway.store.requests.get(claim.app, claim.request_id))
        return record if record is not None and record.state.terminal else None

    return wait_until(look, "the request to end")


@pytest.fixture
def hasty(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Opens connections at once, whatever the app does."""
    return start_gateway(accept_after=0.0)


def test_while_an_app_starts_its_callers_are_let_in(hasty: RunningGateway) -> None:
    app = hasty.app()
    with opened(hasty, f"/{app}") as found:
        found.send("early")
        assert found.response is not None
        assert "x-app" not in found.response.headers
        hasty.worker(app, greet)
        assert found.recv(20) == "hello"


def test_but_not_those_who_offer_subprotocols(hasty: RunningGateway) -> None:
    """Only the app can choose one, and a handshake cannot be made twice."""

    async def choose(worker: StubWorker, claim: Claimed) -> Outcome:
        await accept(worker, claim, "two")
        await hear(worker, claim)
        return SWITCHED

    app = hasty.app()
    threading.Timer(0.3, hasty.worker, (app, choose)).start()
    with opened(hasty, f"/{app}", subprotocols=[Subprotocol("one"), Subprotocol("two")]) as found:
        assert found.subprotocol == "two"


def test_one_who_was_let_in_hears_why_it_did_not_work(hasty: RunningGateway) -> None:
    async def refuse(worker: StubWorker, claim: Claimed) -> Outcome:
        return Outcome(503, JSON, b'{"detail": "not today"}', error_type="startup_timeout")

    app = hasty.app()
    with opened(hasty, f"/{app}") as found:
        hasty.worker(app, refuse)
        assert closed(found) == (1011, "startup_timeout: not today")


def test_what_the_app_answers_before_it_opens_is_the_handshakes_answer(gateway: RunningGateway) -> None:
    async def refuse(worker: StubWorker, claim: Claimed) -> Outcome:
        return Outcome(402, JSON, b'{"detail": "pay first"}')

    app = gateway.app()
    gateway.worker(app, refuse)
    assert refused(gateway, f"/{app}") == (402, {"detail": "pay first"})


def test_who_leaves_before_the_app_is_there_is_forgotten(hasty: RunningGateway) -> None:
    app = hasty.app()
    with opened(hasty, f"/{app}"):
        pass
    worker = hasty.worker(app, greet)
    with opened(hasty, f"/{app}") as found:
        assert found.recv(20) == "hello"
    assert len(worker.claims) == 1


def test_a_cancelled_connection_closes(gateway: RunningGateway) -> None:
    app = gateway.app()
    worker = gateway.worker(app, greet)
    with opened(gateway, f"/{app}") as found:
        found.recv(20)
        gateway.call(gateway.store.requests.cancel(app, worker.claims[0].request_id))
        found.recv(20)
        assert closed(found) == (1001, "The connection was cancelled.")


def test_an_app_that_goes_on_after_its_caller_left_is_cancelled(gateway: RunningGateway) -> None:
    async def deaf(worker: StubWorker, claim: Claimed) -> Outcome:
        await accept(worker, claim)
        while claim.request_id not in worker.cancelled:
            await asyncio.sleep(0.01)
        return SWITCHED

    app = gateway.app()
    worker = gateway.worker(app, deaf)
    with opened(gateway, f"/{app}"):
        pass
    record = ended(gateway, worker.claims[0])
    assert (record.state, record.error_type) == (RequestState.CANCELLED, "client_disconnected")


def test_a_caller_who_vanishes_behind_what_nobody_takes_is_noticed(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end stood behind messages that the app did not take: the app kept its place until request_timeout."""
    monkeypatch.setattr("gateway.server.PING_SECONDS", 0.2)
    pinging = start_gateway()

    async def deaf(worker: StubWorker, claim: Claimed) -> Outcome:
        await accept(worker, claim)
        while claim.request_id not in worker.cancelled:
            await asyncio.sleep(0.01)
        return SWITCHED

    app = pinging.app()
    worker = pinging.worker(app, deaf)
    with opened(pinging, f"/{app}") as found:
        flood = threading.Thread(target=send_for_ever, args=(found,))
        flood.start()

        def stuck() -> bool:
            claim = worker.claims[0]
            unread = pinging.call(pinging.store.connections.unread_input(app, claim.request_id))
            return unread > 0 and not select.select([], [found.socket], [], 0)[1]

        wait_until(stuck, "the caller to be held back")
        found.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        found.socket.shutdown(socket.SHUT_RDWR)
        found.socket.close()
        flood.join(20)
    record = ended(pinging, worker.claims[0])
    assert (record.state, record.error_type) == (RequestState.CANCELLED, "client_disconnected")


def send_for_ever(found: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed, OSError):
        while True:
            found.send(b"x" * 65536)


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [(1000, "", (1000, "")), (1006, "never sent", (1000, "never sent")), (4999, "é" * 100, (4999, "é" * 61))],
)
def test_a_close_is_what_a_frame_can_carry(
    gateway: RunningGateway, code: int, reason: str, told: tuple[int, str]
) -> None:
    async def close(worker: StubWorker, claim: Claimed) -> Outcome:
        await accept(worker, claim)
        await worker.store.requests.append_output(claim, "close", pack_close(code, reason))
        return SWITCHED

    app = gateway.app()
    gateway.worker(app, close)
    with opened(gateway, f"/{app}") as found:
        assert closed(found) == told


def test_a_gateway_that_stops_says_so(start_gateway: Callable[..., RunningGateway]) -> None:
    stopping = start_gateway(stop_grace=1.0)
    app = stopping.app()
    stopping.worker(app, greet)
    with opened(stopping, f"/{app}") as found:
        found.recv(20)
        found.recv(20)
        threading.Thread(target=stopping.stop).start()
        assert closed(found)[0] == 1012


def test_no_more_connections_than_callers_may_wait(start_gateway: Callable[..., RunningGateway]) -> None:
    small = start_gateway(max_waiting=1, accept_after=0.0)
    app = small.app()
    with opened(small, f"/{app}"):
        assert refused(small, f"/{app}")[0] == 503


HANDSHAKE = (
    b"GET /nobody/nothing HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HANDSHAKE, b"404"),
        (HANDSHAKE.replace(b"Version: 13", b"Version: 8"), b"400"),
        (HANDSHAKE.replace(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""), b"400"),
        (HANDSHAKE.replace(b"Key: dGhlIHNhbXBsZSBub25jZQ==", b"Key: short"), b"400"),
        (HANDSHAKE.replace(b"/nothing", b"/" + b"n" * 9000), b"400"),
        (HANDSHAKE.replace(b"GET", b"POST"), b"404"),
    ],
)
def test_handshakes_that_are_none(gateway: RunningGateway, sent: bytes, status: bytes) -> None:
    """What is no handshake is answered in one line and costs no traceback."""
    with socket.create_connection(gateway.address, timeout=20) as raw:
        raw.sendall(sent)
        assert raw.recv(65536).startswith(b"HTTP/1.1 " + status)


def test_frames_that_cannot_be_read_end_the_connection(gateway: RunningGateway) -> None:
    app = gateway.app()
    gateway.worker(app, greet)
    handshake = HANDSHAKE.replace(b"/nobody/nothing", f"/{app}".encode())
    frames = {b"\x81\x84\x00\x00\x00\x00\xff\xff\xff\xff": b"\x03\xef", b"\x83\x80\x00\x00\x00\x00": b"\x03\xea"}
    for frame, code in frames.items():
        with socket.create_connection(gateway.address, timeout=20) as raw:
            raw.sendall(handshake)
            received = b""
            while b"hello" not in received:
                received += raw.recv(65536)
            raw.sendall(frame)
            while code not in received:
                more = raw.recv(65536)
                assert more, received
                received += more
