"""An idle worker lends its card and comes back with what it had loaded; the card is a pretended one, and a runner that
is suspended stands still as a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

ONE_CARD = {"KEEPWARM_SIMULATED_GPUS": "NVIDIA A100-SXM4-40GB:40960=1", "KEEPWARM_SUSPEND": "2"}
APPS = "tests/system/apps/lending.py"


class Apps:
    """What the platform says of apps that want the one card."""

    def __init__(self, platform: PlatformUnderTest) -> None:
        self.urls = {name: platform.deploy(APPS, name, auth="private") for name in ("First", "Second")}
        self._names = {name: url.removeprefix(f"{platform.url}/") for name, url in self.urls.items()}
        self._client = platform.client()

    def __enter__(self) -> Apps:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, name: str) -> dict[str, Any]:
        answer = self._client.post(self.urls[name], json={})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def shown(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get(f"/api/v1/apps/{self._names[name]}").json()
        return found

    def states(self, name: str) -> list[str]:
        return [worker["state"] for worker in self.shown(name)["workers"]]


def test_a_suspended_worker_lends_its_card_and_comes_back(start_platform: Callable[..., PlatformUnderTest]) -> None:
    platform = start_platform(environ=ONE_CARD)
    with Apps(platform) as apps:
        before = apps.call("First")
        wait_until(lambda: apps.states("First") == ["SUSPENDED"], "the idle worker to be suspended")
        assert psutil.Process(before["pid"]).status() == psutil.STATUS_STOPPED
        assert apps.shown("First")["suspension"] == "OK"

        assert apps.call("Second")["card"] == "0", "the card was free"
        assert apps.states("First") == ["SUSPENDED"]

        after = apps.call("First")
        assert (after["pid"], after["setups"], after["calls"]) == (before["pid"], 1, 2), "nothing was loaded again"
        (worker,) = apps.shown("First")["workers"]
        assert worker["start_kind"] == "resume"
        assert set(worker["stages"]) == {"resume", "total"}

    platform.stop()
    assert not psutil.pid_exists(before["pid"])


def test_suspended_workers_go_with_their_revision_and_their_app(
    start_platform: Callable[..., PlatformUnderTest],
) -> None:
    platform = start_platform(environ=ONE_CARD)
    with Apps(platform) as apps:
        first = apps.call("First")["pid"]
        wait_until(lambda: apps.states("First") == ["SUSPENDED"], "the idle worker to be suspended")
        platform.fal("apps", "rollout", "first")
        wait_until(lambda: not psutil.pid_exists(first), "the old worker to be ended")
        assert apps.call("First")["pid"] != first
        wait_until(lambda: apps.states("First") == ["SUSPENDED"], "the new worker to be suspended")
        platform.fal("apps", "delete", "first", "--yes")
        wait_until(lambda: apps.call("Second")["card"] == "0", "the card to be free")
    platform.stop()


def test_a_worker_that_cannot_come_back_is_ended_and_its_revision_not_tried_again(
    start_platform: Callable[..., PlatformUnderTest],
) -> None:
    """The runner does not survive what suspending does to it: the next call gets a new one, and those of this revision
    are ended from then on, as where nobody suspends."""
    platform = start_platform(environ=ONE_CARD | {"KEEPWARM_RUNNER_ENV": "DIE_ON_RESUME", "DIE_ON_RESUME": "1"})
    with Apps(platform) as apps:
        before = apps.call("First")
        wait_until(lambda: apps.states("First") == [], "the worker to be gone")
        assert apps.shown("First")["suspension"] == "it ended when it was resumed"
        assert apps.shown("First")["health"] == "OK", "it is no crash of the app"
        after = apps.call("First")
        assert (after["setups"], after["calls"]) == (1, 1)
        assert after["pid"] != before["pid"]
        wait_until(lambda: apps.states("First") == [], "its keep_alive to be over")
    platform.stop()
