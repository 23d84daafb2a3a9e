"""Gateways and schedulers that die or freeze at the worst moment (F11, F12, F14), on a real platform."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from keepwarm import redis_server
from scheduler.store import Store, keys
from tests.chaos.havoc import of_role
from tests.support.loop import run
from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/basic.py"


@pytest.fixture(scope="module")
def own(start_platform: Callable[..., PlatformUnderTest]) -> Iterator[PlatformUnderTest]:
    platform = start_platform()
    yield platform
    platform.stop()


def redis(platform: PlatformUnderTest, *command: str) -> object:
    """A look behind the platform."""

    async def ask() -> object:
        store = await Store.connect(f"unix://{redis_server.socket_path(platform.data)}", platform.data)
        try:
            return await store._redis.command(*command)
        finally:
            await store.close()

    return run(ask())


def test_callers_of_a_killed_gateway_are_cut_off_and_their_requests_end(own: PlatformUnderTest) -> None:
    """F14: a hundred callers wait when the gateway dies. None hangs; what they had asked for ends like any other
    request; and the queued request that was accepted before has its result."""
    path = own.deploy(APPS, "Async", auth="private").removeprefix(own.url)
    assert own.process is not None
    with own.client() as client:
        client.post(path, json={}).raise_for_status()
        accepted = client.post(f"/queue{path}", json={"seconds": 1, "text": "kept"}).json()["request_id"]

        def call(_: int) -> int:
            try:
                with own.client(timeout=60) as caller:
                    return caller.post(path, json={"seconds": 1}).status_code
            except httpx.HTTPError:
                return 0

        with ThreadPoolExecutor(100) as pool:
            calls = [pool.submit(call, n) for n in range(100)]
            app = path.removeprefix("/")
            wait_until(lambda: redis(own, "XLEN", keys.queue_normal(app)), "callers to wait", 30)
            (gateway,) = of_role(own.process.pid, "gateway")
            gateway.kill()
            answers = {done.result() for done in calls}
        assert 0 in answers, "somebody was waiting"
        assert answers <= {0, 200}
        wait_until(
            lambda: not (redis(own, "XLEN", keys.queue_normal(app)) or redis(own, "ZCARD", keys.leases(app))),
            "every request to end",
            60,
        )
        assert client.get(f"/queue{path}/requests/{accepted}").json() == {"text": "kept"}
        assert client.post(path, json={"text": "after"}).json() == {"text": "after"}


@pytest.fixture
def second_scheduler(own: PlatformUnderTest) -> Iterator[subprocess.Popen[bytes]]:
    """Another scheduler beside the platform's own."""
    environ = {
        **os.environ,
        "KEEPWARM_REDIS_URL": f"unix://{redis_server.socket_path(own.data)}",
        "KEEPWARM_DATA": str(own.data),
    }
    with (own.data / "logs" / "second-scheduler.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-P", "-m", "scheduler"], env=environ, stdout=log, stderr=log)
    yield process
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait(20)


def leader(platform: PlatformUnderTest) -> int:
    """Pid of the scheduler that leads; 0 for none."""
    holder = redis(platform, "GET", keys.leader())
    if not isinstance(holder, bytes):
        return 0
    return int(holder.decode().removeprefix(f"{socket.gethostname()}-").split("-")[0])


def test_a_frozen_leader_is_replaced_and_changes_nothing_when_it_wakes(
    own: PlatformUnderTest, second_scheduler: subprocess.Popen[bytes]
) -> None:
    """F11: SIGSTOP for longer than the lead lasts. The other one starts the worker of a sleeping app; the first, awake
    again, must not start a second one."""
    path = own.deploy(APPS, "Counting", auth="private").removeprefix(own.url)
    wait_until(lambda: leader(own), "a leader")
    frozen = leader(own)
    os.kill(frozen, signal.SIGSTOP)
    try:
        wait_until(lambda: leader(own) not in (0, frozen), "the other one to lead", 30)
        with own.client() as client:
            first = client.post(path, json={}).raise_for_status().json()
    finally:
        os.kill(frozen, signal.SIGCONT)
    with own.client() as client:
        for calls in range(2, 6):
            again = client.post(path, json={}).raise_for_status().json()
            assert (again["born"], again["calls"]) == (first["born"], calls)
    assert len(own.workers(path.removeprefix("/"))) == 1
    assert leader(own) != frozen


def test_two_leaders_at_once_do_what_one_would(
    own: PlatformUnderTest, second_scheduler: subprocess.Popen[bytes]
) -> None:
    """F12: somebody deleted the leader's key while it led, again and again, and each time another one may lead."""
    path = own.deploy(APPS, "Wide", auth="private").removeprefix(own.url)
    epochs = set()
    with own.client() as client:
        sent = []
        for _ in range(8):
            redis(own, "DEL", keys.leader())
            sent.append(client.post(f"/queue{path}", json={"seconds": 0.1}).json()["request_id"])
            wait_until(lambda: leader(own), "a leader")
            epochs.add(redis(own, "GET", keys.leader_epoch()))
        requests = [f"/queue{path}/requests/{request_id}" for request_id in sent]
        wait_until(lambda: all(client.get(f"{r}/status").status_code == 200 for r in requests), "every result", 60)
        assert all("pid" in json.loads(client.get(request).text) for request in requests)
    assert len(epochs) == 8, "each lead has an epoch of its own"
    assert len(own.workers(path.removeprefix("/"))) <= 2, "never more workers than the app's max_concurrency"
