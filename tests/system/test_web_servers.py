"""Functions with a web server of their own, and served ones, through `fal deploy` and `fal run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until
from tests.system.running import Running, curl

APPS = Path(__file__).parent / "apps" / "web_servers.py"


@pytest.fixture(scope="module")
def shop(platform: PlatformUnderTest) -> str:
    return platform.deploy(APPS, "shop", "--app-name", "shop")


def test_every_path_and_method_is_the_servers(shop: str, platform: PlatformUnderTest) -> None:
    with platform.client() as client:
        found = client.get(f"{shop}/items/7", params={"q": "a b"}).json()
        assert (found["number"], found["q"], found["loaded"]) == (7, "a b", "weights")
        assert client.get(f"{shop}/items/x").status_code == 422
        assert client.get(f"{shop}/nowhere").status_code == 404
        assert client.post(f"{shop}/items/1").status_code == 405
        assert client.post(f"{shop}/length", content=b"x" * 3_000_000).json() == {"length": 3_000_000}
        with client.stream("POST", f"{shop}/ticks/stream") as answer:
            assert [line for line in answer.iter_lines() if line] == ["data: 0", "data: 1", "data: 2"]
        document = client.get("/api/v1/apps/tester/shop/openapi.json").json()
        assert "/items/{number}" in document["paths"]
        queued = client.post("/queue/tester/shop/length", content=b"abc").json()
        url = queued["response_url"]
        wait_until(lambda: client.get(url).status_code == 200, "the queued call's answer")
        assert client.get(url).json() == {"length": 3}
    wait_until(lambda: "item 7" in platform.fal("logs", "shop").stdout, "the server's own lines in the log")


def test_websockets_are_the_servers(shop: str) -> None:
    with connect(f"ws{shop.removeprefix('http')}/echo", proxy=None) as socket:
        socket.send("hello")
        assert socket.recv(timeout=30) == "HELLO"
        socket.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "as you say")


def test_a_rolling_deploy_has_two_workers_on_one_host(shop: str, platform: PlatformUnderTest) -> None:
    """The new one starts while the old one serves; both want the port 8123."""
    with platform.client() as client:
        before = client.get(f"{shop}/items/1").json()["pid"]
        assert platform.deploy(APPS, "shop", "--app-name", "shop") == shop
        wait_until(
            lambda: client.get(f"{shop}/items/1").json()["pid"] != before, "the new worker to answer", timeout=60
        )


def test_a_port_that_never_opens_is_one_clear_message(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "deaf", "--app-name", "deaf")
    with platform.client() as client:
        answer = client.post(url)
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (504, "startup_timeout")
    assert "not ready within startup_timeout (2 s), while nothing listened on its exposed_port 8124" in answer.text
    platform.fal("apps", "delete", "deaf", "--yes")


def test_a_served_function_is_deployed(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "served", "--app-name", "served")
    with platform.client() as client:
        assert client.post(url, params={"number": 2}).json() == {"loaded": "weights", "number": 2}
        shown = platform.fal("deploy", f"{APPS}::shop", "--app-name", "shop-two", "--check").stdout
    assert "exposed_port" in shown
    platform.fal("apps", "delete", "served", "--yes")


def test_fal_run_of_both_kinds(home: Path) -> None:
    running = Running(home, f"{APPS}::shop", "--machine-type", "S")
    try:
        assert json.loads(curl(f"{running.url()}/items/3"))["number"] == 3
        wait_until(lambda: "item 3" in running.output, "what the server prints")
    finally:
        assert running.interrupt() == 0, running.output
    running = Running(home, f"{APPS}::served")
    try:
        body = json.dumps(5)
        told = curl("-X", "POST", f"{running.url()}?number=5", "-H", "Content-Type: application/json", "-d", body)
        assert json.loads(told) == {"loaded": "weights", "number": 5}
    finally:
        assert running.interrupt() == 0, running.output


def test_here_such_a_function_is_called_by_itself(platform: PlatformUnderTest) -> None:
    done = platform.fal("run", f"{APPS}::shop", "--local", check=False)
    assert done.returncode == 1
    assert "call shop.run_local() in Python" in done.stderr
