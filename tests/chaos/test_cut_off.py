"""One host of several is cut off from Redis while everybody else is not (F19)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from keepwarm import redis_server
from scheduler.store.scripts import SCRIPTS
from tests.chaos.link import proxy_thread
from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

#: Comes first of two hosts with as many workers.
FAR = "0-far"
#: Each execution signs its folder with its pid, and ends when the test wishes.
APPS = """
import os, time
from pathlib import Path
import fal
from pydantic import BaseModel


class Order(BaseModel):
    folder: str


class First(fal.App, keep_alive=300, max_concurrency=1):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, order: Order) -> dict:
        mine = Path(order.folder, str(os.getpid()))
        mine.touch()
        while not mine.with_suffix(".go").exists():
            time.sleep(0.02)
        mine.with_suffix(".ended").touch()
        return {"pid": os.getpid()}


class Second(First, keep_alive=300, max_concurrency=1):
    machine_type = "XS"
"""


@contextlib.contextmanager
def second_host(platform: PlatformUnderTest, redis_url: str) -> Iterator[None]:
    """Another host's agent on the platform's data folder, as on a shared filesystem."""
    own = {"KEEPWARM_REDIS_URL": redis_url, "KEEPWARM_DATA": str(platform.data), "KEEPWARM_HOST_ID": FAR}
    with (platform.data / "logs" / "far.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpu_worker"], env={**os.environ, **own}, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        below = psutil.Process(agent.pid).children(recursive=True)
        agent.terminate()
        agent.wait(60)
        assert not psutil.wait_procs(below, timeout=10)[1]


def alive(platform: PlatformUnderTest) -> set[str]:
    with platform.client() as client:
        hosts = client.get("/api/v1/hosts").raise_for_status().json()["items"]
    return {host["host"] for host in hosts if host["alive"]}


def executions(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if not path.suffix}


@pytest.mark.timeout(180)
def test_a_host_that_is_cut_off_loses_its_requests_and_serves_again_when_it_is_back(
    start_platform: Callable[..., PlatformUnderTest], tmp_path: Path
) -> None:
    """Its runner works on, and has its result ready when the link is back: the request runs elsewhere by then, and that
    one counts."""
    platform = start_platform()
    file, folder = tmp_path / "apps.py", tmp_path / "executions"
    file.write_text(APPS)
    folder.mkdir()
    real, finish = f"unix://{redis_server.socket_path(platform.data)}", SCRIPTS["finish"].sha.encode()
    with (
        proxy_thread(real, tmp_path) as (proxy, loop, url),
        second_host(platform, url),
        platform.client() as client,
    ):
        wait_until(lambda: len(alive(platform)) == 2, "both hosts")
        (near,) = alive(platform) - {FAR}
        path = platform.deploy(file, "First", auth="private").removeprefix(platform.url)
        app = path.removeprefix("/")
        sent = client.post(f"/queue{path}", json={"folder": str(folder)}).raise_for_status().json()["request_id"]
        (first,) = wait_until(lambda: executions(folder), "the request to run", 60)
        assert [worker["host"] for worker in platform.workers(app)] == [FAR]

        loop.call_soon_threadsafe(setattr, proxy, "silent", True)

        (second,) = wait_until(lambda: executions(folder) - {first}, "the request to run elsewhere", 90)
        assert {worker["host"] for worker in platform.workers(app) if worker["state"] == "RUNNING"} == {near}
        assert alive(platform) == {near}
        proxy.writes.clear()
        (folder / f"{first}.go").touch()
        wait_until((folder / f"{first}.ended").exists, "the runner that is cut off to have its result")
        assert psutil.pid_exists(first), "its supervisor tries to tell it"

        loop.call_soon_threadsafe(proxy.heal)

        wait_until(lambda: FAR in alive(platform), "the host to be back")
        wait_until(lambda: not psutil.pid_exists(first), "its worker to hear that it has lost everything")
        assert any(finish in written for written in proxy.writes), "it has tried to tell its result"
        status = client.get(f"/queue{path}/requests/{sent}/status").json()
        assert status["status"] == "IN_PROGRESS", "the late result was refused"
        (folder / f"{second}.go").touch()
        result = f"/queue{path}/requests/{sent}"
        wait_until(lambda: client.get(f"{result}/status").json()["status"] == "COMPLETED", "the request to end")
        assert client.get(result).json() == {"pid": second}
        assert executions(folder) == {first, second}

        other = platform.deploy(file, "Second", auth="private").removeprefix(platform.url)
        client.post(f"/queue{other}", json={"folder": str(folder)}).raise_for_status()
        (third,) = wait_until(lambda: executions(folder) - {first, second}, "an app that the host serves", 60)
        (folder / f"{third}.go").touch()
        assert [worker["host"] for worker in platform.workers(other.removeprefix("/"))] == [FAR]
    platform.stop()
