"""Runners are asked for their health, and one that is ill is replaced without its callers noticing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform import ROOT, PlatformUnderTest
from tests.support.waiting import wait_until
from tests.system.test_rolling import Callers

APPS = ROOT / "tests" / "system" / "apps" / "patient.py"
CHECKED = 0.5


@pytest.fixture(scope="module")
def clinic(start_platform: Callable[..., PlatformUnderTest]) -> PlatformUnderTest:
    """A platform that asks every half second instead of every fifteen."""
    return start_platform(environ={"KEEPWARM_HEALTH_SECONDS": str(CHECKED)})


def ready(clinic: PlatformUnderTest, app: str) -> dict[str, Any]:
    def found() -> dict[str, Any]:
        return next((worker for worker in clinic.workers(app) if worker["ready_at"]), {})

    return wait_until(found, f"a runner of {app} to be ready", timeout=60)


def test_an_ill_runner_stays_until_another_one_serves_and_no_caller_notices(
    clinic: PlatformUnderTest, tmp_path: Path
) -> None:
    ill, hold = tmp_path / "ill", tmp_path / "hold"
    file = tmp_path / "patient.py"
    file.write_text(APPS.read_text().replace("/nowhere", str(tmp_path)))
    url = clinic.deploy(file, "Patient")
    first = ready(clinic, "tester/patient")
    with Callers(url) as callers:
        wait_until(lambda: callers.pids, "the first answers", timeout=60)
        (pid,) = callers.pids
        wait_until(lambda: callers.statuses[200] >= 20, "a check to pass meanwhile")
        hold.touch()
        ill.write_text(str(pid))

        def both() -> list[dict[str, Any]]:
            workers = clinic.workers("tester/patient")
            return workers if len(workers) == 2 else []

        old, new = wait_until(both, "its successor to be started beside it", timeout=60)
        assert (old["worker_id"], old["unhealthy"], new["unhealthy"]) == (first["worker_id"], True, False)
        why = 'health check POST /check failed 3 times in a row, last: 500 {"detail":"the tiles are out"}'
        assert old["retiring"] == why
        said = " ".join(clinic.fal("apps", "runners", "patient").stdout.split())
        assert "(unhealthy, being replaced)" in said
        assert f"{old['worker_id']}: {why}." in said
        assert "UNHEALTHY" in clinic.fal("apps", "show", "patient").stdout
        hold.unlink()
        wait_until(lambda: len(callers.pids) == 2, "the successor to answer", timeout=60)
        wait_until(lambda: len(clinic.workers("tester/patient")) == 1, "the ill runner to be gone", timeout=60)
    assert set(callers.statuses) == {200}, callers.statuses
    assert (
        f"This runner is replaced: {why}." in clinic.fal("runners", "logs", old["worker_id"], "--app", "patient").stdout
    )
    with clinic.client() as client:

        def trusted() -> bool:
            return bool(client.get("/api/v1/apps/tester/patient").json()["health"] == "OK")

        wait_until(trusted, "the successor to have served and passed a check")


def test_on_demand_a_runner_is_asked_after_a_500_alone(clinic: PlatformUnderTest) -> None:
    url = clinic.deploy(APPS, "OnDemand", "--app-name", "on-demand")
    ready(clinic, "tester/on-demand")
    with clinic.client() as client:
        for status in (200, 404, 200):
            assert client.post(url, json={"status": status}).status_code == status
        assert client.post(url, json={}).json() == {"checks": []}

        assert client.post(url, json={"status": 500}).status_code == 500

        def asked() -> Any:
            return client.post(url, json={}).json()["checks"]

        assert wait_until(asked, "the runner to be asked") == ["1"]


def test_a_revision_whose_runners_all_fall_ill_is_held_back(clinic: PlatformUnderTest) -> None:
    """Each new runner passes once. Without a pause that grows, the app would be started all the time."""
    clinic.deploy(APPS, "Frail")
    with clinic.client() as client:

        def held_back() -> dict[str, Any]:
            shown: dict[str, Any] = client.get("/api/v1/apps/tester/frail").json()
            return shown if shown["next_start_at"] else {}

        shown = wait_until(held_back, "the app to be held back", timeout=60)
        assert shown["health"] == "UNHEALTHY"
        assert str(shown["last_crash"]).startswith("health check POST /check failed once, last: 500")
        longer = re.compile(r"its workers fail one after the other; next try in [34]\.\d s")
        wait_until(
            lambda: longer.search(clinic.fal("logs", "frail").stdout), "the third pause, of four seconds", timeout=90
        )
    clinic.fal("apps", "delete", "frail", "--yes")
