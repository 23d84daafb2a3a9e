"""`fal run` and `fal deploy` as processes: what they send, what they show, how they end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Fal
from tests.cli.control_server import ControlServer
from tests.support.waiting import wait_until

APP = """
import fal
from pydantic import BaseModel

from helper import greet


class Input(BaseModel):
    prompt: str
    steps: int = 3


class Greeter(fal.App):
    requirements = ["six"]

    @fal.endpoint("/")
    def run(self, input: Input) -> dict[str, str]:
        return greet(input.prompt)

    @fal.endpoint("/loud")
    def loud(self, input: Input) -> dict[str, str]:
        return {}
"""
BUILD = [
    {"type": "log", "message": "Resolved 12 packages", "at": time.time() + 3600},
    {"type": "log", "message": "Installed 12 packages", "at": time.time() + 3601},
]
READY_NOTES = {"resolved": "as of the pins 2024-06-10", "size": 7}
READY = {"type": "state", "state": "READY", "error": None, "notes": READY_NOTES}
URL = "tester/0c6f8a3e-1111-4222-8333-444455556666"


class Process:
    """A `fal` command in the background whose lines are collected."""

    def __init__(self, folder: Path, environ: dict[str, str], *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            ["fal", *arguments],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As in a terminal, also where the tests themselves run under nohup.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            self.lines.extend(line.rstrip("\n") for line in stream)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self._ended(), f"{text!r} in the output")
        assert text in self.output, self.output

    def _ended(self) -> bool:
        return self.process.poll() is not None and not self._reader.is_alive()

    def end(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        self._reader.join(10)
        return code


@pytest.fixture
def start(tmp_path: Path, known: dict[str, str]) -> Iterator[Callable[..., Process]]:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "helper.py").write_text("def greet(name):\n    return {'hello': name}\n")
    begun: list[Process] = []

    def run(*arguments: str) -> Process:
        begun.append(Process(tmp_path, known, *arguments))
        return begun[-1]

    yield run
    for process in begun:
        process.process.kill()
        process.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_run_until_a_signal(control: ControlServer, start: Callable[..., Process], number: signal.Signals) -> None:
    """The main job: the build's lines, the URL on a line of its own, the log, and a clean end that removes the app."""
    control.build = [*BUILD, READY]
    control.session_log = [{"id": "1-0", "at": 1735787047.0, "level": "stdout", "message": "call 1: shown to me"}]
    running = start("run", "app.py::Greeter")
    running.wait_for("call 1: shown to me")
    running.wait_for("runner w1 is ready after 1.4 s (zygote; fork 0.1, setup 1.2)")
    assert running.end(number) == 0, running.output
    base = f"{control.url}/{URL}"
    assert f"Access your exposed service at {base}" in running.lines
    assert f"""  curl -X POST {base} -H "Content-Type: application/json" -d '{{"prompt": "rhino"}}'""" in running.lines
    order = ["Warning", "Building environment", "Resolved 12", "✓ Build complete", "Ephemeral App (public)", "Access"]
    assert [text for text in sorted(order, key=running.output.find) if text in running.output] == order
    assert f"  Async  {control.url}/queue/{URL}/loud" in running.lines
    assert control.deleted == [URL]
    assert "Removed" in running.lines[-1]
    wait_until(lambda: control.hung_up == [URL], "the session to be closed")


def test_what_is_sent(control: ControlServer, start: Callable[..., Process], tmp_path: Path) -> None:
    running = start("run", "app.py")
    running.wait_for("Its log:")
    running.end(signal.SIGINT)
    sent = control.deployments[0]
    assert sent["ephemeral"]
    assert (sent["spec"]["auth"], sent["spec"]["entry_file"]) == ("public", "app.py")
    assert [file["path"] for file in sent["files"]] == ["app.py", "helper.py"]
    assert set(control.objects.values()) == {(tmp_path / "app.py").read_bytes(), (tmp_path / "helper.py").read_bytes()}
    control.objects.clear()
    again = start("run", "app.py", "--auth", "private", "--no-cache", "--machine-type", "L", "--team", "us")
    again.wait_for("Its log:")
    again.end(signal.SIGINT)
    sent = control.deployments[1]
    assert (sent["spec"]["auth"], sent["spec"]["machine_types"], sent["no_cache"]) == ("private", ["L"], True)
    assert '-H "Authorization: Key $FAL_KEY"' in again.output
    assert "public unless" not in again.output
    assert "--team has no meaning here" in again.output


