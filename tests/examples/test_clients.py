"""The client scripts as a user runs them, against a private app."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.platform import ROOT, PlatformUnderTest
from tests.support.waiting import wait_until

CLIENTS = ROOT / "examples" / "clients"


@pytest.fixture(scope="module")
def private(platform: PlatformUnderTest) -> str:
    """URL of an app that asks for a key."""
    return platform.deploy("examples/hello.py", "Hello", "--app-name", "private-hello", auth="private")


def run(platform: PlatformUnderTest, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CLIENTS / script), *arguments],
        env=platform.shell(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("script", ["wait.py", "submit_and_poll.py"])
def test_result_on_standard_output(platform: PlatformUnderTest, private: str, script: str) -> None:
    done = run(platform, script, private, '{"name": "Ada"}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["greeting"] == "Hello, Ada!"


@pytest.mark.parametrize("script", ["wait.py", "submit_and_poll.py"])
def test_the_apps_refusal_is_shown(platform: PlatformUnderTest, private: str, script: str) -> None:
    done = run(platform, script, private, '{"name": 1}')
    assert done.returncode == 1
    assert "422" in done.stderr
    assert "name" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def receiver(platform: PlatformUnderTest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A running receiver: its URL and the file that holds its output."""
    results, said = tmp_path / "results", tmp_path / "said"
    with results.open("w") as output, said.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(CLIENTS / "webhook_receiver.py"), platform.url, "--port", "0"],
            env=platform.shell(),
            stdout=output,
            stderr=errors,
        )
    try:
        wait_until(lambda: said.read_text().startswith("listening on "), "the receiver to listen")
        yield said.read_text().split()[2], results
    finally:
        process.terminate()
        process.wait(10)


def test_webhook_receiver(platform: PlatformUnderTest, private: str, receiver: tuple[str, Path]) -> None:
    """It prints what the platform signed, and refuses the same body from anybody else."""
    url, results = receiver
    path = private.removeprefix(platform.url)
    with platform.client() as client:
        forged = client.post(url, json={"request_id": "forged", "status": "OK"})
        assert forged.status_code == 401
        submitted = client.post(f"/queue{path}", params={"fal_webhook": url}, json={"name": "Ada"}).json()
        wait_until(lambda: results.read_text().endswith("\n"), "the platform's call", timeout=60)
    [line] = results.read_text().splitlines()
    result = json.loads(line)
    assert (result["request_id"], result["status"]) == (submitted["request_id"], "OK")
    assert result["payload"]["greeting"] == "Hello, Ada!"
