"""A host that is small: what finds no room for its CPU type waits, says for what, and goes on when there is some."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/rooms.py"


def test_an_app_waits_for_room_and_gets_it(start_platform: Callable[..., PlatformUnderTest]) -> None:
    # So little that one XL takes all of it, on a large machine too.
    platform = start_platform(environ={"KEEPWARM_MEMORY_OVERCOMMIT": "0.01"})
    urls = {name: platform.deploy(APPS, name, auth="private") for name in ("Wide", "Next")}
    apps = {name: url.removeprefix(f"{platform.url}/") for name, url in urls.items()}
    with platform.client() as client:
        assert client.post(urls["Wide"], json={}).status_code == 200
        waiting = client.post(f"/queue/{apps['Next']}", json={}).json()

        def why() -> str:
            return str(client.get(f"/api/v1/apps/{apps['Next']}").json()["waiting"])

        # Just after its answer the other one's worker may still be written down as running.
        reason = "waiting for 8 cores and 30 GB of memory (XL): all are in use, by tester/wide (idle)."
        wait_until(lambda: reason in why(), "the reason to be said")
        platform.fal("apps", "scale", apps["Wide"], "--keep-alive", "0")
        wait_until(lambda: client.get(waiting["status_url"]).status_code == 200, "the first one to leave")
    platform.stop()
