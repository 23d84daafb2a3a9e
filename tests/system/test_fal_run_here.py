"""`fal run --local` and `fal run --reload`: what a developer has while writing an app."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.platform import BIN, ROOT, command_environ
from tests.support.waiting import wait_until
from tests.system.running import Running, processes_of

APP = """
import os

import fal
from fal.ref import get_current_app
from fal.toolkit import File
from pydantic import BaseModel

from words import WORD


class Input(BaseModel):
    name: str


class Greeter(fal.App):
    machine_type = "XS"
    requirements = ["pydantic>=2"]

    def setup(self) -> None:
        print("setup", os.environ["FAL_RUNNER_STATE"], flush=True)
        self.calls = 0

    def handle_exit(self) -> None:
        print("asked to leave", flush=True)

    def teardown(self) -> None:
        print("teardown", os.environ["FAL_RUNNER_STATE"], flush=True)

    def provide_hints(self) -> list[str]:
        return ["warm"]

    @fal.endpoint("/")
    def greet(self, input: Input) -> dict[str, object]:
        self.calls += 1
        return {
            "text": f"{WORD}, {input.name}",
            "calls": self.calls,
            "pid": os.getpid(),
            "request_id": self.current_request.request_id,
            "itself": get_current_app() is self,
            "file": File.from_bytes(b"hi", "text/plain").url,
        }