def test_lines_of_an_earlier_build_are_held_back(
    control: ControlServer, fal: Fal, start: Callable[..., Process]
) -> None:
    """A cached environment's log from last week was shown as if it were being built again."""
    control.build = [{**line, "at": 1735787045.5} for line in BUILD]
    control.build.append(READY)
    shown = fal("deploy", "app.py").stdout
    assert "Resolved 12" not in shown
    assert "Build complete (built before)" in shown
    control.build[-1] = {"type": "state", "state": "FAILED", "error": "no such package"}
    assert "Resolved 12" in fal("deploy", "app.py", code=1).stdout


def test_only_missing_files_are_sent(control: ControlServer, fal: Fal, start: Callable[..., Process]) -> None:
    assert "Sent 2 files" in fal("deploy", "app.py").stdout
    assert "Sent" not in fal("deploy", "app.py").stdout


def test_a_failed_build_shows_its_own_lines(control: ControlServer, start: Callable[..., Process]) -> None:
    error = "no version of six==99.0 exists"
    control.build = [*BUILD, {**BUILD[-1], "message": f"error: {error}"}]
    control.build.append({"type": "state", "state": "FAILED", "error": error})
    running = start("run", "app.py")
    assert running.end() == 1
    assert running.output.count(error) == 1
    assert "✗ The environment could not be built." in running.lines
    assert "Access your" not in running.output


def test_an_embedded_platform_that_cannot_start_shows_its_last_words(
    fal: Fal, environ: dict[str, str], start: Callable[..., Process]
) -> None:
    done = fal("run", "app.py", environ=environ | {"KEEPWARM_OWNER": "queue"}, code=1)
    assert "✗ The embedded platform ended before it was ready." in done.stderr
    assert "owner 'queue' is reserved" in done.stderr
    assert "fal-run.log" in done.stderr


def test_a_refused_machine_type_is_said_in_the_servers_words(
    control: ControlServer, fal: Fal, start: Callable[..., Process]
) -> None:
    control.refuse_deploy = (409, "No host offers GPU-A100. This host offers CPU types XS, S. Next: do that.")
    for command in ("run", "deploy"):
        done = fal(command, "app.py", code=1)
        assert done.stderr.endswith(
            "✗ No host offers GPU-A100. This host offers CPU types XS, S.\n  Next:  do that.\n"
        ), done.stderr


def test_an_interrupted_build_is_no_success(control: ControlServer, start: Callable[..., Process]) -> None:
    control.build = [*BUILD]  # the stream ends without a state: the gateway went away
    running = start("run", "app.py")
    running.wait_for("Resolved 12 packages")
    assert running.end(signal.SIGINT) == 130
    assert running.output.count("Resolved 12 packages") == 1


def test_a_broken_session_is_resumed_after_the_last_line(control: ControlServer, start: Callable[..., Process]) -> None:
    """A gateway restarts while an app runs: the command reconnects, and shows no line twice."""
    control.session_log = [{"id": "5-0", "at": 1.0, "message": "a line"}]
    control.drop_sessions = 1
    running = start("run", "app.py")
    wait_until(lambda: len(control.sessions) == 2, "the second session")
    assert control.sessions == ["0", "5-0"]
    assert running.end(signal.SIGINT) == 0


def test_an_app_deleted_on_the_server_ends_the_run(control: ControlServer, start: Callable[..., Process]) -> None:
    running = start("run", "app.py")
    running.wait_for("Its log:")
    wait_until(lambda: control.sessions, "the session")
    del control.apps[URL]
    assert running.end() == 1
    assert f"{URL} is gone" in running.output


