"""A sleeping app's second start is a fork: the environment's zygote has imported what the first one did."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import psutil

from tests.support.platform import PlatformUnderTest
from tests.support.processes import command_of
from tests.support.waiting import wait_until

APPS = "tests/system/apps/basic.py"


def woken(platform: PlatformUnderTest, url: str) -> dict[str, Any]:
    """The worker that the next call starts, the app having fallen asleep."""
    wait_until(lambda: not platform.workers("tester/sleepy"), "the idle worker to leave", timeout=30)
    answer = httpx.post(url, json={}, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    (worker,) = platform.workers("tester/sleepy")
    return worker


def zygotes(platform: PlatformUnderTest) -> list[psutil.Process]:
    assert platform.process is not None
    below = psutil.Process(platform.process.pid).children(recursive=True)
    return [process for process in below if "--zygote" in command_of(process)]


def test_the_next_worker_is_forked_and_every_surface_says_so(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "Sleepy")

    def forked() -> dict[str, Any] | None:
        worker = woken(platform, url)
        return worker if worker["start_kind"] == "zygote" else None

    worker = wait_until(forked, "a start from the zygote", timeout=90)
    assert worker is not None
    assert {"environment", "spawn", "boot", "import", "setup", "total"} <= worker["stages"].keys()
    assert zygotes(platform)

    def shown() -> str:
        httpx.post(url, json={}, trust_env=False, timeout=120)
        return platform.fal("runners", "list", "tester/sleepy").stdout

    wait_until(lambda: "zygote" in " ".join(shown().split()), "the command shows it", timeout=60)


def test_zygotes_can_be_switched_off(start_platform: Callable[..., PlatformUnderTest]) -> None:
    platform = start_platform("--no-zygote")
    url = platform.deploy(APPS, "Sleepy")
    assert [woken(platform, url)["start_kind"] for _ in range(3)] == ["spawn"] * 3
    assert zygotes(platform) == []
    # What starts have shown is kept all the same: their files are read ahead.
    (file,) = (platform.data / "starts").glob("*.json")
    assert json.loads(file.read_text())["no_zygote"] is None
