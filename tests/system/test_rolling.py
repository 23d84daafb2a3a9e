"""Ten requests a second while workers are replaced, by a deploy and by wear: no caller notices."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

SOURCE = """
import os
import fal

class Steady(fal.App, keep_alive=30, min_concurrency=1, max_concurrency=1, recycle_after_requests=20):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self) -> dict:
        return {"pid": os.getpid(), "version": VERSION}
"""


class Callers:
    """A call every tenth of a second, whatever becomes of the ones before."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[int] = Counter()
        self.pids: set[int] = set()
        self.versions: set[int] = set()
        self._url = url
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clock = threading.Thread(target=self._tick)

    def __enter__(self) -> Callers:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._clock.join()
        for thread in self._threads:
            thread.join(60)

    def _tick(self) -> None:
        while not self._stop.is_set():
            thread = threading.Thread(target=self._call)
            thread.start()
            self._threads.append(thread)
            time.sleep(0.1)

    def _call(self) -> None:
        answer = httpx.post(self._url, json={}, trust_env=False, timeout=60)
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            body: dict[str, Any] = answer.json()
            self.pids.add(body["pid"])
            self.versions.add(body["version"])


def test_a_deploy_and_worn_runners_cost_no_caller_anything(platform: PlatformUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "steady.py"
    file.write_text(f"VERSION = 1\n{SOURCE}")
    url = platform.deploy(file, "Steady")
    with Callers(url) as callers:
        wait_until(lambda: len(callers.pids) >= 2, "a worn runner to be replaced", timeout=60)
        file.write_text(f"VERSION = 2\n{SOURCE}")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        platform.deploy(file, "Steady")
        wait_until(lambda: 2 in callers.versions, "the new revision to answer", timeout=60)
        wait_until(
            lambda: {worker["state"] for worker in platform.workers("tester/steady")} <= {"IDLE", "RUNNING"},
            "the old runner to be gone",
        )
        # recreate: the old runner goes first, and who calls meanwhile waits for the new one
        file.write_text(f"VERSION = 3\n{SOURCE}")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        platform.deploy(file, "Steady", "--strategy", "recreate")
        wait_until(lambda: 3 in callers.versions, "the newest revision to answer", timeout=60)
    assert set(callers.statuses) == {200}, callers.statuses
    assert "requests (recycle_after_requests)" in platform.fal("logs", "tester/steady").stdout
