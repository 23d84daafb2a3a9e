"""A day with a deployed app, by the ``fal`` command alone: secrets, rollout, check, strategy, rollback, /data, stop."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import httpx

from tests.envbuilder.builds import write_source_package
from tests.support.platform import PlatformUnderTest
from tests.support.waiting import wait_until

SOURCE = """
import os

import fal


class Tended(fal.App, keep_alive=60, max_concurrency=2, min_concurrency=1):
    machine_type = "XS"
    secrets = ["TOKEN"]

    @fal.endpoint("/")
    def run(self) -> dict:
        token, other = os.environ.get("TOKEN"), "OTHER" in os.environ
        return {"version": VERSION, "pid": os.getpid(), "token": token, "other": other}
"""


def call(url: str) -> dict[str, Any]:
    answer = httpx.post(url, json={}, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_secrets_rollout_and_rollback(platform: PlatformUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "tended.py"
    file.write_text("VERSION = 1\n" + SOURCE)
    assert "TOKEN, which is not set" in platform.fal("deploy", f"{file}::Tended", "--check").stdout
    platform.fal("secrets", "set", "TOKEN=first-value", "OTHER=not-listed")
    url = platform.deploy(file, "Tended")
    first = call(url)
    assert first == {"version": 1, "pid": first["pid"], "token": "first-value", "other": False}

    platform.fal("secrets", "set", "TOKEN=second-value")
    assert call(url)["token"] == "first-value", "a runner keeps what it started with"
    platform.fal("apps", "rollout", "tended")
    wait_until(lambda: call(url)["token"] == "second-value", "the runner to be replaced", timeout=60)

    (old,) = json.loads(platform.fal("apps", "list-rev", "tended", "--json").stdout)
    file.write_text("VERSION = 2\n" + SOURCE)
    shown = platform.fal("deploy", f"{file}::Tended", "--check").stdout
    assert "file tended.py" in shown
    assert "changed" in shown
    platform.deploy(file, "Tended", "--strategy", "recreate", "-m", "the second")
    wait_until(lambda: call(url)["version"] == 2, "the second revision to serve", timeout=60)
    platform.fal("apps", "set-rev", "tended", old["revision"])
    wait_until(lambda: call(url)["version"] == 1, "the first revision to serve again", timeout=60)


def test_a_runner_is_replaced_before_it_stops_and_killed_when_told_to(
    platform: PlatformUnderTest, tmp_path: Path
) -> None:
    file = tmp_path / "kept.py"
    file.write_text("VERSION = 1\n" + SOURCE.replace("Tended", "Kept"))
    url = platform.deploy(file, "Kept")

    def runner() -> str:
        """The one runner that serves and stays."""
        workers = [w for w in platform.workers("tester/kept") if not w["retiring"] and w["state"] == "IDLE"]
        return str(workers[0]["worker_id"]) if len(workers) == 1 else ""

    pid, first = call(url)["pid"], wait_until(runner, "one idle runner", timeout=60)
    platform.fal("runners", "stop", first, "--replace-first")
    second = wait_until(lambda: runner() not in ("", first) and runner(), "another runner in its place", timeout=60)
    wait_until(lambda: call(url)["pid"] != pid, "the other runner to answer", timeout=30)
    platform.fal("runners", "kill", str(second))
    wait_until(lambda: all(w["worker_id"] != second for w in platform.workers("tester/kept")), "it to be gone", 30)
    assert call(url)["version"] == 1


def test_a_staging_app_has_the_secrets_of_staging(platform: PlatformUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "stage.py"
    file.write_text("VERSION = 1\n" + SOURCE.replace("Tended", "Shop"))
    platform.fal("environments", "create", "staging")
    platform.fal("secrets", "set", "TOKEN=of-staging", "--env", "staging")
    platform.fal("deploy", f"{file}::Shop", "--env", "staging", "--auth", "public")
    assert call(f"{platform.url}/tester/shop--staging")["token"] == "of-staging"
    listed = json.loads(platform.fal("apps", "list", "--env", "staging", "--json").stdout)
    assert [app["app"] for app in listed] == ["tester/shop--staging"]


LOCAL = """
import fal


class Till(fal.App, keep_alive=60):
    machine_type = "XS"
    requirements = ["./shopkit"]

    @fal.endpoint("/")
    def run(self) -> dict:
        import shopkit

        return {"price": shopkit.PRICE, "from": shopkit.__file__}
"""


def test_a_project_of_this_machine_is_a_requirement(platform: PlatformUnderTest, tmp_path: Path) -> None:
    write_source_package(tmp_path, "shopkit", module="PRICE = 7\n")
    with tarfile.open(tmp_path / "shopkit-1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "shopkit-1.0").rename(tmp_path / "shopkit")
    (tmp_path / "till.py").write_text(LOCAL)
    answer = call(platform.deploy(tmp_path / "till.py", "Till"))
    assert answer["price"] == 7
    assert "site-packages" in answer["from"]


def test_a_command_beside_a_runner(platform: PlatformUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "beside.py"
    file.write_text("VERSION = 1\n" + SOURCE.replace("Tended", "Beside"))
    call(platform.deploy(file, "Beside"))
    runner = platform.workers("tester/beside")[0]["worker_id"]
    script = "import os; open('/data/by-hand.txt', 'w').write('x'); print(os.path.exists('beside.py'))"
    done = platform.fal("runners", "exec", runner, "python", "-c", script)
    assert done.stdout == "True\n"
    assert "by-hand.txt" in platform.fal("files", "list").stdout
    done = platform.fal(
        "runners", "exec", "--app", "beside", runner, "--", "sh", "-c", "echo to >&2; exit 7", check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (7, "to\n", "")
    with platform.client() as client:
        for command in (None, [], [1], "ls", ["x" * 70_000]):
            url = f"/api/v1/apps/tester/beside/workers/{runner}/exec"
            assert client.post(url, json={"command": command}).status_code == 400
