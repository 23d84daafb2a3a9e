"""What becomes of open connections when a process on their way dies."""

from __future__ import annotations

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.platform import PlatformUnderTest
from tests.support.processes import command_of
from tests.support.waiting import wait_until
from tests.system.test_connections import APPS, end_of, opened
from tests.system.test_restarts import service

SOCKETS = "tester/faulty-sockets"


@pytest.fixture(scope="module")
def sockets(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "Sockets", "--app-name", "faulty-sockets")


def test_a_gateway_that_dies_ends_the_connection_for_caller_and_app(platform: PlatformUnderTest, sockets: str) -> None:
    """Its callers were gone with it and nobody told the app, which waited for a message until request_timeout."""
    with opened(f"{sockets}/echo") as socket:
        socket.send("before")
        assert socket.recv(60) == "before"
        victim = service(platform, "gateway")
        assert victim is not None
        victim.kill()
        with pytest.raises(ConnectionClosed):
            socket.recv(30)
    with platform.client() as client:
        wait_until(lambda: [1006, ""] in ends(client, sockets), "the app to hear of it", timeout=60)


def ends(client: httpx.Client, sockets: str) -> list[list[object]]:
    try:
        found: list[list[object]] = client.post(sockets).json()["ends"]
    except (httpx.HTTPError, ValueError, KeyError):
        return []
    return found


def test_a_supervisor_that_dies_ends_the_connection_with_a_reason(platform: PlatformUnderTest, sockets: str) -> None:
    with opened(f"{sockets}/echo") as socket:
        socket.send("before")
        assert socket.recv(60) == "before"
        [worker] = platform.workers(SOCKETS)
        supervisor_of(platform, worker["worker_id"]).kill()
        code, reason = end_of(socket, 90)
    assert code == 1011
    assert reason.startswith("runner_disconnected: ")


def supervisor_of(platform: PlatformUnderTest, worker_id: str) -> psutil.Process:
    assert platform.process is not None
    below = psutil.Process(platform.process.pid).children(recursive=True)
    return next(process for process in below if worker_id in command_of(process))


def test_a_connection_survives_a_restart_of_redis(platform: PlatformUnderTest, sockets: str) -> None:
    with opened(f"{sockets}/echo") as socket:
        socket.send("before")
        assert socket.recv(60) == "before"
        victim = service(platform, "valkey-server")
        assert victim is not None
        victim.kill()
        for number in range(20):
            socket.send(str(number))
        assert [socket.recv(60) for _ in range(20)] == [str(number) for number in range(20)]
        socket.close(4000, "after all")
    with platform.client() as client:
        wait_until(lambda: [4000, "after all"] in ends(client, sockets), "the close to reach the app")
