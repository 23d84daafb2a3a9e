"""Health checks through the whole platform: an ill runner is replaced, and its app's callers do not notice."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

OFTEN = {"KEEPWARM_HEALTH_SECONDS": "0.3"}
APPS = "tests/system/apps/ailing.py"


def test_an_ill_runner_is_replaced_before_it_goes(start_platform: Callable[..., PlatformUnderTest]) -> None:
    platform = start_platform(environ=OFTEN)
    url = platform.deploy(APPS, "Ailing", auth="private")
    with platform.client() as client:

        def pid() -> int:
            answer = client.post(url, json={})
            assert answer.status_code == 200, answer.text
            return int(answer.json()["pid"])

        before = pid()
        assert client.post(url, json={"fall_ill": True}).status_code == 200
        wait_until(lambda: pid() != before, "another runner to serve")
        wait_until(lambda: not psutil.pid_exists(before), "the ill one to leave")
        log = platform.fal("logs", "ailing").stdout
        assert "This runner is replaced: health check POST /check failed 2 times in a row, last: 500" in log
        assert "the model answers nonsense" in log
        shown = client.get(f"/api/v1/apps/{url.removeprefix(platform.url + '/')}").json()
        assert shown["health_check"]["path"] == "/check"
        assert [worker["unhealthy"] for worker in shown["workers"]] == [False]
    platform.stop()


def test_a_check_on_demand_is_made_after_an_answer_that_nobody_can_explain(
    start_platform: Callable[..., PlatformUnderTest],
) -> None:
    platform = start_platform(environ=OFTEN)
    url = platform.deploy(APPS, "OnDemand", auth="private")
    with platform.client() as client:

        def asked() -> int:
            return int(client.post(url, json={}).json()["asked"])

        assert asked() == 0
        assert client.post(url, json={"fail": True}).status_code == 500
        wait_until(lambda: asked() >= 1, "the runner to be asked")
    platform.stop()