def test_deploy(control: ControlServer, fal: Fal, start: Callable[..., Process]) -> None:
    control.build = [*BUILD, READY]
    shown = fal("deploy", "app.py::Greeter", "--message", "first", "--auth", "public").stdout
    sent = control.deployments[0]
    assert (sent["ephemeral"], sent["message"], sent["reset_scale"]) == (False, "first", False)
    order = [
        "Deploying 'Greeter' as app 'greeter'",
        "First deploy",
        "Resolved 12",
        "Versions resolved as of the pins 2024-06-10",
        "✓ Build complete",
        "✓ Deployed successfully",
        "tester/greeter",
        "Auth: public",
        f"Sync   {control.url}/tester/greeter\n",
        f"Async  {control.url}/queue/tester/greeter\n",
        f"Sync   {control.url}/tester/greeter/loud\n",
        "curl -X POST",
    ]
    assert [text for text in sorted(order, key=shown.find) if text in shown] == order
    again = fal("deploy", "app.py::Greeter").stdout
    assert "First deploy" not in again
    assert "Scaling settings" not in again, "they are what the code says"
    control.apps["tester/greeter"]["scaling"]["max_concurrency"] = 9
    assert "Scaling settings were kept" in fal("deploy", "app.py::Greeter").stdout
    assert "kept" not in fal("deploy", "app.py::Greeter", "--reset-scale").stdout
    assert control.deployments[3]["reset_scale"]


def test_deploy_json_leaves_stdout_to_the_answer(
    control: ControlServer, fal: Fal, start: Callable[..., Process]
) -> None:
    control.build = [*BUILD, READY]
    done = fal("deploy", "app.py", "--app-name", "other", "--json")
    answer = json.loads(done.stdout)
    assert (answer["app_name"], answer["revision"], answer["status"]) == ("other", "rev1", "Deployed")
    assert answer["urls"]["sync"] == f"{control.url}/tester/other"
    assert "Resolved 12 packages" in done.stderr


def test_wrong_class_name_is_one_message_and_starts_nothing(
    control: ControlServer, fal: Fal, start: Callable[..., Process]
) -> None:
    done = fal("run", "app.py::Greter", code=1)
    assert re.search(r"✗ app.py has no class 'Greter'\.\n  Cause: .*Greeter\.\n  Next:  did you mean app", done.stderr)
    assert control.deployments == []


SMALL = """
import fal


class {name}(fal.App):
    @fal.endpoint("/")
    def run(self) -> int:
        return 1
"""


def test_a_deploy_says_that_it_replaces_another_app(control: ControlServer, fal: Fal, tmp_path: Path) -> None:
    """S11 and S12 both became app `s`, for digits vanish from names: the second deploy put itself in the place of the
    first without a word."""
    for name in ("S11", "S12"):
        (tmp_path / f"{name.lower()}.py").write_text(SMALL.format(name=name))
    first = fal("deploy", "s11.py").stdout
    assert "! the digits of S11 are left out of the app's name, 's'; --app-name gives another." in first
    assert "Warning" not in first
    assert "Warning" not in fal("deploy", "s11.py").stdout
    second = fal("deploy", "s12.py").stdout
    assert "Warning: app 's' was made from S11 in s11.py; this deploy puts S12 of s12.py in its place." in second
    assert "--app-name" in second.partition("Next:")[2]
    assert "fal apps set-rev s rev2" in second
    named = fal("deploy", "s11.py", "--app-name", "s-11").stdout
    assert "digits" not in named
    assert "Warning" not in named


def test_run_says_a_name_that_lost_its_digits(
    control: ControlServer, tmp_path: Path, start: Callable[..., Process]
) -> None:
    (tmp_path / "s11.py").write_text(SMALL.format(name="S11"))
    running = start("run", "s11.py")
    running.wait_for("Its log:")
    assert "the digits of S11 are left out of the app's name, 's'" in running.output
    running.end(signal.SIGINT)


def test_only_the_first_deploy_is_called_the_first(
    control: ControlServer, fal: Fal, start: Callable[..., Process]
) -> None:
    """After a failed build the next deploy was greeted as the first again, as if nothing had been kept of it."""
    control.build = [*BUILD, {"type": "state", "state": "FAILED", "error": "no such package"}]
    assert "First deploy" in fal("deploy", "app.py", code=1).stdout
    assert "First deploy" not in fal("deploy", "app.py", code=1).stdout
