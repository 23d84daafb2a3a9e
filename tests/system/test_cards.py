"""Several apps and one card, through the whole platform; the card is a pretended one."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

ONE_CARD = {"KEEPWARM_SIMULATED_GPUS": "NVIDIA A100-SXM4-40GB:40960=1"}
TWO_CARDS = {"KEEPWARM_SIMULATED_GPUS": "NVIDIA A100-SXM4-40GB:40960=2"}


def test_two_share_a_card_a_third_waits_and_an_important_one_gets_it(
    start_platform: Callable[..., PlatformUnderTest],
) -> None:
    platform = start_platform(environ=ONE_CARD)
    urls = {
        name: platform.deploy("tests/system/apps/cards.py", name, auth="private")
        for name in ("Small", "Other", "Third", "Whole")
    }
    apps = {name: url.removeprefix(f"{platform.url}/") for name, url in urls.items()}
    with platform.client() as client:

        def shown(name: str) -> dict[str, object]:
            found: dict[str, object] = client.get(f"/api/v1/apps/{apps[name]}").json()
            return found

        pids = set()
        for name in ("Small", "Other"):
            answer = client.post(urls[name], json={}).json()
            assert answer["cards"] == "0"
            pids.add(answer["pid"])
        assert len(pids) == 2
        wait_until(lambda: shown("Small")["gpu_peak_mb"], "what the worker uses to be learned")

        third = client.post(f"/queue/{apps['Third']}", json={}).json()
        wait_until(lambda: "by tester/other (idle)" in str(shown("Third")["waiting"]), "the holders to be named")
        assert "15 GB of a GPU-A100" in str(shown("Third")["waiting"])

        platform.fal("apps", "scale", apps["Third"], "--app-priority", "10")
        wait_until(lambda: client.get(third["status_url"]).status_code == 200, "one idle worker to make room")
        left = [name for name in ("Small", "Other") if shown(name)["workers"]]
        assert len(left) == 1, "no more than needed"

        platform.fal("apps", "scale", apps["Whole"], "--app-priority", "20")
        assert client.post(urls["Whole"], json={}).json()["cards"] == "0"
        assert [name for name in apps if shown(name)["workers"]] == ["Whole"]
    platform.stop()


def test_two_cards_for_one_runner_are_counted(start_platform: Callable[..., PlatformUnderTest]) -> None:
    platform = start_platform(environ=TWO_CARDS)
    url = platform.deploy("tests/system/apps/cards.py", "Pair")
    with platform.client() as client:
        assert client.post(url, json={}).json() == {"cards": "0,1"}
    held = json.loads(platform.fal("apps", "gpus", "pair", "--json").stdout)
    assert held == {"total": 2, "gpus": {"GPU-A100": 2}}
    assert "GPU-A100" in platform.fal("runners", "gpus").stdout
    platform.stop()
