"""Raw websockets through the whole platform: messages both ways, back-pressure, and every way in which one ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socket import SHUT_RDWR
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/sockets.py"


@pytest.fixture(scope="module")
def sockets(platform: PlatformUnderTest) -> str:
    """URL of a public app."""
    return platform.deploy(APPS, "Sockets")


@pytest.fixture(scope="module")
def single(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "Single")


@contextmanager
def opened(url: str, **options: Any) -> Iterator[ClientConnection]:
    options.setdefault("open_timeout", 60)
    with connect(url.replace("http", "ws", 1), proxy=None, max_size=None, **options) as socket:
        yield socket


def end_of(socket: ClientConnection, timeout: float = 30) -> tuple[int, str]:
    """The code and reason that the other side closes with; messages before it are read."""
    with pytest.raises(ConnectionClosed) as closed:
        read_on(socket, timeout)
    assert closed.value.rcvd is not None, closed.value
    return closed.value.rcvd.code, closed.value.rcvd.reason


def send_all(socket: ClientConnection, messages: list[str | bytes]) -> None:
    for message in messages:
        socket.send(message)


def read_on(socket: ClientConnection, timeout: float) -> None:
    while True:
        socket.recv(timeout)


def refusal_of(url: str, **options: Any) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as refused, opened(url, **options):
        pass
    response = refused.value.response
    return response.status_code, json.loads(response.body or b"null")


def test_text_and_bytes_go_both_ways_in_order(sockets: str) -> None:
    with opened(f"{sockets}/echo") as socket:
        assert socket.response is not None
        assert socket.response.headers["x-app"] == "here"
        assert socket.response.headers["x-fal-request-id"]
        sent: list[str | bytes] = ["héllo", b"\x00\xff", "", b"", "x" * 100_000]
        sent += [str(number) for number in range(300)]
        sender = threading.Thread(target=send_all, args=(socket, sent))
        sender.start()
        assert [socket.recv(30) for _ in sent] == sent
        sender.join()


def test_a_large_message_arrives_whole_and_a_larger_one_ends_the_connection(sockets: str) -> None:
    large = bytes(range(256)) * 4096 * 12
    with opened(f"{sockets}/echo", compression=None) as socket:
        socket.send(large)
        assert socket.recv(30) == large
        socket.send(b"x" * (16 * 1024 * 1024 + 1))
        assert end_of(socket)[0] == 1009


def test_the_app_chooses_the_subprotocol(sockets: str) -> None:
    with opened(f"{sockets}/echo", subprotocols=[Subprotocol("one"), Subprotocol("two")]) as socket:
        assert socket.subprotocol == "two"


def test_the_app_sees_who_calls_but_no_credentials(platform: PlatformUnderTest, sockets: str) -> None:
    key = {"Authorization": f"Key {platform.key}", "X-Own": "mine", "X-Fal-Endpoint": "a lie"}
    with opened(f"{sockets}/head?a=1&fal_jwt_token=secret", additional_headers=key) as socket:
        seen = json.loads(socket.recv(30))
        assert end_of(socket) == (1000, "")
    assert seen["query"] == {"a": "1"}
    assert seen["headers"]["x-own"] == "mine"
    assert seen["headers"]["x-fal-endpoint"] == "tester/sockets/head"
    assert not {"authorization", "sec-websocket-key"} & seen["headers"].keys()
    assert seen["url"].startswith("ws://127.0.0.1:")


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (3001, "as agreed"), (4999, "é" * 60)])
def test_the_apps_close_reaches_the_caller(sockets: str, code: int, reason: str) -> None:
    with opened(f"{sockets}/close") as socket:
        socket.send(f"{code} {reason}")
        assert end_of(socket) == (code, reason)


def test_the_callers_close_reaches_the_app(platform: PlatformUnderTest, sockets: str) -> None:
    with opened(f"{sockets}/echo") as socket:
        socket.send("last words")
        socket.recv(30)  # an app that still wanted to answer would hear 1006 from its framework
        socket.close(4321, "bye")
    with opened(f"{sockets}/echo") as socket:
        socket.send("hang up")
        socket.recv(30)
        socket.socket.shutdown(SHUT_RDWR)
    with platform.client() as client:

        def heard() -> list[list[object]]:
            ends: list[list[object]] = client.post(sockets).json()["ends"]
            return ends

        wait_until(lambda: len(heard()) >= 2, "both ends to reach the app")
        assert [4321, "bye"] in heard()
        assert [1006, ""] in heard()


@pytest.mark.parametrize(
    ("how", "reason"),
    [("app", "the picture is too dark"), ("raise", "RuntimeError: a secret of the app")],
)
def test_an_app_that_fails_closes_with_1011(sockets: str, how: str, reason: str) -> None:
    with opened(f"{sockets}/fail") as socket:
        socket.send(how)
        assert end_of(socket) == (1011, reason)


def test_a_runner_that_dies_closes_with_1011_and_the_next_connection_gets_another(sockets: str) -> None:
    with opened(f"{sockets}/fail") as socket:
        socket.send("die")
        code, reason = end_of(socket)
        assert code == 1011
        assert reason.startswith("runner_disconnected: The runner ended before it answered: the runner ended with exit")
    wait_until(lambda: says_again(f"{sockets}/echo"), "another runner")


def says_again(url: str) -> bool:
    """A connection that was handed to the dying worker is refused, as a call is: neither is tried again."""
    try:
        with opened(url) as socket:
            socket.send("again")
            return socket.recv(60) == "again"
    except InvalidStatus as refused:
        if refused.response.status_code != 503:
            raise
        return False


def test_an_app_may_refuse(sockets: str) -> None:
    assert refusal_of(f"{sockets}/refuse") == (403, {"detail": "The app refused the connection."})
    assert refusal_of(f"{sockets}/refuse?status=402") == (402, {"detail": "not today"})
    assert refusal_of(f"{sockets}/nothing") == (404, {"detail": "Path /nothing not found"})


def test_who_has_no_right_gets_no_connection(platform: PlatformUnderTest, sockets: str) -> None:
    private = platform.deploy(APPS, "Sockets", "--app-name", "private-sockets", auth="private")
    assert refusal_of(f"{private}/echo")[0] == 401
    assert refusal_of(f"{private}/echo", additional_headers={"Authorization": "Key no:key"})[0] == 401
    assert refusal_of(f"{private}/echo?fal_jwt_token=none")[0] == 401
    assert refusal_of(f"{platform.url}/tester/unheard-of/echo")[0] == 404
    assert refusal_of(f"{platform.url}/api/v1/apps")[0] == 404
    with platform.client() as client:
        other = client.post("/rest/tokens/", json={"allowed_apps": ["tester/sockets"], "token_expiration": 60}).json()
        good = client.post("/rest/tokens/", json={"allowed_apps": ["private-sockets"], "token_expiration": 60}).json()
    assert refusal_of(f"{private}/echo?fal_jwt_token={other}")[0] == 403
    with opened(f"{private}/echo?fal_jwt_token={good}") as socket:
        socket.send("hello")
        assert socket.recv(60) == "hello"


def test_a_caller_who_takes_nothing_holds_the_app_back(platform: PlatformUnderTest, sockets: str) -> None:
    """Bounded memory: of 6 GB that the app would send, only so much leaves it as buffers on the way take."""
    with platform.client() as client, opened(f"{sockets}/flood", compression=None, max_queue=1) as socket:
        first = client.post(f"{sockets}/flooded").json()
        last = wait_until(lambda: stands_still(client, sockets), "the app to be held back")
        assert first <= last < 1000
        for _ in range(last + 50):
            assert len(socket.recv(30)) == 65536
        assert client.post(f"{sockets}/flooded").json() > last


def stands_still(client: Any, sockets: str) -> int:
    seen = []
    for _ in range(20):
        seen.append(client.post(f"{sockets}/flooded").json())
    return seen[-1] if seen[0] == seen[-1] else 0


def test_an_app_that_takes_nothing_holds_its_caller_back(platform: PlatformUnderTest, sockets: str) -> None:
    with platform.client() as client, opened(f"{sockets}/deaf", compression=None) as socket:
        sent = []

        def send() -> None:
            for _ in range(1000):
                socket.send(b"x" * 65536)
                sent.append(65536)
            socket.send(b"!")

        sender = threading.Thread(target=send)
        sender.start()
        stuck = wait_until(lambda: (before := len(sent)) and len(stuck_at(client, sockets, sent)) == before, "a stop")
        assert stuck
        assert len(sent) < 900, "buffers of the kernel hold some, but not what is left"
        client.post(f"{sockets}/listen")
        assert json.loads(socket.recv(60)) == {"total": 65536 * 1000 + 1}
        sender.join()


def stuck_at(client: Any, sockets: str, sent: list[int]) -> list[int]:
    for _ in range(20):
        client.post(sockets)
    return list(sent)


def test_a_connection_takes_a_slot_and_a_call_waits_for_it(platform: PlatformUnderTest, single: str) -> None:
    with platform.client() as client:
        with opened(f"{single}/stay") as socket:
            pid = int(socket.recv(60))
            path = single.removeprefix(platform.url)
            queued = client.post(f"/queue{path}", json={}).json()
            [worker] = platform.workers("tester/single")
            assert worker["state"] == "RUNNING"
            assert client.get(queued["status_url"]).json()["status"] == "IN_QUEUE"
        wait_until(lambda: client.get(queued["status_url"]).status_code == 200, "the call to get the slot")
        assert client.get(queued["response_url"]).json() == {"pid": pid}


def test_a_caller_who_leaves_ends_code_that_does_not_notice(platform: PlatformUnderTest, single: str) -> None:
    with opened(f"{single}/forever") as socket:
        assert socket.recv(60) == "working"
    with platform.client() as client:
        wait_until(lambda: "stopped" in client.get("/api/v1/apps/tester/single/logs").text, "its code to be stopped")


def test_a_connection_longer_than_request_timeout_is_closed_and_its_worker_lives(platform: PlatformUnderTest) -> None:
    brief = platform.deploy(APPS, "Brief", "--app-name", "brief")
    app = "tester/brief"
    with opened(f"{brief}/stay") as socket:
        pid = socket.recv(60)
        assert end_of(socket) == (1008, "The connection was open for longer than request_timeout (2 s).")
    with platform.client() as client:
        assert str(client.post(brief).json()["pid"]) == pid
    wait_until(lambda: not platform.workers(app), "its worker to end after keep_alive", timeout=30)


def test_a_new_revision_and_a_deletion_close_what_is_open(platform: PlatformUnderTest) -> None:
    app = platform.deploy(APPS, "Single", "--app-name", "replaced")
    with opened(f"{app}/stay") as socket:
        first = socket.recv(60)
        platform.deploy(APPS, "Single", "--app-name", "replaced")
        assert end_of(socket) == (1012, "The worker is being replaced or stopped. Connect again.")
    with opened(f"{app}/stay") as socket:
        assert socket.recv(60) != first
        platform.fal("apps", "delete", "replaced", "--yes")
        assert end_of(socket)[0] == 1012
