"""keep_alive, min_concurrency and max_concurrency do what their names say; deploys leave running requests alone."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

APPS = "tests/system/apps/basic.py"


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url, json=body, trust_env=False, timeout=120)


def test_never_above_max_and_the_rest_waits(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "Wide")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: post(url, seconds=0.5), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.json()["pid"] for answer in answers}) == 2
    assert len(platform.workers("tester/wide")) == 2


def test_from_zero_and_back_after_keep_alive(platform: PlatformUnderTest) -> None:
    url = platform.deploy(APPS, "Sleepy")
    assert platform.workers("tester/sleepy") == []
    first = post(url).json()["pid"]
    assert post(url).json()["pid"] == first
    wait_until(lambda: not platform.workers("tester/sleepy"), "the idle worker to leave", timeout=30)
    again = post(url)
    assert again.status_code == 200
    assert again.json()["pid"] != first


def test_min_stays_warm_without_traffic(platform: PlatformUnderTest) -> None:
    platform.deploy(APPS, "Warm")

    def states() -> list[str]:
        return [worker["state"] for worker in platform.workers("tester/warm")]

    wait_until(lambda: states() == ["IDLE"], "one warm worker though nobody called", timeout=60)
    worker = platform.workers("tester/warm")[0]["worker_id"]
    # keep_alive is one second: three of the scheduler's passes later the same worker must still be there.
    answered = [post(f"{platform.url}/tester/warm").status_code for _ in range(3)]
    assert answered == [200, 200, 200]
    assert [w["worker_id"] for w in platform.workers("tester/warm")] == [worker]


def test_a_new_deploy_lets_running_requests_finish(platform: PlatformUnderTest, tmp_path: Path) -> None:
    """The second revision answers at once while the first one's request still runs to its end."""
    file = tmp_path / "versions.py"
    source = (
        "import time\nimport fal\nfrom pydantic import BaseModel\n\n"
        "class Input(BaseModel):\n    seconds: float = 0\n\n"
        "class Versions(fal.App, keep_alive=30, max_concurrency=2):\n    machine_type = 'XS'\n\n"
        "    @fal.endpoint('/')\n    def run(self, request: Input) -> dict:\n"
        "        time.sleep(request.seconds)\n        return {'version': VERSION}\n"
    )
    file.write_text("VERSION = 1\n" + source)
    url = platform.deploy(file, "Versions")
    assert post(url).json() == {"version": 1}
    slow: list[Any] = []
    caller = threading.Thread(target=lambda: slow.append(post(url, seconds=8)))
    caller.start()
    wait_until(
        lambda: any(w["state"] == "RUNNING" for w in platform.workers("tester/versions")), "the slow request to run"
    )
    file.write_text("VERSION = 2\n" + source)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    platform.deploy(file, "Versions")
    wait_until(lambda: post(url).json() == {"version": 2}, "the new revision to answer", timeout=60)
    caller.join(60)
    assert slow[0].status_code == 200
    assert slow[0].json() == {"version": 1}


def test_a_failed_build_leaves_the_old_revision(platform: PlatformUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "stable.py"
    source = (
        "import fal\nfrom pydantic import BaseModel\n\nclass Input(BaseModel):\n    pass\n\n"
        "class Stable(fal.App):\n    machine_type = 'XS'\n    requirements = {requirements}\n\n"
        "    @fal.endpoint('/')\n    def run(self, request: Input) -> dict:\n        return {{'ok': True}}\n"
    )
    file.write_text(source.format(requirements=[]))
    url = platform.deploy(file, "Stable")
    file.write_text(source.format(requirements=["six==99.0"]))
    refused = platform.fal("deploy", f"{file}::Stable", check=False)
    shown = refused.stdout + refused.stderr
    assert refused.returncode == 1
    assert "six==99.0" in shown
    assert post(url).json() == {"ok": True}
