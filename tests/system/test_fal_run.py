"""`fal run` and curl, as the README tells a newcomer to do it, on a machine where nothing runs yet."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.platform import BIN, ROOT, command_environ
from tests.support.waiting import wait_until
from tests.system.running import Running, curl, processes_of


def test_run_curl_interrupt(home: Path) -> None:
    """The main job: one command, a URL, one curl with nothing but the body, and nothing left afterwards."""
    running = Running(home, "examples/hello.py::Hello")
    url = running.url()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[a-z0-9-]+/[0-9a-f-]{36}", url), url
    answer = curl("-X", "POST", url, "-H", "Content-Type: application/json", "-d", '{"name": "Ada"}')
    assert "Ada" in json.dumps(json.loads(answer)), answer
    assert running.interrupt() == 0, running.output
    with pytest.raises(subprocess.CalledProcessError):
        curl("-X", "POST", url, "-d", "{}")
    assert not processes_of(home), "fal run ended before the platform that it had started"


SLOW = """
import time

import fal


class Slow(fal.App):
    @fal.endpoint("/")
    def run(self) -> int:
        print("at work", flush=True)
        time.sleep(6)
        return 1
"""


def test_an_interrupt_during_a_request_says_what_is_waited_for(home: Path) -> None:
    """Ctrl-C while a request ran: the command said "Removed", and then nothing for up to half a minute."""
    (home / "slow.py").write_text(SLOW)
    running = Running(home, str(home / "slow.py"))
    url = running.url()
    caller = subprocess.Popen(["curl", "-sS", "--noproxy", "*", "-X", "POST", url, "-d", "{}"], stdout=subprocess.PIPE)
    wait_until(lambda: "at work" in running.output, "the request to run", timeout=60)
    assert running.interrupt() == 0, running.output
    caller.communicate(timeout=30)
    said = running.lines.index(
        "Waiting for the platform to stop: a request that still runs has 30 s to finish. Ctrl-C leaves it to itself."
    )
    assert running.lines[said - 1].startswith("Removed")


def test_two_runs_share_one_platform(home: Path) -> None:
    """Two developers' terminals: the second run uses the first one's platform and survives the first one's end."""
    first = Running(home, "examples/hello.py::Hello")
    first_url = first.url()
    second = Running(home, "examples/hello.py::Hello")
    second_url = second.url()
    assert first_url.rsplit("/", 1)[0] == second_url.rsplit("/", 1)[0]
    assert first.interrupt() == 0, first.output
    answer = curl("-X", "POST", second_url, "-H", "Content-Type: application/json", "-d", '{"name": "Bo"}')
    assert "Bo" in answer
    assert second.interrupt() == 0, second.output


def test_killed_run_takes_its_platform_along(home: Path) -> None:
    """A laptop's terminal is closed hard: no process may stay behind."""
    running = Running(home, "examples/hello.py::Hello")
    running.url()
    running.process.kill()
    running.process.wait()
    running.reader.join(10)
    wait_until(lambda: not processes_of(home), "the embedded platform to notice and leave", timeout=30)


def test_app_logs_are_streamed(home: Path) -> None:
    running = Running(home, "tests/system/apps/basic.py::Counting")
    url = running.url()
    curl("-X", "POST", url, "-H", "Content-Type: application/json", "-d", '{"text": "shown to me"}')
    wait_until(lambda: "call 1: shown to me" in running.output, "the app's print in fal run's output")
    assert running.interrupt() == 0


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("tests/system/apps/basic.py::Countng", ["Countng", "Counting"]),
        ("tests/system/apps/nowhere.py::App", ["nowhere.py"]),
        ("tests/system/apps/basic.py::Unsatisfiable", ["six==99.0"]),
        ("examples/sdxl.py::MyApp", ["No host offers GPU-A100", "XS, S, M, L, XL", "--cpu-fallback"]),
    ],
    ids=["wrong class", "no such file", "unsatisfiable requirement", "no such GPU"],
)
def test_refusals(home: Path, reference: str, says: list[str]) -> None:
    """Each mistake gets one clear message, exit status 1, and nothing is left running."""
    done = subprocess.run(
        [str(BIN / "fal"), "run", reference],
        cwd=ROOT,
        env=command_environ(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 1, shown
    assert all(part in shown for part in says), shown
    assert "Traceback" not in shown


def test_doctor_refuses_like_run(home: Path) -> None:
    done = subprocess.run(
        [str(BIN / "keepwarm"), "doctor", "examples/sdxl.py::MyApp"],
        cwd=ROOT,
        env=command_environ(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "No host offers GPU-A100" in done.stdout
    assert "XS, S, M, L, XL" in done.stdout
