"""Whoever asks why a request waits is told in one sentence, from its cold start to its turn."""

from __future__ import annotations

from pathlib import Path

from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until


def test_the_cause_is_named_as_it_changes(platform: PlatformUnderTest, tmp_path: Path) -> None:
    url = platform.deploy("tests/system/apps/gated.py", "Gated", auth="private")
    app, gate = url.removeprefix(f"{platform.url}/"), tmp_path / "gate"
    with platform.client() as client:

        def waiting() -> str:
            return str(client.get(f"/api/v1/apps/{app}").json()["waiting"])

        assert waiting() == "None"
        made = [client.post(f"/queue/{app}", json={"gate": str(gate)}).json() for _ in range(2)]
        wait_until(lambda: "(setup() runs); it is the revision's first" in waiting(), "the start to be told")
        wait_until(lambda: "busy, and max_concurrency is 1" in waiting(), "the limit to be told")
        assert "1 request waits, the first for" in " ".join(platform.fal("apps", "show", app).stdout.split())
        gate.touch()
        wait_until(lambda: all(client.get(each["status_url"]).status_code == 200 for each in made), "both to be served")
        assert waiting() == "None"
        told = client.get(made[0]["response_url"]).headers["server-timing"]
        times = dict(part.split(";dur=") for part in told.split(", "))
        (worker,) = platform.workers(app)
        times["start"] = times.pop(f"start;desc={worker['start_kind']}")
        assert int(times["queue"]) >= int(times["setup"]) >= 2000
        assert {"environment", "spawn", "boot", "import", "setup", "start", "queue"} == set(times)
        warm = client.post(url, json={"gate": str(gate)})
        assert "server-timing" not in warm.headers
        last_start = client.get(f"/api/v1/apps/{app}").json()["last_start"]
        assert last_start["total"] > last_start["setup"] > 2