"""


def write(folder: Path, word: str, app: str = APP) -> Path:
    (folder / "words.py").write_text(f"WORD = {word!r}\n")
    (folder / "greeter.py").write_text(app)
    return folder / "greeter.py"


def greet(url: str) -> httpx.Response:
    return httpx.post(url, json={"name": "Ada"}, trust_env=False, timeout=60)


def refused(home: Path, *arguments: str) -> tuple[int, str]:
    """How a `fal run` ends that cannot go on, and what it says."""
    command = [str(BIN / "fal"), "run", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=command_environ(home), capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_local_serves_without_a_platform(home: Path) -> None:
    """One process, the app in it, and the same answers, headers and end as on a worker."""
    running = Running(home, "--local", "--exposed-port", "0", f"{write(home, 'Hello')}::Greeter")
    url = running.url()
    first, second = greet(url), greet(url)
    assert first.json() | {"request_id": "", "pid": 0} == {
        "text": "Hello, Ada",
        "calls": 1,
        "pid": 0,
        "request_id": "",
        "itself": True,
        "file": "data:text/plain;base64,aGk=",
    }
    assert (second.json()["calls"], second.json()["pid"]) == (2, running.process.pid)
    assert first.headers["x-fal-request-id"] == first.json()["request_id"]
    assert first.headers["x-fal-runner-hints"] == "warm"
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    assert httpx.post(url, json={}, trust_env=False).status_code == 422
    assert httpx.post(f"{url}/nowhere", trust_env=False).json() == {"detail": "Path /nowhere not found"}
    assert [process.pid for process in processes_of(home)] == [running.process.pid]
    assert running.interrupt() == 0, running.output
    shown = [line for line in running.lines if line.startswith(("setup", "asked", "teardown"))]
    assert shown == ["setup SETUP", "asked to leave", "teardown TERMINATING"]


def test_local_names_the_packages_that_are_missing(home: Path) -> None:
    """One message with all of them and the command; the file may import one of them at its top."""
    lines = ["no-such-package-a==1.2", "no-such-package-b", "pydantic>=2", "no-such-package-c; python_version < '3'"]
    app = APP.replace('["pydantic>=2"]', repr(lines))
    for source in (app, "import no_such_package_b\n" + app):
        code, said = refused(home, "--local", str(write(home, "Hello", source)))
        assert code == 1
        assert "does not have what" in said
        assert ": no-such-package-a==1.2, no-such-package-b.\n" in said
        assert "pip install" in said
        assert "no-such-package-a==1.2 no-such-package-b 'pydantic>=2'" in said


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (APP.replace("self.calls = 0", "raise OSError('no weights')"), 3, ["setup() of Greeter failed", "no weights"]),
        (APP.replace("-> dict[str, object]:", "-> dict[str, object]"), 1, ["greeter.py", "expected ':'"]),
        (APP.replace('@fal.endpoint("/")', ""), 1, ["no endpoint"]),
    ],
    ids=["setup fails", "no Python", "no endpoint"],
)
def test_local_refusals(home: Path, source: str, code: int, says: list[str]) -> None:
    ended, said = refused(home, "--local", "--exposed-port", "0", str(write(home, "Hello", source)))
    assert ended == code, said
    assert all(part in said for part in says), said


def test_local_says_that_a_port_is_taken(home: Path) -> None:
    running = Running(home, "--local", "--exposed-port", "0", str(write(home, "Hello")))
    port = running.url().rsplit(":", 1)[1]
    code, said = refused(home, "--local", "--exposed-port", port, str(home / "greeter.py"))
    assert (code, f"Port {port} of 127.0.0.1 cannot be used" in said) == (1, True), said
    assert running.interrupt() == 0


def test_local_reload_starts_the_process_again(home: Path) -> None:
    """A save of a module that the app imports counts; a file that does not load waits for the next save."""
    running = Running(home, "--local", "--reload", "--exposed-port", "0", str(write(home, "Hello")))
    before = greet(running.url()).json()
    write(home, "Hello", "import fal\ndef")
    wait_until(lambda: "greeter.py" in running.output and "invalid syntax" in running.output, "the fault to be shown")
    running.forget_url()
    write(home, "Good day")
    after = greet(running.url()).json()
    assert (before["text"], after["text"], after["calls"]) == ("Hello, Ada", "Good day, Ada", 1)
    assert before["pid"] != after["pid"]
    assert running.interrupt() == 0, running.output
    assert running.output.count("teardown TERMINATING") == 2


def test_a_killed_reload_takes_its_app_along(home: Path) -> None:
    """After kill -9 of the command the app went on serving, and kept the port from the next one."""
    running = Running(home, "--local", "--reload", "--exposed-port", "0", str(write(home, "Hello")))
    app = psutil.Process(greet(running.url()).json()["pid"])
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not app.is_running(), "the app to end")


AT_WORK = """self.calls += 1
        if input.name == "slow":
            print("at work", flush=True)
            time.sleep(1.5)"""
SLOW = APP.replace("self.calls += 1", AT_WORK).replace("import os", "import os\nimport time", 1)


def test_reload_makes_a_new_revision_of_the_same_app(home: Path) -> None:
    """The URL stays; a request that runs ends on the old code, and what does not load changes nothing."""
    running = Running(home, "--reload", str(write(home, "Hello", SLOW)))
    url = running.url()
    assert greet(url).json()["text"] == "Hello, Ada"

    write(home, "Hello", SLOW + "\n1 / 0\n")
    wait_until(lambda: "The app goes on as it was before" in running.output, "the fault to be shown", timeout=60)
    assert "ZeroDivisionError" in running.output
    assert greet(url).json()["text"] == "Hello, Ada"

    wrong = SLOW.replace('["pydantic>=2"]', '["no-such-package-a==0"]')
    write(home, "Hello", wrong)
    wait_until(lambda: "no-such-package-a" in running.output, "the failed build to be shown", timeout=60)
    wait_until(lambda: running.output.count("The app goes on as it was before") == 2, "and what follows", timeout=60)

    old = subprocess.Popen(
        ["curl", "-sS", "--noproxy", "*", url, "-H", "Content-Type: application/json", "-d", '{"name": "slow"}'],
        stdout=subprocess.PIPE,
    )
    wait_until(lambda: "at work" in running.output, "the slow request to run", timeout=60)
    write(home, "Good day", SLOW)
    wait_until(lambda: "Reloaded as revision" in running.output, "the new revision", timeout=60)
    wait_until(lambda: greet(url).json()["text"] == "Good day, Ada", "the new code to answer", timeout=60)
    assert json.loads(old.communicate(timeout=60)[0])["text"] == "Hello, slow"

    more = SLOW + '\n    @fal.endpoint("/more")\n    def more(self) -> int:\n        return 7\n'
    write(home, "Good day", more)
    wait_until(lambda: f"{url}/more" in running.output, "the address of the new endpoint", timeout=60)
    assert httpx.post(f"{url}/more", trust_env=False, timeout=60).json() == 7
    assert running.interrupt() == 0, running.output
    assert not processes_of(home)
