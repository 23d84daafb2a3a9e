"""`keepwarm up` keeps its services alive, and when it is stopped nothing is left."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from tests.support.platform import BIN, PlatformUnderTest, command_environ
from tests.support.waiting import wait_until

APPS = "tests/system/apps/basic.py"


@pytest.fixture
def own(start_platform: Callable[..., PlatformUnderTest]) -> Iterator[PlatformUnderTest]:
    platform = start_platform()
    yield platform
    platform.stop()


def below(platform: PlatformUnderTest) -> list[psutil.Process]:
    assert platform.process is not None
    return psutil.Process(platform.process.pid).children(recursive=True)


def service(platform: PlatformUnderTest, word: str) -> psutil.Process | None:
    """The child whose command line holds ``word``; Redis servers rewrite theirs, so the program's name counts too."""
    for process in below(platform):
        try:
            if word in process.cmdline() or process.name() == word:
                return process
        except psutil.Error:
            continue
    return None


@pytest.mark.parametrize("word", ["gateway", "scheduler", "gpu_worker", "keepwarm.jobs", "valkey-server"])
def test_a_killed_service_comes_back(platform: PlatformUnderTest, word: str) -> None:
    """Any one service is killed; callers see at most one failed answer and then everything works as before."""
    url = platform.deploy(APPS, "Counting", auth="private")
    with platform.client() as client:
        assert client.post(url, json={}).status_code == 200
        victim = wait_until(lambda: service(platform, word), f"a process of {word}")
        assert victim is not None
        victim.kill()
        victim.wait(10)

        def answered() -> bool:
            try:
                return client.post(url, json={}, timeout=30).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(answered, f"an answer after {word} was killed", timeout=60)
        again = wait_until(lambda: service(platform, word), f"{word} to run again", timeout=60)
        assert again is not None
        assert again.pid != victim.pid


def test_one_signal_stops_everything(own: PlatformUnderTest) -> None:
    url = own.deploy(APPS, "Counting", auth="private")
    with own.client() as client:
        assert client.post(url, json={}).status_code == 200
    own.stop()
    assert not (own.data / "platform.json").exists()
    assert own.process is not None
    assert own.process.returncode == 0


def test_a_second_signal_forces(own: PlatformUnderTest) -> None:
    """A request that would run for minutes does not keep a forced platform alive."""
    url = own.deploy(APPS, "Counting", auth="private")
    assert own.process is not None
    with own.client() as client:
        client.post(f"/queue{url.removeprefix(own.url)}", json={"seconds": 300}).raise_for_status()
        wait_until(
            lambda: any(w["state"] == "RUNNING" for w in own.workers("tester/counting")), "the request to run", 60
        )
    processes = below(own)
    own.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in own.log.read_text(), "the first signal to be taken")
    own.process.send_signal(signal.SIGTERM)
    own.process.wait(20)
    _, left = psutil.wait_procs(processes, timeout=10)
    assert not left, [p.cmdline() for p in left]


def test_a_second_platform_on_the_same_folder_is_refused(own: PlatformUnderTest) -> None:
    second = subprocess.run(
        [str(BIN / "keepwarm"), "up", "--port", "0", "--data", str(own.data)],
        env=command_environ(own.data),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert f"already runs on {own.data} at {own.url}" in second.stderr
    assert httpx.get(f"{own.url}/health", trust_env=False).status_code == 200


def test_a_killed_platform_leaves_nothing_behind_for_long(own: PlatformUnderTest) -> None:
    """`keepwarm up` was killed with -9 while a request ran: its Redis ended, and the agent kept the worker for 40
    seconds more, with its memory and its GPU, for a result that nobody could store."""
    url = own.deploy(APPS, "Counting", auth="private")
    assert own.process is not None
    with own.client() as client:
        client.post(f"/queue{url.removeprefix(own.url)}", json={"seconds": 300}).raise_for_status()
        wait_until(
            lambda: any(w["state"] == "RUNNING" for w in own.workers("tester/counting")), "the request to run", 60
        )
    processes = below(own)
    own.process.kill()
    own.process.wait(10)
    _, left = psutil.wait_procs(processes, timeout=8)
    assert not left, [p.cmdline() for p in left]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_platform_restarted_under_load_loses_nothing(own: PlatformUnderTest, number: signal.Signals) -> None:
    """Thirty accepted requests, some running, most waiting; the platform goes and comes back on the same folder. Every
    one of them ends with its own answer."""
    path = own.deploy(APPS, "Wide", auth="private").removeprefix(own.url)
    with own.client() as client:
        sent = [
            client.post(f"/queue{path}", json={"seconds": 0.2}).raise_for_status().json()["request_id"]
            for _ in range(30)
        ]
        first = f"/queue{path}/requests/{sent[0]}"
        wait_until(lambda: client.get(f"{first}/status").status_code == 200, "the first answer", 60)
    processes = below(own)
    assert own.process is not None
    own.process.send_signal(number)
    own.process.wait(60)
    _, left = psutil.wait_procs(processes, timeout=10)
    assert not left, [p.cmdline() for p in left]

    own.start()
    with own.client() as client:
        requests = [f"/queue{path}/requests/{request_id}" for request_id in sent]
        wait_until(
            lambda: all(client.get(f"{request}/status").status_code == 200 for request in requests),
            "every request to end",
            timeout=90,
            interval=0.2,
        )
        for request in requests:
            answer = client.get(request)
            assert (answer.status_code, list(answer.json())) == (200, ["pid"]), answer.text
